"""Section 3: what the shifts do to the candidates, and how they grow in training (numbers).

Everything is on the tuned model's own responses, except over checkpoints: those are all scored on
the final model's responses, so that they share their positions. Ranks, probabilities and mass are
over the full vocabulary.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import torch

from tokenshift_utils.measures.divergences import topk_overlap
from tokenshift_utils.report.bootstrap import Bootstrap, Estimate, simultaneous
from tokenshift_utils.sections.claims import HIGH_JS
from tokenshift_utils.sections.common import evidence, of_kind, of_recipe, plan, say

_KEY = ["benchmark", "problem", "sample", "position"]
COLUMNS = (
    *_KEY,
    "js",
    "tv_full",
    "rank_base_of_tuned_top1",
    "logp_base_of_tuned_top1",
    "top_ids_base",
    "top_ids_tuned",
    "gain_in_base_topk",
)
EVOLUTION_COLUMNS = (*_KEY, "js")
RANKS = (1, 2, 3, 5, 10)
RARE = 0.01  # base probability below which RL's top-1 counts as new, the paper's cut
_LEVELS = (0.50, 0.75, 0.90, 0.95, 0.99)


def _matrix(column: pd.Series) -> np.ndarray:
    """[rows, k] from a column of equally long lists."""
    return np.stack(column.to_list()) if len(column) else np.zeros((0, 0))


def _overlap(frame: pd.DataFrame) -> np.ndarray:
    """[rows, k] overlap of base's and tuned's top-k sets, for k = 1, 2, ..."""
    base, tuned = (
        torch.as_tensor(_matrix(frame[f"top_ids_{side}"]).astype(np.int64)).split(20_000)
        for side in ("base", "tuned")
    )
    return torch.cat([topk_overlap(a, b) for a, b in zip(base, tuned)]).numpy()


def _parts(study, frame: pd.DataFrame):
    """(name, mask) of the positions each table is about: high-JS ones, and all."""
    high = study.thresholds.high_js
    yield f"JS > {high:g}", (frame["js"] > high).to_numpy()
    yield "all", np.ones(len(frame), dtype=bool)


def _table(study, shifts: dict[str, pd.DataFrame], ratios) -> pd.DataFrame:
    """One row a pair and set of positions.

    `ratios(frame)` gives for each column its (numerator, denominator), both [rows]; a denominator
    of None counts rows.
    """
    boot, rows = plan(study, *shifts.values()), []
    for model, frame in shifts.items():
        found = ratios(frame)
        for at, mask in _parts(study, frame):
            row = {"pair": study.models[model].label, "model": model}
            row |= {"at": at, "positions": int(mask.sum())}
            for name, (above, below) in found.items():
                below = None if below is None else below[mask]
                row |= boot.ratio(frame[mask], above[mask], below).columns(name)
            rows.append(row)
    return pd.DataFrame(rows)


def overlap_table(study, shifts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Mean overlap of base's and tuned's top-k sets, columns k1 .. k10 with intervals."""

    def ratios(frame: pd.DataFrame) -> dict:
        return {f"k{k + 1}": (column, None) for k, column in enumerate(_overlap(frame).T)}

    return _table(study, shifts, ratios)


