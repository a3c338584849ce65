"""What a tokenizer does, tried on many texts and ids, so that two can be compared by it.

Two files that are written differently may number every text alike, and two that look alike may
not. So the texts here are those where tokenizers are known to part: digits of every length, runs of
white space, scripts, marks composed and decomposed, code and LaTeX, and, above all, the texts of the
tokenizer's own tokens, altered, strung together, and with its added tokens between them.
"""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from tokenizers import Tokenizer

# Whole texts, and pieces that random texts are strung together from.
TEXTS = (
    "What is 12+34?\n\nThe answer is \\boxed{46}.\n\nhello",
    "First, we factor x^2 - 5x + 6 = (x - 2)(x - 3); so x = 2 or x = 3.\n",
    "\\begin{align*}\n  \\frac{1}{2} &= 0.5 \\\\\n  \\sqrt{x^{10}} &\\le 3{,}000\n\\end{align*}\n",
    "def f(x, y=None):\n    if x is None:\n\treturn {'a': [1, 2]}\n    # done\n    return x**2\n\n\n",
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] <think>\n\n</think>\n\nYes</s><s>",
    "I'm, you're, we've, IT'S, they'll, he'd, DON'T, can't; 'tis “quoted”—so… (yes) .  ,  ! ' s",
    "do n't say ' s . , ! ? ' m ' ve ' re",
    "café naïve Ångström cafe\u0301 A\u030angstro\u0308m \u212b ﬁ ½ ² Ⅷ ① Straße İstanbul",
    "Привет, мир! Ёлка 123 年は2024年です。你好世界 안녕하세요 \u1112\u1161\u11ab",
    "مرحبا بالعالم ١٢٣ שלום สวัสดีชาวโลก ๑๒๓ नमस्ते दुनिया १२३ Ａｂｃ１２３",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪 ❤️ 😀😀 𝔘𝔫𝔦 𓀀 \ue000 \U0010fffd",
    "  leading, trailing  ",
    "\ttab\t\ttabs\r\nWindows\r\n\r\n \n \n\n\n   end\n",
    "camelCase PascalCase HTTPServer iPhone15 snake_case kebab-case a/b//c http://x.org/?q=1&r=2",
    "no\u00a0break thin\u2009space zero\u200bwidth \u3000wide\u2028line\ufeffmark\x00nul \x1b[0m",
)
PIECES = (
    *("a", "the", "The", "THE", "x", "Y", "I", " so", " Hello", "word", "'s", "'S", "'re", "n't"),
    *(" ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", "\r\n", " \n", "\n ", "    "),
    *("\u00a0", "\u3000", ".", ",", ";", ":", "!", "?", "...", "-", "--", "_", "/", "//"),
    *("(", ")", "[", "]", "{", "}", "$", "$$", "\\", "\\frac{", "\\boxed{", "^", "=", "==", "+"),
    *("*", "**", "<", ">", "|", "&", "#", "1", "12", "123", "1234", "0", "007", ".5", "1,000"),
    *("½", "²", "Ⅷ", "٣", "１２", "๓", "é", "e\u0301", "\u0338", "\u030a", "ß", "İ", "ﬁ", "Å"),
    *("\u212b", "ё", "Привет", "年", "は", "你好", "한", "\u1112\u1161", "م", "مَ", "ش", "สวัส"),
    *("नि", "😀", "👍🏽", "\u200d", "\u200b", "\ufe0f", "𝔘", "𓀀", "\ue000", "\ufeff", "\x00"),
    *("\x7f", "’", "“", "—", "…", "▁", "Ġ", "##ing", "<0x41>"),
)
# Around an added token: what its flags and its neighbours may swallow or keep apart.
AROUND = (
    *("{}", " {}", "{} ", "  {}  ", "a{}b", "a {} b", "\n\n{}\n\n", "{}{}", "{} {}", "1{}2"),
    *("{}The answer", "x = {};", "{}\u0338", "\t{}\t", "é{}é"),
)
ALTERED: tuple[Callable[[str], str], ...] = (
    str.upper,
    str.title,
    lambda text: " " + text,
    lambda text: text + text,
    lambda text: text + "\n\n",
    lambda text: "(" + text + ")",
    lambda text: unicodedata.normalize("NFD", text),
)


@dataclass(frozen=True)
class Mismatch:
    """Something that two tokenizers do differently: the text or ids given, and what each makes."""

    given: str | list[int]
    first: Any
    second: Any
    skip: bool = False  # whether special tokens are left out of the text that ids are turned into

    def __str__(self) -> str:
        given = repr(self.given) if isinstance(self.given, str) else f"the ids {self.given}"
        left_out = " without special tokens" if self.skip else ""
        first, second = (repr(m) if isinstance(m, str) else m for m in (self.first, self.second))
        return f"{given}{left_out}: {first} in the first, {second} in the second"


