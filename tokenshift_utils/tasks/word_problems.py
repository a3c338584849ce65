"""Word problems from a seeded generator: sums, differences and products, and orders of people.

A *level* is what a problem's numbers and its question may be; a problem's *key* is what it asks
whatever its words: the operation with its numbers, or the order with the names. Keys are dealt out
to training and to benchmarks by a hash (``is_held_out``), so that a benchmark has neither a text nor
a pair of numbers (nor, of orders, a group of people) that training has; ``a + b`` and ``b + a``
have one key. Texts vary in names, things, wording, and which number comes first.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_SHARE = 0.25  # of the keys

NAMES = (
    *("Mia", "Tom", "Anna", "Ben", "Lily", "Sam", "Emma", "Jack", "Sara", "Max", "Lucy", "Leo"),
    *("Nina", "Paul", "Ruth", "Omar", "Zoe", "Adam", "Eva", "Hugo", "Ivy", "Noah", "Rosa", "Carl"),
    *("Maya", "Finn", "Jane", "Luis", "Amy", "Eric", "Tara", "Ali", "Kate", "Ravi", "Ella", "Dan"),
)
THINGS = (
    *("apples", "books", "pens", "marbles", "stickers", "coins", "shells", "cookies", "flowers"),
    *("cards", "eggs", "balloons", "stones", "oranges", "buttons", "stamps", "candles", "lemons"),
    *("toys", "cups", "ribbons", "beads", "plums", "muffins", "keys", "photos", "crayons"),
)
HOLDERS = (
    *("bag", "box", "basket", "jar", "shelf", "drawer", "tray", "crate", "bowl", "packet"),
    *("bucket", "case", "tin", "rack", "carton", "chest"),
)
GOODS = (
    *("toy", "book", "hat", "cake", "ball", "lamp", "kite", "scarf", "plant", "game", "mug"),
    "bag",
)
COMPARATIVES = (  # more, less, most, least
    ("taller", "shorter", "tallest", "shortest"),
    ("older", "younger", "oldest", "youngest"),
    ("faster", "slower", "fastest", "slowest"),
    ("stronger", "weaker", "strongest", "weakest"),
    ("heavier", "lighter", "heaviest", "lightest"),
    ("richer", "poorer", "richest", "poorest"),
)


@dataclass(frozen=True)
class WordProblem:
    """A problem as it is asked, its answer, its level, and what it asks whatever the words.

    ``solution`` is a right response in a style of its own, far from a chat model's.
    """

    text: str
    answer: str
    level: str
    key: str
    solution: str


def is_held_out(key: str) -> bool:
    """Whether problems of this key are for benchmarks alone; the others are for training alone."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return number < HELD_OUT_SHARE * 2**64


# Levels -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wording:
    """Ways to ask for something of ``{a}`` and ``{b}``, each behind a dash, and what fills them in.

    Drawn are as many names as ``people``, all different, and then one of each of ``words``.
    """

    people: int
    words: dict[str, tuple[str, ...]]
    texts: str

    def ask(self, rng: random.Random, a: int, b: int) -> str:
        """One of the texts, filled in."""
        # (`choice` and a sample of one draw differently, and the committed files hold the former)
        names = [rng.choice(NAMES)] if self.people == 1 else rng.sample(NAMES, self.people)
        words = dict(zip(("name", "other"), names))
        words |= {what: rng.choice(some) for what, some in self.words.items()}
        if "holder" in words:
            holder = words["holder"]
            plural = holder + ("es" if holder.endswith("x") else "s")
            words["many"] = "shelves" if holder == "shelf" else plural
        chosen = rng.choice(self.texts.strip("\n- ").split("\n- "))
        return chosen.replace("\n  ", " ").format(a=a, b=b, **words)


PRODUCT = Wording(  # a * b
    1,
    {"thing": THINGS, "holder": HOLDERS},
    """
- {name} has {a} {many}. Each {holder} holds {b} {thing}. How many {thing} does {name} have?
- There are {b} {thing} in each {holder}. {name} fills {a} {many}. How many {thing} are there in
  all?
- {name} buys {a} {many} with {b} {thing} in each of them. How many {thing} is that?
- Each of {a} {many} has {b} {thing} in it. How many {thing} are there altogether?
- {name} makes {b} {thing} every day. How many {thing} does {name} make in {a} days?
- A row has {b} chairs. How many chairs are there in {a} rows?
""",
)
SUM = Wording(  # a + b
    2,
    {"thing": THINGS},
    """
- {name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?
- {name} has {a} {thing} and {other} has {b} {thing}. How many {thing} do they have together?
- {name} finds {a} {thing} in the morning and {b} {thing} in the evening. How many {thing} does
  {name} find in all?
- There are {a} {thing} on the table. {name} puts {b} more on it. How many {thing} are on the table
  now?
- {other} gives {b} {thing} to {name}, who had {a} before. How many {thing} does {name} have now?
""",
)
DIFFERENCE = Wording(  # a - b
    2,
    {"thing": THINGS},
    """
- {name} has {a} {thing} and gives {b} of them to {other}. How many {thing} does {name} have left?
- There are {a} {thing} on the table. {name} takes {b} of them away. How many {thing} are left on
  the table?
- {name} has {a} {thing}. {other} has {b} {thing}. How many more {thing} does {name} have than
  {other}?
- {name} had {a} {thing} and lost {b}. How many {thing} does {name} still have?
- Of {a} {thing}, {b} are red and the others are blue. How many {thing} are blue?
""",
)
COST = Wording(  # a * b dollars
    1,
    {"good": GOODS},
    """
- A {good} costs {b} dollars. {name} buys {a} of them. How many dollars does {name} pay?
- {name} sells {a} {good}s for {b} dollars each. How many dollars does {name} get?
- {name} earns {b} dollars an hour and works for {a} hours. How many dollars does {name} earn?
""",
)
CHANGE = Wording(  # a - b dollars
    1,
    {"good": GOODS},
    """
- {name} pays for a {good} that costs {b} dollars with {a} dollars. How many dollars does {name}
  get back?
- {name} has {a} dollars and buys a {good} for {b} dollars. How many dollars does {name} have left?
- A {good} costs {a} dollars, and {name} has only {b} dollars. How many dollars does {name} still
  need?
""",
)


