r"""An answer's text in one form, whatever Markdown, LaTeX, units or Unicode it is written in.

``undress`` takes off what doesn't change an answer (``**\(73\)**.`` is 73); ``number``, ``unit`` and
``is_prose`` say what is left; ``expression`` writes it as math-verify reads it. Only notation is
changed here, nothing is computed.
"""

from __future__ import annotations

import re
import unicodedata

_SIGNS = {
    "−": "-", "–": "-", "‐": "-", "‑": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ",
    "∗": "*", "÷": r"\div ", "π": r"\pi ", "∞": r"\infty ", "±": r"\pm ", "≤": r"\le ",
    "≥": r"\ge ", "≠": r"\neq ", "≈": r"\approx ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ",
    "∅": r"\emptyset ", "°": r"^\circ ", "º": r"^\circ ", "∘": r"^\circ ", "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}", "⟨": r"\langle ", "⟩": r"\rangle ", "…": r"\ldots ", "％": "%",
    "¢": " cents", "’": "'", "‘": "'", "“": '"', "”": '"', "。": ".", "\u2044": "/", "\u2215": "/",
}  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_STYLES = r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|bm|boldsymbol|emph|underline|ensuremath)"
_DELIMITERS = ((r"\(", r"\)"), (r"\[", r"\]"), ("$", "$"), ("{", "}"), ("`", "`"))
_FUNCTIONS = (
    *("arcsin", "arccos", "arctan", "arccot", "sinh", "cosh", "tanh", "sin", "cos", "tan", "cot"),
    *("sec", "csc", "log", "ln", "exp", "lim", "max", "min", "gcd", "lcm", "det"),
)
_NAMES = (*_FUNCTIONS, "sqrt", "pi", "inf", "infty", "infinity")  # in letters that are no words
_JOINS = {"and", "or"}
_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:(?:\{,\}|,\\!|\\,|\\;|\\:|\\ |~|\\?_)\d{3})+(?!\d)")
_UPRIGHT = r"\\(?:text|mathrm|mbox)\s*\{\s*%s\s*\}"
_UNIT_FRACTION = re.compile(
    rf"\\frac\s*\{{\s*{_UPRIGHT % '([A-Za-z]+)'}\s*\}}\s*"
    rf"\{{\s*{_UPRIGHT % '([A-Za-z]+)'}((?:\s*\^\s*\{{?[123]\}}?)?)\s*\}}"
)
# A letter set upright behind a value is a unit, where in italics it is a factor.
_LETTERS = {"m": "metre", "g": "gram", "s": "second", "h": "hour", "L": "litre"}
_UNIT_LETTER = re.compile(rf"(?<=[\w)}}])\s*{_UPRIGHT % '([mgshL])'}")
_ORDINAL = re.compile(r"(?<![\w.,])(\d+)\s*\^?\s*\{?\s*(?:st|nd|rd|th)\s*\}?$", re.IGNORECASE)
_ANGLE = re.compile(  # of a function: 30 degrees are a sixth of pi
    r"\\(sin|cos|tan|cot|sec|csc)\s*[({]?\s*(\d+(?:\.\d+)?)\s*\^\s*\{?\s*\\circ\s*\}?\s*[)}]?"
)
_GROUPED = re.compile(r"([+-]?)([1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?: \d{3})+|\d*)(?:\.(\d*))?")