def encode(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text as it stands, of a tokenizer of transformers or of the library beneath."""
    inner = backend(tokenizer)
    if inner is None:
        return tokenizer.encode(text, add_special_tokens=False)
    return inner.encode(text, add_special_tokens=False).ids


def decode(tokenizer: Any, ids: list[int], skip: bool) -> str:
    """Text of ids, with or without the special tokens."""
    return tokenizer.decode(ids, skip_special_tokens=skip)


def backend(tokenizer: Any) -> Tokenizer | None:
    """What does the work in a fast tokenizer; None of one in Python."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    inner = getattr(tokenizer, "backend_tokenizer", None)
    return inner if isinstance(inner, Tokenizer) else None


def processing(tokenizer: Any) -> dict[str, Any]:
    """Normalizer, pre-tokenizer and decoder as JSON says them, but for what moves no id.

    ``trim_offsets`` says where a token's characters are counted to be.
    """

    def kept(part: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in part.items() if key != "trim_offsets"}

    inner = backend(tokenizer)
    names = ("normalizer", "pre_tokenizer", "decoder") if inner else ()
    parts = {name: getattr(inner, name) for name in names}
    return {n: p and json.loads(p.__getstate__(), object_hook=kept) for n, p in parts.items()}


def _strings(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, (dict, list)):
        yield from chain(*map(_strings, part.values() if isinstance(part, dict) else part))


def _literals(parts: Sequence[Any]) -> list[str]:
    """What the patterns of some processing name: texts that it may treat in a way of its own."""
    found: dict[str, None] = {}
    for text in chain(*map(_strings, parts)):
        if len(text) < 4096:  # (a precompiled map of characters is longer)
            plain = re.sub(r"\\[pP]\{\w+\}|\\[a-zA-Z]", " ", text)
            found |= dict.fromkeys([text, *re.findall(r"[^\W\d_]+|\d+|[^\w\s]+", plain)])
    return list(found)[:256]


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """The first half of ``count`` items, and as many evenly over all."""
    if len(items) <= count:
        return list(items)
    return [*items[: count // 2], *items[count // 2 :: max(1, len(items) // (count // 2))]]


def _numbers(random_: random.Random) -> list[str]:
    texts = []
    for length in range(1, 13):
        for _ in range(6):
            number = "".join(random_.choices("0123456789", k=length))
            texts += [number, f" {number}", f"x{number}y", f"\\boxed{{{number}}}"]
            texts += [f"-{number}.{number}", f"{int(number):,}", f"= {number}\n", f"{number}%"]
    return texts


def probe_texts(words: Sequence[str], added: Sequence[str], extra: Sequence[str]) -> list[str]:
    """Texts to compare by: of given words (tokens' texts), added tokens, and ``extra`` texts.

    The same ones every time.
    """
    chance = random.Random(0)
    digits = [w for w in words if w.strip().isdigit()] or ["1", "2"]
    words = list(words) or ["a"]
    texts = [*TEXTS, *PIECES, *extra, *_numbers(chance), *words]
    texts += [change(word) for word in _spread(words, 256) for change in ALTERED]
    texts += [around.replace("{}", token) for token in added for around in AROUND]
    texts += [token.swapcase() for token in added]
    texts += [around.replace("{}", text) for text in extra for around in ("a {} b", "a{}b")]
    for _ in range(len(words) // 2 + 512):
        pools = [words, PIECES, words, added or PIECES]
        count = chance.randint(2, 6)
        texts.append("".join(chance.choice(pools[chance.randrange(3)]) for _ in range(count)))
        texts.append("".join(chance.choice(words) for _ in range(count)))
        texts.append("".join(chance.choice(chance.choice(pools)) for _ in range(count)))
    for _ in range(256):
        texts.append("".join(w.strip() for w in chance.choices(digits, k=chance.randint(2, 5))))
    return list(dict.fromkeys(text for text in texts if text))


def first_difference(
    a: Any, b: Any, vocabulary: dict[str, int], added: Sequence[str] = (), skip: bool = True
) -> Mismatch | None:
    """An example of what two tokenizers of one vocabulary do differently, the shortest found.

    Parameters
    ----------
    a, b : tokenizers of transformers, or of the tokenizers library
    vocabulary : every token's id
    added : texts that are tokens whatever stands around them; those suspected of a difference first
    skip : whether to compare texts without special tokens too
    """
    inner = [processing(t) for t in (a, b)]
    alike = inner[0] == inner[1]
    chance = random.Random(1)
    ids = sorted(vocabulary.values())
    chosen = _spread(ids, 2048 if alike else 16384)
    words = [text for i in chosen if "\ufffd" not in (text := decode(a, [i], False)) and text]
    extra = [] if alike else _literals(inner)
    texts = probe_texts(words, _spread(added, 256), extra)
    differing, sequences = [], [[vocabulary[t]] for t in added if t in vocabulary]
    for text in texts:
        pair = encode(a, text), encode(b, text)
        if pair[0] != pair[1]:
            differing.append(Mismatch(text, *pair))
        elif len(sequences) < 4096:
            sequences.append(pair[0])
    if differing:
        return min(differing, key=lambda example: len(example.given))
    sequences += [[i] for i in chosen]
    sequences += [chance.choices(ids, k=chance.randint(2, 5)) for _ in range(1024)]
    for sequence in sequences:
        for without in (False, True)[: 1 + skip]:
            pair = decode(a, sequence, without), decode(b, sequence, without)
            if pair[0] != pair[1]:
                differing.append(Mismatch(sequence, *pair, without))
    return min(differing, key=lambda example: len(example.given), default=None)
