"""Hostile input by the thousand: study files, problem files, responses and answers.

Nothing may take 5 seconds, grow by 1 GiB or raise anything but a `TokenshiftError`. What was found
this way is a plain test beside its subject. ``TOKENSHIFT_FUZZ_CASES`` says how many cases each.
"""

import copy
import faulthandler
import json
import os
import resource
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import CHECKOUT, write_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.records.responses import read_responses
from tokenshift_utils.study.study import Study, load_study
from tokenshift_utils.study.tokenizers import load_tokenizer
from tokenshift_utils.tasks.benchmarks import load_benchmark
from tokenshift_utils.tasks.verifier import answer_opening, extract_answer, is_correct

pytestmark = pytest.mark.fuzz
SECONDS, GIB = 5, 2**20  # (getrusage counts in KiB)
fuzz = settings(
    max_examples=int(os.environ.get("TOKENSHIFT_FUZZ_CASES", "100000")),
    deadline=None,  # `bounded` ends what hangs
    database=None,
    suppress_health_check=list(HealthCheck),
)


@contextmanager
def bounded(allowed=TokenshiftError):
    """One case: no longer than 5 seconds, no more than 1 GiB, no exception but ours."""

    def late(*_):
        raise AssertionError(f"takes more than {SECONDS} s")

    def memory():
        kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return [resource.getrusage(kind).ru_maxrss for kind in kinds]

    before = memory()
    faulthandler.dump_traceback_later(12 * SECONDS, exit=True)  # a hang that no signal ends
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    except allowed as error:
        assert str(error).strip() and "\n" not in str(error).strip(), "no sentence"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
    assert all(now - then < GIB for now, then in zip(memory(), before)), "grows by 1 GiB"


# What is hostile -----------------------------------------------------------------------------------

ODD_TEXTS = st.sampled_from(
    [
        *("", " ", "\x00", "\ud800", "\u2028", "\ufeff", "\u202e", "\U0001f9ee", "٣", "½", "²"),
        *("nan", "inf", "-inf", "1e999", "-1e-999", "1e99999999", "0x1F", "1_000", "9" * 5000),
        *(
            "~",
            "null",
            "yes",
            "{}",
            "[]",
            "{",
            "{0}",
            "{problem.__class__}",
            "{problem!r:>9999999}",
        ),
        *("/dev/zero", "/dev/stdin", "/proc/self/mem", "..", ".", "a/" * 3000, "~root", "a\nb"),
        *("!!python/object/apply:os.system [ls]", "&a [*a, *a]", "*a", "a: b: c", "\t- x", "? ?"),
    ]
)
NUMBERS = st.one_of(
    st.integers(),
    st.integers(-3, 3),
    st.floats(),
    st.sampled_from([10**400, 2**31, 2**63, 1e308, -0.0]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, ODD_TEXTS, st.text(max_size=20))
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(ODD_TEXTS | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
NESTED = st.builds(
    lambda opening, closing, depth, inside: opening * depth + inside + closing * depth,
    st.sampled_from(["[", '{"a":', "(", "- ", "{"]),
    st.sampled_from(["]", "}", ")", ""]),
    st.integers(1, 30_000),
    st.sampled_from(["", "1", '"x"']),
)
BYTES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [b"\xff\xfe", b"\xef\xbb\xbf", b"PAR1", b"\x1f\x8b", b"PK\x03\x04", b"\r", b"["]
    ),
)


def spliced(text: bytes):
    """The text with a piece cut out and another in its place."""
    pieces = BYTES | ODD_TEXTS.map(encoded) | NESTED.map(encoded)
    return st.builds(
        lambda start, length, piece: text[:start] + piece + text[start + length :],
        st.integers(0, len(text)),
        st.integers(0, 40),
        pieces,
    )


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def places(content, path=()):
    """Paths to all that is in nested lists and dicts."""
    yield path
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in items:
            yield from places(value, (*path, key))


def put(content, path, value):
    """A copy with a value at a path."""
    if not path:
        return value
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return content


# Study files -------------------------------------------------------------------------------------


@fuzz
@given(data=st.data())
def test_study_files(fuzz_root, data):
    file = fuzz_root.root / "notebooks/studies/mini.yaml"
    original = data.draw(st.sampled_from([STUDIES["mini"], STUDIES["smoke"], STUDIES["tulu3-8b"]]))
    if data.draw(st.booleans()):
        content = yaml.safe_load(original)
        for _ in range(data.draw(st.integers(1, 2))):
            path = data.draw(st.sampled_from(list(places(content))))
            content = put(content, path, data.draw(VALUES))
        text = encoded(json.dumps(content)) if data.draw(st.booleans()) else dumped(content)
    else:
        text = data.draw(spliced(original))
    file.write_bytes(text)
    with bounded():
        load_study(file)


def dumped(content) -> bytes:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, encoding=None).encode(
        "utf-8", "surrogatepass"
    )


# Problem files -----------------------------------------------------------------------------------

CELLS = VALUES | st.builds(lambda text, n: text * n, ODD_TEXTS, st.integers(1, 2000))


def rows_of(columns):
    """Rows that have some of the columns right and others wrong, as JSON lines or an array."""
    row = st.fixed_dictionaries({}, optional={c: CELLS | st.just("1") for c in columns})
    wild = st.lists(row | VALUES, max_size=4)
    line = wild.map(lambda rows: b"\n".join(encoded(json.dumps(r)) for r in rows))
    raw = wild.map(
        lambda rows: b"\n".join(encoded(json.dumps(r, ensure_ascii=False)) for r in rows)
    )
    array = wild.map(lambda rows: encoded(json.dumps(rows)))
    whole = st.one_of(line, raw, array)
    return whole | whole.flatmap(spliced)