# forms of a unit, the first of them its name
_UNITS = {
    form: forms.split()[0]
    for forms in (
        "mm millimeter millimetre", "cm centimeter centimetre", "dm decimeter decimetre",
        "m meter metre", "km kilometer kilometre", "inch in inches", "foot ft feet", "yard yd",
        "mile mi", "mg milligram", "g gm gram", "kg kilogram", "pound lb", "ounce oz",
        "ms millisecond", "s sec second", "min minute", "h hr hour", "day", "week", "month",
        "year yr", "ml milliliter millilitre", "L l liter litre", "mph", "kmh kmph kph",
        "dollar usd", "cent", "euro eur", "degree deg", "radian rad", "hz hertz", "N newton",
        "J joule", "W watt", "V volt", "A ampere", "pa pascal", "kpa", "ev", "mol mole", "K kelvin",
        "am", "pm",
    )
    for form in forms.split()
}  # fmt: skip
_SIZES = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_FILLERS = ("per", "of", "a", "an", "the", "us")  # ``3/4 of an hour``
_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]+(?![A-Za-z])")
_TAIL = re.compile(
    r"[A-Za-z]+(?![A-Za-z])\.?(?:\s*\^?\s*\{?-?[123]\}?(?!\d))?"
    r"(?:(?:\s*(?:/|\*|-|\\cdot)\s*|\s+)[A-Za-z]+(?![A-Za-z])\.?(?:\s*\^?\s*\{?-?[123]\}?(?!\d))?)*"
)


def undress(text: str) -> str:
    """The answer without Markdown, math delimiters, boxes, styles, spacing and a last full stop."""
    text = _in_ascii(text)
    text = re.sub(r"(?:\s*(?:</?s>|<\|[^|<>]*\|>|<(?:eos|end_of_turn)>))+\s*$", "", text)
    text = re.sub(r"(\.\d+)\.{3}(?!\d)", r"\1\\ldots ", text)
    text = re.sub(r"\\\\\s+", lambda m: r"\\", text)  # a matrix's new row, and no space of LaTeX
    text = _THOUSANDS.sub(lambda m: re.sub(r"\D", "", m[0]), text)
    text = re.sub(r"\\\$\s*([\d.,]*\d)", r"\1 dollars", text)
    text = re.sub(r"\\\$|[€£¥₹]|\bRs\.?(?=\s*\d)", "", text)
    text = re.sub(r"\\[!]|\\phantom\{[^{}]*\}|\\displaystyle(?![A-Za-z])", "", text)
    text = re.sub(
        r"\\(?:[,;: ]|(?:q?quad|enspace|thinspace)(?![A-Za-z])|hspace\{[^{}]*\})|~", " ", text
    )
    text = re.sub(r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\s*\.?", "", text)
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = _UNIT_FRACTION.sub(r" \1/\2\3", text)
    text = _UNIT_LETTER.sub(lambda m: f" {_LETTERS[m[1]]} ", text)
    for _ in range(8):  # styles inside styles
        styled = re.sub(_STYLES + r"\s*\{([^{}]*)\}", r" \1 ", text)
        if styled == text:
            break
        text = styled
    text = re.sub(r"\\(?:rm|bf|it|sf|tt)(?![A-Za-z])", "", text)
    text = _ANGLE.sub(r"\\\1(\\frac{\2\\pi}{180})", text)
    text = re.sub(
        r"\^\s*\{?\s*\\(?:circ|degree)(?![A-Za-z])\s*\}?|\\degree(?![A-Za-z])", " degrees", text
    )
    text = re.sub(r"degrees\s*([CF])(?![A-Za-z])", r"degrees\1", text)
    text = re.sub(r"\\%|\b(?:percent|percentage)\b", "%", text)
    text = re.sub(r"(?<=\d)(\s*[ap])\.\s?m\.", r"\1m", text, flags=re.IGNORECASE)
    text = re.sub(r"\\mathbb\s*([A-Z])(?![A-Za-z])", r"\\mathbb{\1}", text)
    text = text.replace(";", ",") if "," not in text else text
    text = re.sub(r"\\[pb]?mod(?![A-Za-z])", " mod ", text)
    text = re.sub(
        r"\\(?:var)?nothing(?![A-Za-z])", r"\\emptyset", text.replace(r"\varnothing", r"\emptyset")
    )
    before = None
    while text != before:
        before, text = text, _unwrapped(text.strip())
    return _ORDINAL.sub(r"\1", re.sub(r"\s+", " ", text))


def _in_ascii(text: str) -> str:
    """Signs, full-width and raised characters and fractions of Unicode as LaTeX has them."""
    if text.isascii() and text.isprintable():
        return text
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda m: "^{" + m[0].translate(_RAISED) + "}", text)
    made = []
    for sign in text:
        form = unicodedata.normalize("NFKC", sign)
        if sign in _SIGNS:
            made.append(_SIGNS[sign])
        elif unicodedata.category(sign) == "No" and "\u2044" in form:
            made.append(r"\frac{{{}}}{{{}}}".format(*form.split("\u2044")))
        elif sign.isdecimal():
            made.append(str(unicodedata.decimal(sign)))
        elif unicodedata.category(sign)[0] in "ZC":
            made.append("" if unicodedata.category(sign) == "Cf" else " ")
        elif "\uff01" <= sign <= "\uff5e":
            made.append(form)
        elif "α" <= sign.lower() <= "ω":
            made.append("\\" + unicodedata.name(sign).split()[-1].lower() + " ")
        else:
            made.append(sign)
    text = "".join(made)
    return re.sub(r"√\s*(\d+(?:\.\d+)?|[A-Za-z]|\\pi)", r"\\sqrt{\1}", text).replace("√", r"\sqrt")


