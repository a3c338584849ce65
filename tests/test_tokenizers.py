"""Tokenizers that differ, or that do not survive their own loading, are refused."""

import json
import random
import shutil

import pytest
from conftest import WORDS, write_model, write_tokenizer
from tokenizers import Tokenizer

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.study.tokenizers import (
    check_same_tokenizer,
    check_tokenizer,
    load_tokenizer,
    templates_differ,
)


@pytest.fixture
def directory(tiny_pair, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_pair.base, copy)
    return copy


def edit(directory, name, change):
    file = directory / name
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def bpe(directory, merges, vocabulary="abcd", extra=()):
    """Save a byte-pair tokenizer with the given merges."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = ["<eos>", *vocabulary, *extra]
    model = models.BPE({w: i for i, w in enumerate(words)}, merges)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="<eos>").save_pretrained(
        directory
    )
    return directory


def test_the_pair_shares_one(tiny_pair):
    check_same_tokenizer(tiny_pair.base, tiny_pair.tuned)


def test_fault_12_vocabularies_of_one_size_that_differ(tiny_pair, directory):
    swapped = list(WORDS)
    i, j = swapped.index("7"), swapped.index("8")
    swapped[i], swapped[j] = swapped[j], swapped[i]
    write_tokenizer(directory, swapped)
    with pytest.raises(TokenshiftError, match=r"differ in their vocabulary \('7' is 31 .* 32"):
        check_same_tokenizer(tiny_pair.base, directory)


def test_merges_that_differ(tmp_path):
    extra = ["ab", "abc", "bc"]
    first = bpe(tmp_path / "a", [("a", "b"), ("ab", "c"), ("b", "c")], extra=extra)
    second = bpe(tmp_path / "b", [("b", "c"), ("a", "b"), ("ab", "c")], extra=extra)
    with pytest.raises(TokenshiftError, match="merges .*rule 0"):
        check_same_tokenizer(first, second)
    check_same_tokenizer(first, first)


def test_special_tokens_that_differ(tiny_pair, directory):
    def plain(content):
        for token in content["added_tokens"]:
            token["special"] &= token["content"] != "<unk>"

    edit(directory, "tokenizer.json", plain)
    edit(directory, "tokenizer_config.json", lambda content: content.pop("unk_token"))
    with pytest.raises(TokenshiftError, match="special tokens .*<unk>"):
        check_same_tokenizer(tiny_pair.base, directory)


def test_text_processing_that_differs(tiny_pair, directory):
    edit(directory, "tokenizer.json", lambda c: c.update(normalizer={"type": "Lowercase"}))
    with pytest.raises(TokenshiftError, match="text processing"):
        check_same_tokenizer(tiny_pair.base, directory)


def test_chat_templates_that_differ(tiny_pair, directory, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(directory, other)
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert templates_differ(tiny_pair.base, directory) is None  # one of them has none
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert templates_differ(directory, other) == "of 'Hi' one makes 'Hi', the other 'Hi!'"
    check_same_tokenizer(directory, other)  # a study says whose template writes its prompts


def test_which_token_ends_a_response_may_differ(tiny_pair, directory):
    edit(directory, "tokenizer_config.json", lambda content: content.update(eos_token="<pad>"))
    check_same_tokenizer(tiny_pair.base, directory)


def test_ids_outside_the_models_vocabulary(directory):
    write_tokenizer(directory, [*WORDS, " zebra"])
    with pytest.raises(
        TokenshiftError, match="' zebra' 36, but the model's vocabulary has only 36"
    ):
        HFPolicy.load(directory, "copy")


def test_a_round_trip_that_changes_text(directory):
    def spaced(content):
        content["decoder"] = {
            "type": "Replace",
            "pattern": {"String": "1"},
            "content": "l",
        }

    edit(directory, "tokenizer.json", spaced)
    with pytest.raises(TokenshiftError, match="turns '.*' into '.*' by encoding and decoding"):
        HFPolicy.load(directory, "copy")


def test_reserved_markers_need_not_be_text(tmp_path):
    words = [*WORDS, "<unused_0>", "[unused1]"]
    write_model(tmp_path, words=words)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("<unused_0>")) != "<unused_0>"
    check_tokenizer(tokenizer, len(words), tmp_path)


def test_a_tokenizer_that_loads_as_another(tmp_path):
    """As AutoTokenizer does to a word-level tokenizer beside a qwen2 configuration."""
    write_model(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    mangled = list(WORDS)
    i, j = mangled.index("3"), mangled.index("4")
    mangled[i], mangled[j] = mangled[j], mangled[i]
    write_tokenizer(tmp_path, mangled)
    with pytest.raises(TokenshiftError, match="that numbers '[34]' differently from its own"):
        check_tokenizer(tokenizer, len(WORDS), tmp_path)


# Byte-level byte pairs, as Qwen and Llama have them --------------------------------------------

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def byte_pairs(tmp_path_factory):
    """A directory with a tokenizer as on the hub: numbers in threes, chat marks, a plain added token."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
    from tokenizers import pre_tokenizers as pre

    directory = tmp_path_factory.mktemp("byte_pairs")
    chance = random.Random(0)
    numbers = [" ".join(str(chance.randrange(10**k)) for k in (3, 3, 4, 5, 6)) for _ in range(300)]
    text = ["What is 12+34? The answer is \\boxed{46}.\n\nSo we add the numbers, hello HELLO"] * 50
    text += ["\n\n"] * 20  # above the rest of that text, so that it is a token of its own
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre.Sequence(
        [
            pre.Split(Regex(PATTERN), "isolated"),
            pre.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(text + numbers, trainer)
    tokenizer.add_special_tokens(list(MARKS))
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": MARKS[0],
        "pad_token": MARKS[0],
        "chat_template": TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return directory


@pytest.fixture
def other(byte_pairs, tmp_path):
    return shutil.copytree(byte_pairs, tmp_path / "other")


def pattern(was, now):
    def change(content):
        split = content["pre_tokenizer"]["pretokenizers"][0]["pattern"]
        assert was in split["Regex"]
        split["Regex"] = split["Regex"].replace(was, now)

    return change


def flag(name, token="<think>"):
    def change(content):
        [found] = [t for t in content["added_tokens"] if t["content"] == token]
        found[name] = not found[name]

    return change


def in_place(**parts):
    return lambda content: content.update(parts)


def sequence(part, *steps):
    """``steps`` after (a decoder) or before (else) what a part does."""

    def change(content):
        own, kind = [content[part]], "decoders" if part == "decoder" else f"{part}s"
        content[part] = {
            "type": "Sequence",
            kind: own + list(steps) if part == "decoder" else list(steps) + own,
        }

    return change


def swapped(content):
    vocabulary = content["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.get)[300:302]
    vocabulary.update(zip(tokens, [vocabulary[t] for t in reversed(tokens)]))


def first_merge_last(content):
    merges = content["model"]["merges"]
    merges.append(merges.pop(0))


def byte_level(name):
    def change(content):
        level = content["pre_tokenizer"]["pretokenizers"][1]
        level[name] = not level[name]

    return change


DIFFERENT = {
    "digits one by one": (pattern(r"\p{N}{1,3}", r"\p{N}"), r"text processing \('.*\d"),
    "digits in pairs": (pattern(r"{1,3}", r"{1,2}"), r"text processing \('.*\d"),
    "digits from the right": (
        pattern(r"\p{N}{1,3}", r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|\p{N}"),
        r"text processing \('.*\d",
    ),
    "words without their space": (
        pattern(r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{L}+"),
        "text processing",
    ),
    "line breaks one by one": (pattern(r"|\s*[\r\n]+|", r"|[\r\n]|"), "text processing"),
    "no pattern": (
        lambda c: c.update(pre_tokenizer=c["pre_tokenizer"]["pretokenizers"][1]),
        "text processing",
    ),
    "no normalizer": (in_place(normalizer=None), "text processing"),
    "another normalizer": (in_place(normalizer={"type": "NFKC"}), "text processing"),
    "a word replaced": (
        sequence(
            "normalizer",
            {"type": "Replace", "pattern": {"Regex": r"\bseldom\b"}, "content": "often"},
        ),
        "text processing .*seldom",
    ),
    "stripped text": (
        sequence("normalizer", {"type": "Strip", "strip_left": False, "strip_right": True}),
        "text processing",
    ),
    "prefix space": (byte_level("add_prefix_space"), "text processing"),
    "pattern of GPT-2 too": (byte_level("use_regex"), "text processing"),
    "two ids swapped": (swapped, r"vocabulary \('.*' is 300 in the first, 301 in the second"),
    "merges in another order": (
        first_merge_last,
        r"merges .*rule 0; '.*': \[.*\] in the first, \[",
    ),
    "no special token": (flag("special", MARKS[2]), "special tokens .*im_end"),
    "a special token": (flag("special"), "special tokens .*think"),
    "lstrip": (flag("lstrip"), "text processing .*<think>"),
    "rstrip": (flag("rstrip"), "text processing .*<think>"),
    "single word": (flag("single_word"), "text processing .*<think>"),
    "normalized": (flag("normalized"), "text processing .*<think>"),
    "a decoder that strips": (
        sequence("decoder", {"type": "Strip", "content": " ", "start": 1, "stop": 0}),
        r"text processing \(the ids \[",
    ),
    "a decoder that strips three": (
        sequence("decoder", {"type": "Strip", "content": "\n", "start": 3, "stop": 0}),
        r"text processing \(the ids \[",
    ),
    "a decoder that joins by spaces": (
        in_place(decoder={"type": "WordPiece", "prefix": "##", "cleanup": False}),
        r"text processing \(the ids \[",
    ),
    "a decoder that replaces": (
        sequence(
            "decoder", {"type": "Replace", "pattern": {"String": "seldom"}, "content": "often"}
        ),
        r"text processing \(the ids \[",
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_is_done_differently_is_said_by_an_example(byte_pairs, other, name):
    change, message = DIFFERENT[name]
    edit(other, "tokenizer.json", change)
    with pytest.raises(TokenshiftError, match=f"(?s)differ in their {message}"):
        check_same_tokenizer(byte_pairs, other)
    with pytest.raises(TokenshiftError, match="differ in their"):
        check_same_tokenizer(other, byte_pairs)


ALIKE = {
    "trim_offsets": byte_level("trim_offsets"),
    "merges as text": lambda c: c["model"].update(
        merges=[" ".join(m) for m in c["model"]["merges"]]
    ),
    "a sequence of one": sequence("normalizer"),
    "twice the same normalizer": sequence("normalizer", {"type": "NFC"}),
    "a decoder's settings": lambda c: c["decoder"].update(use_regex=False, add_prefix_space=False),
    "saved lengths": in_place(
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 8},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "!",
        },
    ),
    "an equal pattern": pattern(r"\p{N}{1,3}", r"\p{N}\p{N}?\p{N}?"),
}


@pytest.mark.parametrize("name", ALIKE)
def test_what_is_only_written_differently_is_one(byte_pairs, other, name):
    edit(other, "tokenizer.json", ALIKE[name])
    check_same_tokenizer(byte_pairs, other)


def test_saved_again_it_is_the_same(byte_pairs, other):
    load_tokenizer(byte_pairs).save_pretrained(other)
    assert (other / "chat_template.jinja").is_file()
    check_same_tokenizer(byte_pairs, other)


def test_chat_templates_that_write_alike_are_one(byte_pairs, other):
    remark = "{# saved again #}" + TEMPLATE.replace("m.role", "m['role']")
    edit(other, "tokenizer_config.json", lambda c: c.update(chat_template=remark))
    assert templates_differ(byte_pairs, other) is None


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llama", "LlamaTokenizerFast"),
        ("qwen2", "Qwen2Tokenizer"),
        ("llama", "GPT2Tokenizer"),
        ("llama", "SomebodysOwnTokenizer"),
    ],
)
def test_a_class_that_would_change_it_is_not_used(byte_pairs, other, kind, name):
    """It is loaded as tokenizer.json has it, with template and ends of the configuration."""
    edit(other, "config.json", lambda c: c.update(model_type=kind))
    edit(other, "tokenizer_config.json", lambda c: c.update(tokenizer_class=name))
    own = Tokenizer.from_file(str(other / "tokenizer.json"))
    for _ in range(2):  # the second time by what the first has found
        tokenizer = load_tokenizer(other)
        for text in ("12345", "\\boxed{1234567}", "It's <think>é\n\n 7"):
            ids = own.encode(text, add_special_tokens=False).ids
            assert tokenizer.encode(text, add_special_tokens=False) == ids
            assert tokenizer.decode(ids) == text
        assert tokenizer.eos_token == MARKS[0] and tokenizer.chat_template == TEMPLATE
    check_tokenizer(tokenizer, len(tokenizer), other)
    check_same_tokenizer(byte_pairs, other)


def test_files_that_contradict_each_other_are_refused(other):
    """What the configuration says of a token is not what tokenizer.json says of it."""
    [i] = [
        t["id"]
        for t in json.loads((other / "tokenizer.json").read_text())["added_tokens"]
        if t["content"] == "<think>"
    ]
    token = {"content": "<think>", "lstrip": True, "rstrip": True, "normalized": False}
    token |= {"single_word": False, "special": False}
    edit(other, "tokenizer_config.json", lambda c: c.update(added_tokens_decoder={str(i): token}))
    with pytest.raises(TokenshiftError, match="<think>.* differently from its own tokenizer.json"):
        load_tokenizer(other)


def test_tokens_that_the_configuration_adds_are_its_own(byte_pairs, other):
    size = len(load_tokenizer(byte_pairs))
    edit(other, "tokenizer_config.json", lambda c: c.update(pad_token="<|pad|>"))
    assert load_tokenizer(other).pad_token_id == size
    with pytest.raises(TokenshiftError, match=rf"vocabulary \('<\|pad\|>' is absent .* {size}"):
        check_same_tokenizer(byte_pairs, other)


def test_an_adapters_own_tokenizer_is_compared(byte_pairs, other):
    (other / "adapter_config.json").write_text("{}")
    (other / "config.json").unlink()
    check_same_tokenizer(byte_pairs, other)
    edit(other, "tokenizer.json", swapped)
    with pytest.raises(TokenshiftError, match="vocabulary"):
        check_same_tokenizer(byte_pairs, other)
    for file in other.glob("tokenizer*"):
        file.unlink()
    check_same_tokenizer(byte_pairs, other)


def test_byte_fallback(tmp_path):
    """What the vocabulary lacks is written in bytes by one, and unknown to the other."""
    extra = ["<unk>", " ", *(f"<0x{i:02X}>" for i in range(256))]
    first = bpe(tmp_path / "a", [], extra=extra)
    for name, change in {
        "b": lambda c: c["model"].update(unk_token="<unk>"),
        "c": lambda c: c["model"].update(unk_token="<unk>", byte_fallback=True),
        "d": lambda c: c["model"].update(unk_token="<unk>", fuse_unk=True),
    }.items():
        edit(shutil.copytree(first, tmp_path / name), "tokenizer.json", change)
    for a, b in ("bc", "bd", "ab"):
        with pytest.raises(TokenshiftError, match=r"text processing \(.*: \["):
            check_same_tokenizer(tmp_path / a, tmp_path / b)


def test_scores_that_differ(tmp_path):
    """Of a unigram vocabulary with the same tokens the likelier split is another."""
    from tokenizers import models
    from transformers import PreTrainedTokenizerFast

    tokens = [("<unk>", -9.0), ("a", -2.0), ("b", -2.0), ("c", -2.0), ("ab", -3.0), ("bc", -3.1)]
    for name, last in (("a", -3.1), ("b", -2.5)):
        model = models.Unigram([*tokens[:-1], ("bc", last)], unk_id=0)
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model)).save_pretrained(tmp_path / name)
    with pytest.raises(TokenshiftError, match=r"scores .*token 5; '.*bc.*': \[.*\] in the first"):
        check_same_tokenizer(tmp_path / "a", tmp_path / "b")
