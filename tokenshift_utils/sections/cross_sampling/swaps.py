"""Section 2: which tokens are swapped for which, and responses that few swaps decide."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from tokenshift_utils.records.requests import RESPONSE_KEY
from tokenshift_utils.sections.common import points, say, study_bootstrap
from tokenshift_utils.sections.cross_sampling.decisions import decides
from tokenshift_utils.sections.cross_sampling.settings import FORWARD


def swap_table(
    study,
    switches: dict[tuple[str, str, float], pd.DataFrame],
    decode: Callable[[int], str],
    top: int = 8,
) -> pd.DataFrame:
    """The most frequent pairs (token the primary would have written, token put in its place).

    `switches` has the switches of a setting by (model, direction, threshold); only effective ones
    count. `share` is of all effective switches of the setting, `problems` how many show the pair.
    Ties go by token id.
    """
    rows = []
    for (model, direction, eps), frame in switches.items():
        frame = frame[frame["effective"]]
        pairs = frame.groupby(["token_primary", "token_intervention"])
        count = pairs.size().sort_values(ascending=False, kind="stable")
        problems = pairs[["benchmark", "problem"]].apply(lambda f: len(f.drop_duplicates()))
        for (old, new), n in count.head(top).items():
            row = {"pair": study.models[model].label, "direction": direction, "threshold": eps}
            row |= {"written": _shown(decode(old)), "put_in": _shown(decode(new)), "count": int(n)}
            row |= {"share": n / len(frame), "problems": int(problems.loc[(old, new)])}
            row["decides"] = decides(decode(old), decode(new))
            rows.append(row)
    names = ["pair", "direction", "threshold", "written", "put_in", "count", "share", "problems"]
    return pd.DataFrame(rows, columns=[*names, "decides"])


def _shown(text: str) -> str:
    """A token's text in quotes, so that spaces show; line breaks as they are written in code."""
    return "'" + text.replace("\n", "\\n") + "'"


def say_swaps(table: pd.DataFrame) -> str:
    """The most frequent swap of every pair and direction, and what the listed ones add up to."""
    text = (
        "{pair}, {direction}: most often {put_in} for {written} ({share:.1%} of effective "
        "replacements); the {listed} swaps listed are {total:.1%} of all."
    )
    return (
        "\n".join(
            say(text, part.iloc[0], listed=len(part), total=part["share"].sum())
            for _, part in table.groupby(["pair", "direction"], sort=False)
        )
        or "No token was effectively replaced."
    )


def mark_turned(own: pd.DataFrame, mixed: pd.DataFrame, direction: str) -> pd.DataFrame:
    """Mixed responses beside the primary's own to the same problem and sample.

    Columns: those of `mixed`, and `turns`: from wrong to right (forward) or from right to wrong
    (reverse). In the order of the records.
    """
    both = mixed.merge(own[[*RESPONSE_KEY, "correct"]], on=RESPONSE_KEY, suffixes=("", "_own"))
    wanted = direction == FORWARD
    return both.assign(turns=(both["correct"] == wanted) & (both["correct_own"] != wanted))


def say_deciding(study, rows: pd.DataFrame, direction: str, drawn: pd.Series | None) -> str:
    """How often exactly one effective replacement turns a response, and what one ``drawn`` at random
    does: the row of `effect_table` over all strata, None where there is none. Both on one benchmark.
    """
    label = study.benchmarks[study.cross_benchmark].label
    way = "from wrong to right" if direction == FORWARD else "from right to wrong"
    one = rows[(rows["n_effective"] == 1) & (rows["correct_own"] != (direction == FORWARD))]
    if one.empty:
        return f"{direction.capitalize()}, {label}: no response that could turn has exactly one replacement."
    share = study_bootstrap(study, one).ratio(one, one["turns"].to_numpy(dtype=float))
    chance = " no effect of tokens drawn at random was measured"
    if drawn is not None:
        chance = (
            " drawn at random, one that differs changes success by "
            f"{points(drawn, 'effect_different')} over all responses, those that could not turn among them"
        )
    return (
        f"{direction.capitalize()}, {label}: of {len(one)} responses that could turn and have exactly one token "
        f"replaced, {say('{x:%0}', share.columns('x'))} turn {way}. That is chosen afterwards, for "
        f"needing no other replacement;{chance}."
    )


def say_shown(examples: list[dict]) -> str:
    """What the examples chosen are, where they are not of one replacement each."""
    if not examples:
        return " No response turns with any replacement, so none is shown."
    fewest = [example["replaced"] for example in examples]
    if max(fewest) == 1:
        return ""
    return f" Shown for lack of more: responses with up to {max(fewest)} effective replacements."


def pick_examples(
    rows: dict[str, pd.DataFrame],
    switches: pd.DataFrame,
    names: dict[str, str],
    direction: str,
    count: int,
) -> list[dict]:
    """Responses to one problem and sample by primary, mixture and intervention, side by side.

    `rows` maps "primary", "mixed" and "intervention" to rollouts or runs, `names` to their titles.
    Taken are responses that the mixture turns (see `mark_turned`), those with the fewest effective
    replacements first (the title says how many), one a benchmark before a second of any, in the
    order of the records.
    """
    found = mark_turned(rows["primary"], rows["mixed"], direction)
    found = found[found["turns"] & (found["n_effective"] > 0)]
    found = found.merge(rows["intervention"][RESPONSE_KEY], on=RESPONSE_KEY)
    found["turn"] = found.groupby(["n_effective", "benchmark"]).cumcount()
    chosen = found.sort_values(["n_effective", "turn"], kind="stable").head(count)
    indexed = {name: frame.set_index(RESPONSE_KEY) for name, frame in rows.items()}
    marks = {k: part for k, part in switches.groupby(RESPONSE_KEY)}
    examples = []
    for at in chosen[[*RESPONSE_KEY, "n_effective"]].itertuples(index=False):
        key, swaps = tuple(at[:3]), f"{at[3]} token{'s' if at[3] > 1 else ''} effectively replaced"
        columns = [
            (names[n], frame.loc[key], marks.get(key) if n == "mixed" else None)
            for n, frame in indexed.items()
        ]
        title = f"{direction}: {key[0]}, problem {key[1]}, sample {key[2]}, {swaps}"
        examples.append({"title": title, "columns": columns, "replaced": int(at[3])})
    return examples