def _unwrapped(text: str) -> str:
    """One layer less around the answer."""
    text = re.sub(r"^(?:#+|>)\s+", "", text)
    # (a pattern for the end would try a long run of stars in as many ways as it can be divided)
    text = re.sub(r"^(?:\*\*|__|\*(?=\S)|_(?=\S))+", "", text).rstrip("*_").strip()
    box = re.match(r"\\(?:boxed|fbox)\s*", text)
    if box:
        inner = text[box.end() :]
        return inner[1:-1] if _one_group(inner) else inner if inner[:1] != "{" else text
    for opens, closes in _DELIMITERS:
        around = text.startswith(opens) and text.endswith(closes) and len(text) > len(opens)
        if around and (opens != "{" or (_one_group(text) and "," not in text)):
            return text[len(opens) : -len(closes)]
    text = re.sub(r"^\s*(?:\$|\\[(\[])|(?<!\\)\$|\\[)\]]\s*$", "", text)
    text = re.sub(
        r"^(?:\\approx|\\sim|approximately|about|approx\.?|=)\s*", "", text, flags=re.IGNORECASE
    )
    return text[:-1] if text[-1:] in (".", ",", ";", ":") and text[-2:] != "\\;" else text


def _one_group(text: str) -> bool:
    """Whether the text is one group in braces."""
    depth = 0
    for i, sign in enumerate(text):
        if i and text[i - 1] == "\\":
            continue
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth <= 0:
            return depth == 0 and i > 0 and i == len(text) - 1
    return False


def number(text: str) -> tuple[str, str, str] | None:
    """Sign, digits before and after the point of a decimal number of any length, else None.

    Leading and trailing zeros and separators of thousands are left out, so equal numbers are equal.
    """
    found = _GROUPED.fullmatch(text.strip())
    if not found or not re.search(r"\d", text):
        return None
    integer = re.sub(r"\D", "", found[2]).lstrip("0")
    decimals = (found[3] or "").rstrip("0")
    return ("-" if found[1] == "-" and (integer or decimals) else ""), integer, decimals


