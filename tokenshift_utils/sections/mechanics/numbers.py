"""Section 3: what the shifts do to the candidates, and how they grow in training (numbers).

Everything is on the tuned model's own responses, except over checkpoints: those are all scored on
the final model's responses, so that they share their positions. Ranks, probabilities and mass are
over the full vocabulary. Frames of shifts hold ``k1``, ``k2``, ... and ``gain1``, ``gain2``, ... (see
`flat`).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import torch

from tokenshift_utils.measures.divergences import topk_overlap
from tokenshift_utils.records.requests import RESPONSE_KEY
from tokenshift_utils.report.bootstrap import Bootstrap, Estimate, simultaneous
from tokenshift_utils.sections.claims import HIGH_JS
from tokenshift_utils.sections.common import (
    SUPPORTS,
    of_kind,
    on_both_supports,
    say,
    study_bootstrap,
)
from tokenshift_utils.sections.seeds import measured, seeds_table

_POSITION_KEY = [*RESPONSE_KEY, "position"]
_LISTS = ("top_ids_base", "top_ids_tuned", "gain_in_base_topk")
EVOLUTION_COLUMNS = (*_POSITION_KEY, "js", "js_full")
COLUMNS = (
    *(*EVOLUTION_COLUMNS, "tv_full", *_LISTS),
    *("rank_base_of_tuned_top1", "logp_base_of_tuned_top1"),
)
RANKS = (1, 2, 3, 5, 10)
RARE = 0.01  # base probability below which RL's top-1 counts as new, the paper's cut
FLOOR = 1e-6  # nats; a smaller percentile of JS counts as this where growth is a factor
# What a difference of recipes is of: quantity, recipe, other recipe (see `seeds.seeds_table`).
DIFFERENCES = {"overlap_difference": ("overlap_2_5", "dapo", "simplerl")}
_LEVELS = (0.50, 0.75, 0.90, 0.95, 0.99)


def flat(frame: pd.DataFrame) -> pd.DataFrame:
    """Shifts without lists: overlap of both top-k sets as ``k1``, ..., what base's top k gain as
    ``gain1``, ..."""
    base, tuned, gain = (
        np.stack(frame[name].to_list()) if len(frame) else np.zeros((0, 0)) for name in _LISTS
    )
    ids = (torch.as_tensor(x.astype(np.int64)).split(20_000) for x in (base, tuned))
    overlap = torch.cat([topk_overlap(a, b) for a, b in zip(*ids)]).numpy()
    columns = {f"k{k + 1}": column for k, column in enumerate(overlap.T)}
    columns |= {f"gain{k + 1}": column for k, column in enumerate(gain.T)}
    return frame.drop(columns=[*_LISTS]).assign(**columns)


def _table(study, shifts: dict[str, pd.DataFrame], ratios) -> pd.DataFrame:
    """One row a pair and set of positions: those with high JS, on either support, and all.

    `ratios(frame)` gives for each column its numerator, or (numerator, denominator), both [rows].
    """
    boot, rows, high = study_bootstrap(study, *shifts.values()), [], study.thresholds.high_js
    for model, frame in shifts.items():
        found = ratios(frame)
        masks = {
            f"JS > {high:g}": frame["js"] > high,
            "all": frame["js"] >= 0,
            f"full JS > {high:g}": frame["js_full"] > high,
        }
        for at, mask in masks.items():
            row = {"pair": study.models[model].label, "model": model}
            row |= {"at": at, "positions": int(mask.sum())}
            here = {
                name: tuple(x[mask] for x in part) if isinstance(part, tuple) else part[mask]
                for name, part in found.items()
            }
            rows.append(row | boot.ratios(frame[mask], here))
    return pd.DataFrame(rows)


def overlap_table(study, shifts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Mean overlap of base's and tuned's top-k sets, columns k1 .. k10 with intervals."""
    return _table(study, shifts, lambda frame: frame.filter(regex=r"^k\d+$").to_dict("series"))