@fuzz
@given(content=rows_of(["id", "problem", "answer", "prompt", "reward_model"]))
def test_problem_files(fuzz_root, content):
    file = fuzz_root.root / "benchmarks/sums.jsonl"
    file.write_bytes(content)
    os.utime(file, ns=(next(TICKS), next(TICKS)))
    with bounded():
        load_benchmark(fuzz_root.study, "sums")


# Responses ---------------------------------------------------------------------------------------


@fuzz
@given(
    content=rows_of(
        ["prompt", "prompt_ids", "response", "response_ids", "benchmark", "problem", "sample"]
    )
)
def test_responses(fuzz_root, content):
    file = fuzz_root.root / "responses.jsonl"
    file.write_bytes(content)
    with bounded():
        read_responses(file, fuzz_root.tokenizer, len(fuzz_root.tokenizer))


# Answers -----------------------------------------------------------------------------------------

LATEX = st.sampled_from(
    [
        *(r"\boxed{", r"\boxed", r"\fbox{", "}", "{", "$", "$$", r"\(", r"\)", r"\[", "Answer:"),
        *(
            r"\frac{",
            r"\dfrac",
            r"\sqrt[",
            r"\sqrt{",
            "^",
            "^{",
            "_{",
            "!",
            "!!",
            "9^9^9^9",
            "10^{10^{10}}",
        ),
        *(
            r"\begin{pmatrix}",
            r"\end{pmatrix}",
            r"\left(",
            r"\right)",
            r"\sum_{i=1}^{10^9} ",
            r"\infty",
        ),
        *(
            r"\int_0^1 ",
            r"\prod",
            r"\binom{1000000}{500000}",
            r"\lim_{x\to0}",
            r"\text{",
            r"\mathrm{",
        ),
        *(
            r"\cup",
            r"\in",
            "=",
            "<",
            r"\le",
            ",",
            ";",
            ":",
            "%",
            r"\%",
            "°",
            r"^\circ",
            "and",
            "or",
        ),
        *(
            "1",
            "0",
            "-",
            "+",
            "/",
            "*",
            "x",
            "e",
            r"\pi",
            "i",
            ".",
            " ",
            "\n",
            "1e999",
            "1E-999999",
        ),
        *(
            "(A)",
            "B",
            "**",
            "`",
            "_",
            "metres",
            "|",
            "~",
            r"\\",
            "\\",
            "&",
            "#",
            "[",
            "]",
            "(",
            ")",
        ),
    ]
)
ANSWERS = st.one_of(
    st.lists(LATEX | ODD_TEXTS | st.text(max_size=3), max_size=14).map("".join),
    st.builds(lambda piece, n: piece * n, LATEX, st.integers(1, 3000)),
    st.builds(
        lambda opening, inside, n: opening * n + inside + "}" * n,
        st.sampled_from([r"\frac{1}{", r"\sqrt{", r"\boxed{", "{", "2^{"]),
        ODD_TEXTS | LATEX,
        st.integers(1, 2000),
    ),
)
RESPONSES = st.builds(
    lambda before, opening, answer, closing: before + opening + answer + closing,
    ANSWERS | st.just("so "),
    st.sampled_from([r"\boxed{", "Answer: ", r"$\boxed{", "Answer: $", ""]),
    ANSWERS,
    st.sampled_from(["}", "}$", "$", "", "\n"]),
)


@fuzz
@given(
    text=RESPONSES,
    answer=ANSWERS,
    verifier=st.sampled_from(["boxed", "last_boxed", "answer_line"]),
    choice=st.booleans(),
)
def test_answers(text, answer, verifier, choice):
    with bounded(allowed=()):
        extract_answer(text, verifier)
        answer_opening(text, verifier)
        assert is_correct(text, answer, verifier, choice) in (True, False)


# Where it happens --------------------------------------------------------------------------------

STUDIES: dict[str, bytes] = {}
TICKS = iter(range(10**9, 10**18, 1000))


@dataclass(frozen=True)
class FuzzRoot:
    """A directory with a study and a tokenizer."""

    root: Path
    study: Study
    tokenizer: PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def fuzz_root(tmp_path_factory):
    """A root with the study ``mini``, of which the files are overwritten case by case."""
    root = tmp_path_factory.mktemp("fuzz")
    (root / "notebooks/studies").mkdir(parents=True)
    (root / "benchmarks").mkdir()
    for name in ("smoke", "tulu3-8b"):
        STUDIES[name] = (CHECKOUT / f"notebooks/studies/{name}.yaml").read_bytes()
    mini = yaml.safe_load(STUDIES["smoke"]) | {"name": "mini"}
    mini["benchmarks"] = {"sums": {"path": "benchmarks/sums.jsonl", "label": "Sums"}}
    mini["cross_sampling"]["benchmark"] = mini["robustness"]["benchmark"] = "sums"
    STUDIES["mini"] = yaml.safe_dump(mini, sort_keys=False).encode()
    file = root / "notebooks/studies/mini.yaml"
    file.write_bytes(STUDIES["mini"])
    before = os.environ.get(paths.HOME_VARIABLE)
    os.environ[paths.HOME_VARIABLE] = str(root)
    write_tokenizer(root / "tokenizer")
    yield FuzzRoot(root, load_study(file), load_tokenizer(root / "tokenizer"))
    os.environ.pop(paths.HOME_VARIABLE)
    if before is not None:
        os.environ[paths.HOME_VARIABLE] = before