def unit(text: str, glued: bool = False) -> tuple[str, frozenset]:
    """A number and its unit: ``33 km/h`` is 33 and {(km, 1), (h, 1)}; no unit is an empty set.

    Any word behind a number is a unit (``5 apples``). A single letter right behind a digit is one
    only where ``glued``; elsewhere ``2m`` is twice m. A base (``101_2``) counts as a unit.
    """
    base = re.fullmatch(r"([+-]?[\dA-Fa-f]*\d[\dA-Fa-f]*)_\{?\s*(\d+)\s*\}?", text)
    if base:
        return base[1], frozenset({("base", int(base[2]))})
    for word in _WORD.finditer(text):
        value, tail = text[: word.start()], text[word.start() :]
        if not _TAIL.fullmatch(tail) or not _is_value(value):
            continue
        words = _WORD.findall(tail)
        if any(not _names_unit(w) for w in words) or set(map(str.lower, words)) & _JOINS:
            continue
        if len(words[0]) == 1:
            near = value[-1:] not in (" ", "")
            if (near and not (glued and words[0] in "mgshL")) or re.search(
                r"\\(?!frac|(?:times|cdot)\s*\d)", value
            ):
                continue
        return value.strip().removesuffix("-").strip(), _unit_parts(tail)
    return text, frozenset()


def _is_value(text: str) -> bool:
    """Whether a unit may stand behind this: digits, and no letters but those of LaTeX's commands."""
    text = re.sub(r"^\s*\\?[A-Za-z](?:_\w|_\{\w+\})?\s*=", "", text)
    letters = re.sub(r"\\[A-Za-z]+", "", text)
    return bool(re.search(r"\d", text)) and not re.search(
        r"[A-Za-z,;=<>]", letters.replace(",", "", 1)
    )


def _names_unit(word: str) -> bool:
    low = word.lower()
    if low in _NAMES or low in ("mod", "more", "less", "times", "plus", "minus", "over", "to"):
        return False
    known = word in _UNITS or (len(word) > 1 and (low in _UNITS or low.removesuffix("s") in _UNITS))
    return known or low in _SIZES or low in _FILLERS or len(word) > 2 and _is_word(word)


def _unit_parts(tail: str) -> frozenset:
    """The unit's names with their powers; "units" and "per" name nothing."""
    parts, size = [], 1
    for name, power in re.findall(r"([A-Za-z]+)(?:\.?\s*\^?\s*\{?-?([123])\}?)?", tail):
        low = name.lower()
        if low in _SIZES:
            if low.endswith("ed") and parts:
                parts[-1] = (parts[-1][0], _SIZES[low])
            else:
                size = _SIZES[low]
            continue
        if low in (*_FILLERS, "unit", "units"):
            continue
        short = low.removesuffix("s") if len(low) > 3 else low
        known = _UNITS.get(name) or _UNITS.get(low) or _UNITS.get(low.removesuffix("s")) or short
        parts.append((known, int(power or size)))
        size = 1
    return frozenset(parts)


def _is_word(letters: str) -> bool:
    """Whether a run of letters is a word and no product of variables (``odd``, but ``xyz``)."""
    if letters in _NAMES or letters.lower() in _JOINS or len(letters) < 3:
        return False
    return letters.isupper() or not re.fullmatch(r"[a-df-hj-np-tv-zA-DF-HJ-NP-TV-Z]+", letters)


def is_prose(text: str) -> bool:
    """Whether the answer has words that are no mathematics, so that it is compared as text."""
    if text.lower() in ("no", "if", "up", "on", "in", "or"):
        return True
    bare = re.sub(r"\\(?:begin|end)\s*\{\w+\*?\}|\\[A-Za-z]+", " ", text)
    return any(_is_word(word) for word in _WORD.findall(bare))


def folded(text: str) -> str:
    """A text's words for comparison: no case, articles, quotes or doubled spaces."""
    text = re.sub(r"[\"'`]|\\[A-Za-z]+\s*|[{}$]", "", text.casefold())
    text = re.sub(r"\s*,?\s+and\s+|\s*[,;]\s*", ",", text)
    return re.sub(r"\s+", " ", re.sub(r"^(?:the|an?)\s+", "", text.strip())).strip(" .!?")


_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SPELLED = {word: number for number, word in enumerate(_ONES)}
_SPELLED |= {word: 10 * number for number, word in enumerate(_TENS, start=2)}
_SPELLED_POWERS = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_SPELLED_PARTS = {
    "half": 2, "halve": 2, "third": 3, "fourth": 4, "quarter": 4, "fifth": 5, "sixth": 6,
    "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10,
}  # fmt: skip