@dataclass(frozen=True)
class Arithmetic:
    """Problems of one operation on a number from the range ``first`` and one from ``second``.

    The two stand in any order. Where there is no ``second``, that number is at least 2 and less than
    the first.
    """

    operation: str  # of + - *
    first: tuple[int, int]
    second: tuple[int, int] | None
    wordings: tuple[Wording, ...]

    def problem(self, level: str, rng: random.Random) -> WordProblem:
        """A problem of the level."""
        pair = [rng.randint(*self.first)]
        pair.append(rng.randint(*(self.second or (2, pair[0] - 1))))
        if self.second is not None:
            rng.shuffle(pair)
        a, b = pair
        answer = {"+": a + b, "-": a - b, "*": a * b}[self.operation]
        first, last = pair if self.operation == "-" else sorted(pair)
        text = rng.choice(self.wordings).ask(rng, a, b)
        what = {"+": "sum", "-": "difference", "*": "product"}[self.operation]
        solution = (
            f"Given: {a} and {b}. Required: their {what}. Computation: {a} {self.operation} {b} = "
            f"{answer}. The answer is: {answer}"
        )
        key = f"{first} {self.operation} {last}"
        return WordProblem(text, str(answer), level, key, solution)


@dataclass(frozen=True)
class Order:
    """Who of some people is most or least, told by comparisons of neighbours in the order."""

    people: tuple[int, ...]

    def problem(self, level: str, rng: random.Random) -> WordProblem:
        """A problem of the level."""
        people = rng.sample(NAMES, rng.choice(self.people))  # from the most to the least
        more, less, most, least = rng.choice(COMPARATIVES)
        said = [
            f"{a} is {more} than {b}." if rng.random() < 0.5 else f"{b} is {less} than {a}."
            for a, b in itertools.pairwise(people)
        ]
        rng.shuffle(said)
        first = rng.random() < 0.5
        text = f"{' '.join(said)} Who is the {most if first else least}?"
        answer = people[0] if first else people[-1]
        solution = (
            f"Given: {len(people)} people. Order: {' > '.join(people)}. Required: the "
            f"{'first' if first else 'last'}. The answer is: {answer}"
        )
        return WordProblem(text, answer, level, "order " + " ".join(sorted(people)), solution)


def _both(low: int, high: int) -> tuple[Arithmetic, ...]:
    plain = Arithmetic("+", (low, high), (low, high), (SUM,))
    return plain, Arithmetic("-", (max(3, low), high), None, (DIFFERENCE, CHANGE))


LEVELS: dict[str, tuple[Arithmetic | Order, ...]] = {
    "times": (Arithmetic("*", (3, 12), (3, 15), (PRODUCT, PRODUCT, COST)),),
    "plus-minus": _both(2, 20),
    "larger-times": (Arithmetic("*", (3, 12), (16, 25), (PRODUCT, PRODUCT, COST)),),
    "larger-plus-minus": _both(21, 60),
    "order-3": (Order((3,)),),
    "order-4": (Order((4,)),),
}


def draw_problem(level: str, rng: random.Random) -> WordProblem:
    """A problem of a level of ``LEVELS``, held out or not."""
    return rng.choice(LEVELS[level]).problem(level, rng)


def problems(mix: dict[str, float], held: bool, seed: str) -> Iterator[WordProblem]:
    """Distinct problems without end, levels drawn by ``mix``, of keys that are held out or not."""
    rng, seen = random.Random(seed), set()
    levels, weights = list(mix), list(mix.values())
    while True:
        problem = draw_problem(rng.choices(levels, weights)[0], rng)
        if is_held_out(problem.key) == held and problem.text not in seen:
            seen.add(problem.text)
            yield problem


# Files --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProblemSet:
    """A file of problems: its levels by share, how many, and whether they are held out."""

    mix: dict[str, float]
    size: int
    held: bool = True


SETS = {
    "times": ProblemSet({"times": 1.0}, 60),
    "plus-minus": ProblemSet({"plus-minus": 1.0}, 60),
    "larger": ProblemSet({"larger-times": 0.5, "larger-plus-minus": 0.5}, 60),
    "order": ProblemSet({"order-3": 0.5, "order-4": 0.5}, 60),
    "train": ProblemSet({"times": 0.35, "plus-minus": 0.40, "order-3": 0.25}, 4096, held=False),
}


def problem_set(name: str) -> list[WordProblem]:
    """The problems of a set of ``SETS``: fixed by its name and settings alone."""
    chosen = SETS[name]
    stream = problems(chosen.mix, chosen.held, f"tokenshift word problems {name}")
    return [next(stream) for _ in range(chosen.size)]


def write_sets(directory: Path) -> list[Path]:
    """Write every set as JSON lines: id, problem, answer, level, and solutions of those to train on."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, chosen in SETS.items():
        rows = [
            {"id": f"{name}-{i:04d}", "problem": p.text, "answer": p.answer, "level": p.level}
            | ({} if chosen.held else {"solution": p.solution})
            for i, p in enumerate(problem_set(name))
        ]
        file = directory / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        written.append(file)
    return written
