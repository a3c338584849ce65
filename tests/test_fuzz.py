"""Hostile input by the hundred thousand: study files, problem files, responses and answers.

Nothing may take 5 seconds, grow by 1 GiB or raise anything but a `TokenshiftError`. What was found
this way is a plain test beside its subject. ``TOKENSHIFT_FUZZ_CASES`` says how many cases each; they
run in batches, each with luck of its own, so that ``-k batch-3`` is a slice. Hypothesis chooses a seed
a case, and names the one that fails; what is made of it is made here, a hundred times as fast.
"""

import copy
import faulthandler
import json
import math
import os
import random
import resource
import signal
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CHECKOUT, write_tokenizer
from hypothesis import HealthCheck, Phase, given, settings
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
CASES = int(os.environ.get("TOKENSHIFT_FUZZ_CASES", "100000"))
BATCH = 5000  # (Hypothesis remembers every case of a run, so that long ones grow slow)


def fuzz(test):
    """Run a test on so many seeds, in batches."""
    one = settings(
        max_examples=min(BATCH, CASES),
        deadline=None,  # `bounded` ends what hangs
        database=None,
        phases=(Phase.generate,),  # a seed has no smaller one that is like it
        suppress_health_check=list(HealthCheck),
    )(given(seed=st.integers(0, 2**64))(test))
    batches = range(-(-CASES // BATCH))
    return pytest.mark.parametrize("batch", batches, ids=lambda n: f"batch-{n}")(one)


@pytest.fixture(scope="module", autouse=True)
def _killed_where_no_handler_runs():
    """A case that keeps the interpreter itself busy ends the process, with a traceback."""
    faulthandler.register(signal.SIGVTALRM, chain=True)
    yield
    faulthandler.unregister(signal.SIGVTALRM)


@contextmanager
def bounded(allowed=TokenshiftError):
    """One case: no more than 5 seconds of processor time, or 120 of waiting, or 1 GiB, no exception
    but ours."""

    def late(*_):
        raise AssertionError(f"takes more than {SECONDS} s")

    def memory():
        kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return [resource.getrusage(kind).ru_maxrss for kind in kinds]

    before = memory()
    signal.signal(signal.SIGPROF, late)
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 120)
    signal.setitimer(signal.ITIMER_VIRTUAL, 4 * SECONDS)
    try:
        yield
    except allowed as error:
        assert str(error).strip() and "\n" not in str(error).strip(), "no sentence"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    assert all(now - then < GIB for now, then in zip(memory(), before)), "grows by 1 GiB"


# What is hostile -----------------------------------------------------------------------------------

ODD_TEXTS = [
    *("", " ", "\x00", "\ud800", "\u2028", "\ufeff", "\u202e", "\U0001f9ee", "٣", "½", "²"),
    *("nan", "inf", "-inf", "1e999", "-1e-999", "1e99999999", "0x1F", "1_000", "9" * 5000),
    *("~", "null", "yes", "{}", "[]", "{", "{0}", "{problem.__class__}", "{problem!r:>9999999}"),
    *("/dev/zero", "/dev/stdin", "/proc/self/mem", "..", ".", "a/" * 3000, "~root", "a\nb"),
    *("!!python/object/apply:os.system [ls]", "&a [*a, *a]", "*a", "a: b: c", "\t- x", "? ?"),
]
ODD_NUMBERS = [0, -1, 1, 2, 3, 10**400, 2**31, 2**63, 1e308, -0.0, 0.5, math.nan, math.inf]
ODD_BYTES = [b"\xff\xfe", b"\xef\xbb\xbf", b"PAR1", b"\x1f\x8b", b"PK\x03\x04", b"\r", b"[", b"{"]


class Luck(random.Random):
    """What a seed makes."""

    def text(self, most: int) -> str:
        """Letters of any script, signs and half characters."""
        tops = self.choices((0x7F, 0x7F, 0x24F, 0xFFFF, 0x10FFFF), k=self.randrange(most + 1))
        return "".join(chr(self.randint(0, top)) for top in tops)

    def odd(self, most: int = 20) -> str:
        return self.choice(ODD_TEXTS) if self.random() < 0.6 else self.text(most)

    def number(self) -> float:
        if self.random() < 0.5:
            return self.choice(ODD_NUMBERS)
        if self.random() < 0.5:
            return self.randint(-(2 ** self.randrange(1, 80)), 2 ** self.randrange(1, 80))
        return struct.unpack("d", self.randbytes(8))[0]

    def value(self, depth: int = 3) -> Any:
        """Anything that JSON has."""
        kind = self.random()
        if depth and kind < 0.15:
            return [self.value(depth - 1) for _ in range(self.randrange(5))]
        if depth and kind < 0.3:
            return {self.odd(5): self.value(depth - 1) for _ in range(self.randrange(5))}
        if kind < 0.4:
            return self.choice((None, True, False))
        return self.number() if kind < 0.6 else self.odd()

    def nested(self) -> str:
        """Something very deep."""
        opens, closes = (
            self.choice(("[", '{"a":', "(", "- ", "{")),
            self.choice(("]", "}", ")", "")),
        )
        depth = int(30_000 ** self.random())
        return opens * depth + self.choice(("", "1", '"x"')) + closes * depth

    def spliced(self, text: bytes) -> bytes:
        """A text with a piece cut out and another in its place."""
        makes = (
            lambda: self.randbytes(self.randrange(60)),
            lambda: self.choice(ODD_BYTES),
            lambda: encoded(self.odd()),
            lambda: encoded(self.nested()),
        )
        at = self.randrange(len(text) + 1)
        return text[:at] + self.choice(makes)() + text[at + self.randrange(40) :]


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def places(content, path=()):
    """Paths to all that is in nested lists and dicts."""
    yield path
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in items:
            yield from places(value, (*path, key))


def dotted(content: dict, before: str = ""):
    """Dotted names of all keys of nested dicts."""
    for key, value in content.items():
        yield f"{before}{key}"
        if isinstance(value, dict):
            yield from dotted(value, f"{before}{key}.")


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
def test_study_files(fuzz_root, batch, seed):
    """Values anywhere in whole studies, which needs no file, and the text of a short one."""
    luck = Luck(seed)
    if luck.random() < 0.6:
        whole = luck.choice(fuzz_root.studies)
        keys = luck.sample(whole.places, luck.choice((1, 1, 2)))
        changed = {key: luck.value() for key in keys}
        with bounded():
            whole.study.with_overrides(**changed)
        return
    if luck.random() < 0.3:
        content = put(fuzz_root.short, luck.choice(fuzz_root.short_places), luck.value())
        text = encoded(json.dumps(content))
    else:
        text = luck.spliced(fuzz_root.text)
    file = fuzz_root.root / "notebooks/studies/short.yaml"
    file.write_bytes(text)
    with bounded():
        load_study(file)


# Problem files and responses ---------------------------------------------------------------------


def rows(luck: Luck, columns: list[str]) -> bytes:
    """Rows that have some of the columns right and others wrong, as JSON lines or an array."""

    def cell() -> Any:
        kind = luck.random()
        if kind < 0.3:
            return luck.choice(("1", "so", [1, 2], 3))
        if kind < 0.4:  # (no more than a tokenizer reads in the time)
            return (luck.odd() * int(2000 ** luck.random()))[:500_000]
        return luck.value()

    def row() -> Any:
        if luck.random() < 0.1:
            return luck.value()
        return {column: cell() for column in columns if luck.random() < 0.7}

    made = [row() for _ in range(luck.choice((1, 1, 2, 3, 4)))]
    ascii_only = luck.random() < 0.5
    if luck.random() < 0.2:
        whole = encoded(json.dumps(made, ensure_ascii=ascii_only))
    else:
        whole = b"\n".join(encoded(json.dumps(r, ensure_ascii=ascii_only)) for r in made)
    return luck.spliced(whole) if luck.random() < 0.3 else whole


@fuzz
def test_problem_files(fuzz_root, batch, seed):
    file = fuzz_root.root / "benchmarks/sums.jsonl"
    file.write_bytes(rows(Luck(seed), ["id", "problem", "answer", "prompt", "reward_model"]))
    os.utime(file, ns=(next(TICKS), next(TICKS)))
    with bounded():
        load_benchmark(fuzz_root.study, "sums")


RESPONSE = ["prompt", "prompt_ids", "response", "response_ids", "benchmark", "problem", "sample"]


@fuzz
def test_responses(fuzz_root, batch, seed):
    file = fuzz_root.root / "responses.jsonl"
    file.write_bytes(rows(Luck(seed), RESPONSE))
    with bounded():
        read_responses(file, fuzz_root.tokenizer, len(fuzz_root.tokenizer))


# Answers -----------------------------------------------------------------------------------------

LATEX = [
    *(r"\boxed{", r"\boxed", r"\fbox{", "}", "{", "$", "$$", r"\(", r"\)", r"\[", "Answer:"),
    *(r"\frac{", r"\dfrac", r"\sqrt[", r"\sqrt{", "^", "^{", "_{", "!", "!!", "9^9^9^9"),
    *("10^{10^{10}}", r"\begin{pmatrix}", r"\end{pmatrix}", r"\left(", r"\right)", r"\infty"),
    *(r"\sum_{i=1}^{10^9} ", r"\int_0^1 ", r"\prod", r"\binom{1000000}{500000}", r"\text{"),
    *(r"\lim_{x\to0}", r"\mathrm{", r"\cup", r"\in", "=", "<", r"\le", ",", ";", ":", "%", r"\%"),
    *("°", r"^\circ", "and", "or", "1", "0", "-", "+", "/", "*", "x", "e", r"\pi", "i", ".", " "),
    *("\n", "1e999", "1E-999999", "(A)", "B", "**", "`", "_", "metres", "|", "~", r"\\", "\\", "&"),
    *(
        "#",
        "[",
        "]",
        "(",
        ")",
        "twelve",
        "hundred",
        "minus",
        "half",
        "1st",
        "...",
        r"\ldots",
        "(3)",
    ),
]
DEEP = [r"\frac{1}{", r"\sqrt{", r"\boxed{", "{", "2^{"]


def answer(luck: Luck) -> str:
    def piece() -> str:
        return luck.choice(LATEX) if luck.random() < 0.8 else luck.odd(3)

    kind = luck.random()
    if kind < 0.85:
        return "".join(piece() for _ in range(luck.randrange(15)))
    if kind < 0.93:
        return luck.choice(LATEX) * int(3000 ** luck.random())
    depth = int(2000 ** luck.random())
    return luck.choice(DEEP) * depth + piece() + "}" * depth


@fuzz
def test_answers(batch, seed):
    luck = Luck(seed)
    opens = luck.choice((r"\boxed{", "Answer: ", r"$\boxed{", "Answer: $", "The answer is: ", ""))
    closes = luck.choice(("}", "}$", "$", "", "\n"))
    text = luck.choice((answer(luck), "so ")) + opens + answer(luck) + closes
    verifier = luck.choice(("boxed", "last_boxed", "answer_line", "the_answer_is"))
    with bounded(allowed=()):
        extract_answer(text, verifier)
        answer_opening(text, verifier)
        assert is_correct(text, answer(luck), verifier, luck.random() < 0.3) in (True, False)


# Where it happens --------------------------------------------------------------------------------

TICKS = iter(range(10**9, 10**18, 1000))
# Sections that a study may leave out.
EXTRA = ("evolution", "precision", "robustness", "trained_in", "training", "vllm", "resources")


@dataclass(frozen=True)
class Whole:
    """A study and the dotted names of all its keys."""

    study: Study
    places: list[str]


@dataclass(frozen=True)
class FuzzRoot:
    """A directory with a study and a tokenizer; whole studies, and a short one as a file has it."""

    root: Path
    study: Study
    tokenizer: PreTrainedTokenizerFast
    studies: list[Whole]
    short: dict
    short_places: list[tuple]
    text: bytes


@pytest.fixture(scope="module")
def fuzz_root(memory_directory):
    """A root with a study, of which the files are overwritten case by case."""
    root = memory_directory
    (root / "notebooks/studies").mkdir(parents=True)
    (root / "benchmarks").mkdir()
    wholes = [load_study(CHECKOUT / f"notebooks/studies/{n}.yaml") for n in ("smoke", "tulu3-8b")]
    short = yaml.safe_load((CHECKOUT / "notebooks/studies/smoke.yaml").read_bytes())
    short = {key: value for key, value in short.items() if key not in EXTRA} | {"name": "short"}
    short["benchmarks"] = {"sums": {"path": "benchmarks/sums.jsonl", "label": "Sums"}}
    kept = {name: short["models"][name] for name in ("base", "dapo")}
    short["models"] = {n: {k: m[k] for k in ("path", "label", "kind")} for n, m in kept.items()}
    short["cross_sampling"] = {"pairs": ["dapo"], "thresholds": [-1, 0.1]}
    text = yaml.safe_dump(short, sort_keys=False).encode()
    file = root / "notebooks/studies/short.yaml"
    file.write_bytes(text)
    before = os.environ.get(paths.HOME_VARIABLE)
    os.environ[paths.HOME_VARIABLE] = str(root)
    write_tokenizer(root / "tokenizer")
    yield FuzzRoot(
        root,
        load_study(file),
        load_tokenizer(root / "tokenizer"),
        [Whole(study, list(dotted(study.model_dump()))) for study in wholes],
        short,
        list(places(short)),
        text,
    )
    os.environ.pop(paths.HOME_VARIABLE)
    if before is not None:
        os.environ[paths.HOME_VARIABLE] = before