def unspelled(text: str) -> str:
    """A number in words in digits (``twenty-one``, ``two thirds``); any other text as it is."""
    words = re.findall(r"[a-z]+", text.casefold())
    if not words or re.search(r"[^A-Za-z\s-]", text):
        return text
    sign = "-" if words[0] in ("minus", "negative") else ""
    words = words[bool(sign) :]
    part = _SPELLED_PARTS.get(words[-1].removesuffix("s")) if len(words) > 1 else None
    words = [word for word in (words[:-1] if part else words) if word != "and"]
    total = group = 0
    for word in words:
        if word in _SPELLED:
            if group % 100 and (group % 10 or _SPELLED[word] >= 10):
                return text  # (two five)
            group += _SPELLED[word]
        elif word == "hundred" and 0 < group < 100:
            group *= 100
        elif word in _SPELLED_POWERS and group:
            total, group = total + group * _SPELLED_POWERS[word], 0
        else:
            return text
    if not words:
        return text
    return f"{sign}{total + group}" + (f"/{part}" if part else "")


def brackets(text: str) -> str:
    """The brackets around a whole answer of several parts: ``(]`` of ``(1, 2]``; "" elsewhere."""
    opens = r"\{" if text.startswith(r"\{") else text[:1]
    closes = r"\}" if text.endswith(r"\}") else text[-1:]
    inner = text[len(opens) : -len(closes) or None]
    if opens not in (r"\{", "(", "[") or closes not in (r"\}", ")", "]"):
        return ""
    depth, commas = 0, 0
    for sign in re.findall(r"\\[{}]|[()\[\],]", inner):
        depth += {"(": 1, "[": 1, r"\{": 1, ")": -1, "]": -1, r"\}": -1}.get(sign, 0)
        commas += sign == "," and depth == 0
        if depth < 0:
            return ""
    return opens + closes if commas else ""