def rank_table(study, shifts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Share with the tuned top-1 within base's top k, and with a small base probability."""

    def ratios(frame: pd.DataFrame) -> dict:
        rank, chance = frame["rank_base_of_tuned_top1"], np.exp(frame["logp_base_of_tuned_top1"])
        found = {f"top{k}": rank <= k for k in RANKS}
        return found | {f"base_prob_below_{cut:g}": chance < cut for cut in (RARE, 0.1)}

    return _table(study, shifts, ratios)


def mass_table(study, shifts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Mean probability moved (total variation), and the share of it that base's top k gain."""

    def ratios(frame: pd.DataFrame) -> dict:
        moved = frame["tv_full"]
        ranks = [k for k in RANKS if f"gain{k}" in frame]
        shares = {f"gained_in_top{k}": (frame[f"gain{k}"], moved) for k in ranks}
        return {"mass_moved": moved} | shares

    return _table(study, shifts, ratios)


def quantities(boot: Bootstrap, frame: pd.DataFrame, column: str = "js") -> dict[str, tuple]:
    """The quantities on candidates at high JS of one support: name -> (estimate, the same at all
    positions, note)."""
    part = frame[frame[column] > HIGH_JS]
    note = "" if len(part) else f"no position with JS > {HIGH_JS:g}"

    def of(rows: pd.DataFrame) -> dict[str, Estimate]:
        k1, k2, k3 = (boot.ratio(rows, rows[f"k{k}"]) for k in (1, 2, 3))
        rank = rows["rank_base_of_tuned_top1"]
        return {
            "overlap_rise": (k2 - k1) - (k3 - k2),
            "overlap_2_5": boot.ratio(rows, rows[[f"k{k}" for k in range(2, 6)]].mean(axis=1)),
            "rank1": boot.ratio(rows, rank == 1),
            "rank3": boot.ratio(rows, rank <= 3),
            "new_token": boot.ratio(rows, np.exp(rows["logp_base_of_tuned_top1"]) < RARE),
            "gain_inside": boot.ratio(rows, rows["gain3"], rows["tv_full"]),
        }

    high, everywhere = of(part), of(frame)
    return {name: (high[name] if len(part) else None, everywhere[name], note) for name in high}


def _aligned(frames: dict[int, pd.DataFrame]) -> dict[int, pd.DataFrame]:
    """The frames in one order of positions; a ValueError where they are not the same positions."""
    ordered = {s: f.sort_values(_POSITION_KEY, ignore_index=True) for s, f in frames.items()}
    first = next(iter(ordered.values()))[_POSITION_KEY]
    for step, frame in ordered.items():
        if not frame[_POSITION_KEY].equals(first):
            raise ValueError(f"the checkpoint at step {step} was scored on other positions")
    return ordered


def evolution_table(study, frames: dict[int, pd.DataFrame]) -> pd.DataFrame:
    """JS by training step and support, all on the final model's responses.

    `frames` maps the step to shifts, the final model last. Columns: support, step, positions, mean,
    p50 .. p99, share above the high-JS cut, jaccard (overlap of the high-JS set with the final one).
    Empty where there are no checkpoints.
    """
    if not frames:
        return pd.DataFrame()
    frames = _aligned(frames)
    boot, rows = study_bootstrap(study, *frames.values()), []
    cut = study.thresholds.high_js
    for support, column in SUPPORTS.items():
        final = frames[max(frames)][column].to_numpy() > cut
        for step, frame in frames.items():
            js = frame[column].to_numpy()
            row = {"support": support, "step": step, "positions": len(js)}
            row |= boot.ratios(frame, {"mean": js}) | boot.percentiles(frame, js, _LEVELS)
            sets = {
                f"share_gt_{cut:g}": js > cut,
                "jaccard": ((js > cut) & final, (js > cut) | final),
            }
            rows.append(row | boot.ratios(frame, sets))
    return pd.DataFrame(rows)


def _growth(first: Estimate, last: Estimate) -> Estimate:
    """log10 of the factor from one percentile to another, neither below `FLOOR`."""
    value, draws = (
        np.log10(np.maximum(b, FLOOR) / np.maximum(a, FLOOR))
        for a, b in ((first.value, last.value), (first.draws, last.draws))
    )
    return Estimate(float(value), draws, first.confidence, first.why or last.why)


def evolution_rows(study, frames: dict[int, pd.DataFrame], model: str, column: str) -> list[tuple]:
    """What the claims on training evolution look at, as `rows_on`."""
    frames = _aligned(frames)
    boot, steps = study_bootstrap(study, *frames.values()), sorted(frames)
    js = {s: f[column].to_numpy() for s, f in frames.items()}
    means = [boot.ratio(frames[s], js[s]) for s in steps]
    first, last = steps[0], steps[-1]
    levels = (0.75, 0.95, 0.99)
    ends = (boot.quantiles(frames[s], js[s], levels) for s in (first, last))
    p75, p95, p99 = (_growth(a, b) for a, b in zip(*ends))
    factors = (
        f"{name} x {10**g.value:.3g}" for name, g in (("p75", p75), ("p95", p95), ("p99", p99))
    )
    note = ", ".join(factors)
    smallest = simultaneous([b - a for a, b in pairwise(means)], "smallest")
    found = {
        "js_smallest_step": (smallest, ""),
        "p95_faster": (p95 - p75, note),
        "p99_faster": (p99 - p75, note),
    }
    final = js[last] > HIGH_JS
    if not final.any() or len(steps) < 3:
        why = f"no position with JS > {HIGH_JS:g}" if not final.any() else "too few checkpoints"
        found |= dict.fromkeys(("jaccard_rise", "jaccard_late"), (None, why))
    else:
        high = {s: js[s] > HIGH_JS for s in steps}
        overlap = {s: boot.ratio(frames[s], high[s] & final, high[s] | final) for s in steps}
        middle = min(steps[1:-1], key=lambda s: abs(s - last / 2))
        late = (overlap[last] - overlap[middle]) / (last - middle)
        early = (overlap[middle] - overlap[first]) / (middle - first)
        found["jaccard_rise"] = (overlap[steps[-2]] - overlap[first], "")
        found["jaccard_late"] = (late - early, "")
    return [(name, model, estimate, None, note) for name, (estimate, note) in found.items()]


def section_evidence(
    study, shifts: dict[str, pd.DataFrame], checkpoints: dict[int, pd.DataFrame]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(evidence of section 3, the same on both supports); without checkpoints only on candidates."""

    def rows_on(column: str) -> list[tuple]:
        boot, rows = study_bootstrap(study, *shifts.values()), []
        for model in (m for m in of_kind(study, "rl") if m in shifts):
            found = quantities(boot, shifts[model], column)
            rows += [(quantity, model, *parts) for quantity, parts in found.items()]
        if checkpoints:
            rows += evolution_rows(study, checkpoints, study.evolution.model, column)
        return rows

    return on_both_supports(study, rows_on)


def over_seeds(study, runs: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The quantities on candidates over training seeds, DAPO against SimpleRL among them, see
    `seeds_table`."""
    return seeds_table(study, measured(study, runs, quantities), DIFFERENCES)


# Words --------------------------------------------------------------------------------------------


def _say_rows(study, table: pd.DataFrame, text: str, *names: str) -> str:
    """A line an RL model from its row at high-JS positions; ``{all NAME}`` is that of all positions."""
    out = []
    for model in of_kind(study, "rl"):
        rows = table[table["model"] == model]
        if rows.empty:
            continue
        row, everywhere = rows.iloc[0], rows[rows["at"] == "all"].iloc[0]
        if not row["positions"]:
            out.append(say("{pair} has no position with {at}.", row))
            continue
        beside = {f"all {name}": f"{100 * everywhere[name]:.3g}%" for name in names}
        out.append(say(text, row, **beside))
    return "\n".join(out)


def say_overlap(study, table: pd.DataFrame) -> str:
    """How much the candidate sets share at high-JS positions."""
    text = (
        "{pair}: at positions with {at} the top-1 tokens agree "
        "at {k1:%} (at all positions {all k1:}), the top-2 sets overlap by {k2:%} ({all k2:})."
    )
    return _say_rows(study, table, text, "k1", "k2")


def say_rank(study, table: pd.DataFrame) -> str:
    """Where base ranked RL's choice at high-JS positions."""
    rare = f"base_prob_below_{RARE:g}"
    text = (
        "{pair}: at positions with {at} its top-1 token is within base's top 3 at {top3:%} (at all "
        f"positions {{all top3:}}) and base's top-1 at {{top1:%}} ({{all top1:}}); base gives it less "
        f"than {RARE:g} at {{{rare}:%}} ({{all {rare}:}})."
    )
    return _say_rows(study, table, text, "top1", "top3", rare)


def say_mass(study, table: pd.DataFrame) -> str:
    """Who gains the probability that moves at high-JS positions."""
    text = (
        "{pair}: of the probability gained at positions with {at}, {gained_in_top3:%} goes to tokens "
        "within base's top 3 (at all positions {all gained_in_top3:}); {mass_moved:%} of all moves "
        "({all mass_moved:})."
    )
    return _say_rows(study, table, text, "gained_in_top3", "mass_moved")


def say_evolution(study, table: pd.DataFrame) -> str:
    """How JS and the high-JS set changed from the first checkpoint to the final model."""
    if table.empty:
        return "This study has no checkpoints to follow."
    rows = table[table["support"] == "nucleus"]
    share = f"share_gt_{study.thresholds.high_js:g}"
    first, last, high = rows.iloc[0], rows.iloc[-1], study.thresholds.high_js

    def change(name: str, unit: str = "") -> str:
        values = [100 * r[name] if unit else r[name] for r in (first, last)]
        ends = [f"{v:.2g}{unit}" if v >= FLOOR else "below 1e-6" for v in values]
        return f"from {ends[0]} to {ends[1]}" if ends[0] != ends[1] else f"stays {ends[0]}"

    said = (
        f"Over steps {first['step']} to {last['step']}: share of positions with JS above {high:g} "
        f"{change(share, '%')}, mean JS {change('mean')} nats, 99th percentile {change('p99')}; the "
        f"75th {change('p75')}."
    )
    if np.isnan(last["jaccard"]):
        return (
            f"{said}\nThe final model has no high-JS position, so there is no set to overlap with."
        )
    inner = rows.iloc[:-1]
    some = inner.iloc[sorted({0, len(inner) // 2, len(inner) - 1})]
    steps = ", ".join(f"{r['jaccard']:.2g} at step {r['step']}" for _, r in some.iterrows())
    return f"{said}\nThe high-JS set's Jaccard overlap with the final one is {steps}."