def rank_table(study, shifts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Share with the tuned top-1 within base's top k, and with a small base probability."""

    def ratios(frame: pd.DataFrame) -> dict:
        rank = frame["rank_base_of_tuned_top1"].to_numpy()
        chance = np.exp(frame["logp_base_of_tuned_top1"].to_numpy())
        found = {f"top{k}": (rank <= k, None) for k in RANKS}
        return found | {f"base_prob_below_{cut:g}": (chance < cut, None) for cut in (RARE, 0.1)}

    return _table(study, shifts, ratios)


def mass_table(study, shifts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Mean probability moved (total variation), and the share of it that base's top k gain."""

    def ratios(frame: pd.DataFrame) -> dict:
        gain, moved = _matrix(frame["gain_in_base_topk"]), frame["tv_full"].to_numpy()
        ranks = [k for k in RANKS if k <= gain.shape[1]]
        shares = {f"gained_in_top{k}": (gain[:, k - 1], moved) for k in ranks}
        return {"mass_moved": (moved, None)} | shares

    return _table(study, shifts, ratios)


def mechanics_evidence(study, shifts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """What the claims on candidates look at: every RL model, at its high-JS positions."""
    boot, rows, overlaps = plan(study, *shifts.values()), [], {}
    for model in (m for m in of_kind(study, "rl") if m in shifts):
        part = shifts[model][shifts[model]["js"] > HIGH_JS]
        if part.empty:
            names = ("overlap_rise", "overlap_2_5", "rank1", "rank3", "new_token", "gain_inside")
            rows += [(q, model, None, f"no position with JS > {HIGH_JS:g}") for q in names]
            continue
        overlap = _overlap(part)
        rank = part["rank_base_of_tuned_top1"].to_numpy()
        new = np.exp(part["logp_base_of_tuned_top1"].to_numpy()) < RARE
        gain, moved = _matrix(part["gain_in_base_topk"]), part["tv_full"].to_numpy()
        k1, k2, k3 = (boot.ratio(part, overlap[:, k]) for k in range(3))
        overlaps[model] = boot.ratio(part, overlap[:, 1:5].mean(axis=1))
        rows += [
            ("overlap_rise", model, (k2 - k1) - (k3 - k2), ""),
            ("overlap_2_5", model, overlaps[model], ""),
            ("rank1", model, boot.ratio(part, rank == 1), ""),
            ("rank3", model, boot.ratio(part, rank <= 3), ""),
            ("new_token", model, boot.ratio(part, new), ""),
            ("gain_inside", model, boot.ratio(part, gain[:, 2], moved), ""),
        ]
    dapo, simplerl = (of_recipe(study, recipe, overlaps) for recipe in ("dapo", "simplerl"))
    if dapo and simplerl:
        rows.append(("overlap_difference", dapo, overlaps[dapo] - overlaps[simplerl], ""))
    return evidence(rows)


def _aligned(frames: dict[int, pd.DataFrame]) -> dict[int, pd.DataFrame]:
    """The frames in one order of positions; a ValueError where they are not the same positions."""
    ordered = {s: f.sort_values(_KEY, ignore_index=True) for s, f in frames.items()}
    first = next(iter(ordered.values()))[_KEY]
    for step, frame in ordered.items():
        if not frame[_KEY].equals(first):
            raise ValueError(f"the checkpoint at step {step} was scored on other positions")
    return ordered


def _jaccard(boot: Bootstrap, frame: pd.DataFrame, high: np.ndarray, final: np.ndarray) -> Estimate:
    return boot.ratio(frame, high & final, high | final)


def evolution_table(study, frames: dict[int, pd.DataFrame]) -> pd.DataFrame:
    """JS by training step, all on the final model's responses.

    `frames` maps the step to shifts, the final model last. Columns: step, positions, mean, p50 ..
    p99, share above the high-JS cut, jaccard (overlap of the high-JS set with the final one). Empty
    where there are no checkpoints.
    """
    if not frames:
        return pd.DataFrame()
    frames = _aligned(frames)
    boot, rows = plan(study, *frames.values()), []
    cut = study.thresholds.high_js
    final = frames[max(frames)]["js"].to_numpy() > cut
    for step, frame in frames.items():
        js = frame["js"].to_numpy()
        row = {"step": step, "positions": len(js)} | boot.ratio(frame, js).columns("mean")
        for level, estimate in zip(_LEVELS, boot.quantiles(frame, js, _LEVELS)):
            row |= estimate.columns(f"p{100 * level:g}")
        row |= boot.ratio(frame, js > cut).columns(f"share_gt_{cut:g}")
        row |= _jaccard(boot, frame, js > cut, final).columns("jaccard")
        rows.append(row)
    return pd.DataFrame(rows)


def evolution_evidence(study, frames: dict[int, pd.DataFrame], model: str) -> pd.DataFrame:
    """What the claims on training evolution look at."""
    frames = _aligned(frames)
    boot, steps = plan(study, *frames.values()), sorted(frames)
    js = {s: f["js"].to_numpy() for s, f in frames.items()}
    means = [boot.ratio(frames[s], js[s]) for s in steps]
    first, last = steps[0], steps[-1]
    levels = (0.75, 0.95, 0.99)
    grown = [
        b - a
        for a, b in zip(
            boot.quantiles(frames[first], js[first], levels),
            boot.quantiles(frames[last], js[last], levels),
        )
    ]
    rows = [
        (
            "js_smallest_step",
            model,
            simultaneous([b - a for a, b in pairwise(means)], "smallest"),
            "",
        ),
        ("p95_excess", model, grown[1] - grown[0], ""),
        ("p99_excess", model, grown[2] - grown[0], ""),
    ]
    final = js[last] > HIGH_JS
    if not final.any() or len(steps) < 3:
        why = f"no position with JS > {HIGH_JS:g}" if not final.any() else "too few checkpoints"
        rows += [(q, model, None, why) for q in ("jaccard_rise", "jaccard_late")]
        return evidence(rows)
    overlap = {s: _jaccard(boot, frames[s], js[s] > HIGH_JS, final) for s in steps}
    middle = min(steps[1:-1], key=lambda s: abs(s - last / 2))
    late = (overlap[last] - overlap[middle]) / (last - middle)
    early = (overlap[middle] - overlap[first]) / (middle - first)
    rows += [
        ("jaccard_rise", model, overlap[steps[-2]] - overlap[first], ""),
        ("jaccard_late", model, late - early, ""),
    ]
    return evidence(rows)


def section_evidence(
    study, shifts: dict[str, pd.DataFrame], checkpoints: dict[int, pd.DataFrame]
) -> pd.DataFrame:
    """All evidence of section 3; without checkpoints only that on candidates."""
    found = mechanics_evidence(study, shifts)
    if not checkpoints:
        return found
    later = evolution_evidence(study, checkpoints, study.evolution.model)
    return pd.concat([found, later], ignore_index=True)


def _say_rows(study, table: pd.DataFrame, text: str) -> str:
    """A line an RL model from its row at high-JS positions."""
    rows = table[table["model"].isin(of_kind(study, "rl")) & (table["at"] != "all")]
    nothing = "{pair} has no position with {at}."
    return "\n".join(say(text if r["positions"] else nothing, r) for _, r in rows.iterrows())


def say_overlap(study, table: pd.DataFrame) -> str:
    """How much the candidate sets share at high-JS positions."""
    text = (
        "{pair}, at its {positions:,} positions with {at}: the top-1 tokens agree at {k1:%}, the "
        "top-2 sets overlap by {k2:%}, the top-5 sets by "
    )
    return _say_rows(study, table, text + ("{k5:%}." if "k5" in table else "n/a."))


def say_rank(study, table: pd.DataFrame) -> str:
    """Where base ranked RL's choice at high-JS positions."""
    text = (
        "{pair}: at positions with {at} its top-1 token is base's top-1 at {top1:%} and within "
        f"base's top 3 at {{top3:%}}; base gives it less than {RARE:g} at "
        f"{{base_prob_below_{RARE:g}:%}}."
    )
    return _say_rows(study, table, text)


def say_mass(study, table: pd.DataFrame) -> str:
    """Who gains the probability that moves at high-JS positions."""
    text = (
        "{pair}: at positions with {at} {mass_moved:%} of the probability moves, and of what is "
        "gained {gained_in_top3:%} goes to tokens within base's top 3."
    )
    return _say_rows(study, table, text)


def say_evolution(table: pd.DataFrame) -> str:
    """How JS and the high-JS set changed from the first checkpoint to the final model."""
    if table.empty:
        return "This study has no checkpoints to follow."
    first, last, before = table.iloc[0], table.iloc[-1], table.iloc[-2]
    rising = int((table["mean"].diff().dropna() > 0).sum())
    jaccard = (
        "The final model has no high-JS position, so there is no set to overlap with."
        if np.isnan(last["jaccard"])
        else f"The high-JS set's overlap with the final one goes from {first['jaccard']:.2f} at "
        f"step {first['step']:g} to {before['jaccard']:.2f} at step {before['step']:g}."
    )
    return (
        f"From step {first['step']:g} to {last['step']:g} mean JS goes from {first['mean']:.4f} to "
        f"{last['mean']:.4f} nats, rising in {rising} of {len(table) - 1} steps; the 99th "
        f"percentile from {first['p99']:.3f} to {last['p99']:.3f}, the 75th from "
        f"{first['p75']:.3f} to {last['p75']:.3f}. {jaccard}"
    )