def expression(text: str) -> str | None:
    """An answer as math-verify reads it, or None for what it must not be asked.

    These are its faults as of version 0.9.0: digits apart (``1 7``) are added up, ``11 5/6`` too,
    ``sqrt(2)`` is lost, ``1e3`` is a product with Euler's number, a huge power takes all the memory.
    """
    text = re.sub(r"(?<![A-Za-z\\])sqrt(?![A-Za-z])", r"\\sqrt", text)
    text = re.sub(r"(?<![A-Za-z\\])(?:infinity|inf|infty)(?![A-Za-z])", r"\\infty", text)
    text = re.sub(r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi ", text)
    text = re.sub(rf"(?<![A-Za-z\\])({'|'.join(_FUNCTIONS)})(?![A-Za-z])", r"\\\1", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*(?:\([^()]*\)[^()]*)*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\sqrt\s*(\d)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"_\s*(\d)(?=\s)", r"_{\1}", text)
    text = text.replace("**", "^").replace("*", r"\cdot ")
    text = text.replace(">=", r"\ge ").replace("<=", r"\le ").replace("!=", r"\neq ")
    text = re.sub(r"\\(?:leqslant|leqq)(?![A-Za-z])", r"\\le ", text)
    text = re.sub(r"\\(?:geqslant|geqq)(?![A-Za-z])", r"\\ge ", text)
    text = re.sub(r"\^\s*([+-]?\d+)", r"^{\1}", text)
    text = re.sub(
        r"(?<![A-Za-z\d.])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d+)(?!\w)", r"\1\\times 10^{\2}", text
    )
    text = re.sub(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r"\\times ", text)
    text = re.sub(r"(?<![\d.])(\d*)\.(\d*)\\(?:overline|dot|bar)\{(\d+)\}", _repeating, text)
    text = re.sub(r"(?<![\d.])(\d*)\.(\d*)\((\d+)\)$", _repeating, text)
    text = re.sub(  # 0.1666...
        r"(?<![\d.])(\d*)\.(\d*?)(\d{2,6}?|\d(?=\d\d))\3+\s*\\[lc]?dots(?![A-Za-z])",
        _repeating,
        text,
    )
    text = re.sub(r"(?<![\d.!)\w])(\d{1,3})!!(?!!)", _double_factorial, text)
    text = re.sub(r"(?<![\d.])(\d+)\s+(\d+)\s*/\s*(\d+)(?!\d)", r"\1\\frac{\2}{\3}", text)
    text = re.sub(r"(?<![\d.])(\d+)\s+and\s+(\d+)\s*/\s*(\d+)(?!\d)", r"\1\\frac{\2}{\3}", text)
    if re.fullmatch(r"[+-]?\d{1,3}(?: \d{3})+(?:\.\d+)?", text):
        text = text.replace(" ", "")
    text = text.replace(r"\langle", "(").replace(r"\rangle", ")")
    text = re.sub(r"^\](.*,.*)(?=[\[\]]$)", r"(\1", text)
    text = re.sub(r"^([(\[][^\[\]]*,[^\[\]]*)\[$", r"\1)", text)
    built = re.fullmatch(r"\\\{\s*[A-Za-z]\s*(?:\\mid(?![A-Za-z])|\||:)(.*)\\\}", text)
    text = built[1] if built else text
    text = re.sub(r"^\s*[A-Za-z]\s*\\in(?![A-Za-z])\s*", "", text)
    text = r"\emptyset" if re.fullmatch(r"\\\{\s*\\\}", text) else text
    if re.search(r"\d\s+\d", text) or re.search(r"\^\s*\{?\s*[+-]?\d{7,}", text):
        return None
    if re.search(r"\d{7,}\s*!|!!", text):
        return None
    return _union(text.replace("$", "").strip())


_ORDER = re.compile(r"(<|>|\\leq?(?![A-Za-z])|\\geq?(?![A-Za-z]))")


def _union(text: str) -> str:
    """Inequalities with "or" between them as a union of intervals: ``x<2 or x>3``."""
    parts = re.split(r"\s*(?:(?<![A-Za-z\\])or(?![A-Za-z])|\\(?:lor|vee|cup)(?![A-Za-z]))\s*", text)
    if len(parts) < 2:
        return text
    found = [_interval(part) for part in parts]
    if None in found or len({name for name, _ in found}) > 1:
        return text
    return r"\cup ".join(interval for _, interval in found)


def _interval(text: str) -> tuple[str, str] | None:
    """The variable of ``1 < x <= 2`` or ``x > 3``, and the interval that it lies in."""
    parts = [part.strip() for part in _ORDER.split(text)]
    names = [i for i in range(0, len(parts), 2) if re.fullmatch("[A-Za-z]", parts[i])]
    if (len(parts), names) not in ((3, [0]), (3, [2]), (5, [2])):
        return None
    at = names[0]
    low, high = r"(-\infty", r"\infty)"
    for value, order in ((at - 2, at - 1), (at + 2, at + 1)):
        if 0 <= value < len(parts):
            closed, greater = parts[order][0] == "\\", parts[order][:2] in (">", r"\g")
            if greater == (value > at):
                low = ("[" if closed else "(") + parts[value]
            else:
                high = parts[value] + ("]" if closed else ")")
    return parts[at], f"{low}, {high}"


def _double_factorial(match: re.Match) -> str:
    """``5!!`` is 5 times 3 times 1, which math-verify takes for the factorial of a factorial."""
    factors = range(int(match[1]), 0, -2)
    return "(" + (r" \cdot ".join(map(str, factors)) or "1") + ")"


def _repeating(match: re.Match) -> str:
    r"""``0.1\overline{6}`` as a fraction."""
    integer, once, again = match[1] or "0", match[2], match[3]
    top = int(integer + once + again) - int(integer + once)
    return rf"\frac{{{top}}}{{{'9' * len(again) + '0' * len(once)}}}"
