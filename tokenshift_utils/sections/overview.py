"""What the notebooks found, together: claims, studies side by side, gallery. Reads results only.

The other notebooks leave tables of evidence and figures; a notebook that has not been run leaves
its claims untestable, which the table says.
"""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn.objects as so
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.files import read_csv, write_text
from tokenshift_utils.report.style import add_points, color, draw_on, mark
from tokenshift_utils.report.tables import to_html, to_markdown
from tokenshift_utils.sections.claims import (
    CLAIMS,
    EVIDENCE_COLUMNS,
    NOT_SUPPORTED,
    NOT_TESTABLE,
    SUPPORTED,
    UNDECIDED,
    VERDICTS,
    criteria_log,
    estimates,
    evaluate,
)
from tokenshift_utils.sections.questions import questions_table, say_questions
from tokenshift_utils.study.study import Study, load_study

RUN_AGAIN = "delete it and run the notebook that makes it again (tokenshift reproduce)"
SECTION_TITLES = {
    "1": "Divergence characterization",
    "2": "Cross-sampling",
    "3": "Token mechanics",
    "4": "Weighted objective",
}


def read_evidence(name: str) -> pd.DataFrame:
    """The evidence that the notebooks wrote for a study, together; empty where there is none.

    Tables ``NN_evidence`` have intervals over problems, or say their ``seeds``; tables ``NN_seeds`` have
    those over training seeds.
    """
    found = paths.tables(name).glob("[0-9][0-9]_*.csv")
    files = sorted(f for f in found if f.stem.endswith(("evidence", "_seeds")))
    parts = [read_csv(file, RUN_AGAIN, dtype={"note": object}) for file in files]
    parts = [part for part in parts if len(part)]
    if not parts:
        return pd.DataFrame(columns=list(EVIDENCE_COLUMNS))
    return pd.concat(parts, ignore_index=True)


def claims_table(study, evidence: pd.DataFrame) -> pd.DataFrame:
    """All claims of the paper with what was measured and the verdict, one row a claim and subject."""
    return evaluate(claim_roles(study), evidence, study.statistics.confidence)


def claim_roles(study) -> dict[str, set]:
    """Kind and recipe of the study's models, by which claims ask for them."""
    return {name: {spec.kind, spec.recipe} for name, spec in study.models.items()}


# Studies side by side ----------------------------------------------------------------------------


def side_by_side(study) -> tuple[dict[str, Study], list[str]]:
    """(studies with evidence by name, this one first; names of those without any).

    Of the studies under ``notebooks/studies``; those that are for tests are left out.
    """
    found, without = {study.name: study}, []
    for file in sorted(paths.studies().glob("*.yaml")):
        if file.stem == study.name or "smoke" in file.stem:
            continue
        if read_evidence(file.stem).empty:
            without.append(file.stem)
        else:
            found[file.stem] = load_study(file.stem)
    return found, without


def verdict_table(studies: dict[str, Study]) -> pd.DataFrame:
    """How many claims and subjects have each verdict: a row a study and grade."""
    rows = []
    for name, study in studies.items():
        claims = claims_table(study, read_evidence(name))
        for grade, own in claims.groupby("grade", sort=False):
            counts = {verdict: int((own["verdict"] == verdict).sum()) for verdict in VERDICTS}
            rows.append({"study": name, "grade": grade} | counts)
    return pd.DataFrame(rows)


def forest_table(studies: dict[str, Study]) -> pd.DataFrame:
    """The leading claims on each study, a row a subject: by how much the criterion is kept.

    Columns: claim, words, study, subject, label, the check that is kept least (quantity, above, below,
    value, low, high, over, seeds, verdict), and margin, margin_low, margin_high: how far the quantity
    is inside its bound, in percentage points (of a ratio: percent), negative outside. A claim that was
    not measured has no quantity.
    """
    rows = []
    for claim in (c for c in CLAIMS if c.lead):
        for name, study in studies.items():
            found = estimates(claim_roles(study), read_evidence(name), study.statistics.confidence)
            found = found[(found["claim"] == claim.id) & (found["over"] == claim.over)]
            found = found[found["low"].notna()]
            head = {"claim": claim.id, "words": claim.lead, "study": name}
            rows += [
                head | {"subject": subject, "label": study.models[subject].label} | _least(own)
                for subject, own in found.groupby("subject", sort=False)
            ] or [head | {"label": "not measured"}]
    return pd.DataFrame(rows)


def _least(checks: pd.DataFrame) -> dict:
    """The check with the least margin, and that margin."""
    ends = {}
    for end in ("value", "low", "high"):
        inside = np.minimum(checks[end] - checks["above"], checks["below"] - checks[end])
        ends[end] = 100 * inside.to_numpy()
    least = int(np.argmin(ends["value"]))
    margins = sorted(ends[end][least] for end in ends)
    row = checks.iloc[least].drop(["claim", "subject", "note", "p"]).to_dict()
    named = ("margin_low", "margin", "margin_high")
    return row | dict(zip(named, (margins[0], ends["value"][least], margins[2])))


def plot_forest(table: pd.DataFrame, studies: dict[str, Study]) -> Figure:
    """Leading claims, a row a claim and study, a mark a model: right of the line the criterion holds.

    Filled marks: the interval is over problems; open ones: over training seeds.
    """
    claims = list(dict.fromkeys(table["claim"]))
    height = 0.30 * len(claims) * len(studies) + 0.24 * len(claims) + 0.9
    fig, ax = plt.subplots(figsize=(7.6, height))
    ax.axvline(0, color="black", linewidth=1)
    margins = table.get(["margin_low", "margin_high"], pd.DataFrame([1])).abs()
    reach = max(10.0, margins[np.isfinite(margins)].max().max())
    edge = 1.4 * reach  # where what is infinite is drawn
    looks = dict(zip(table["label"].unique(), "os^Dv<>" * 9))
    y, ticks, parts, names = 0.0, [], [], {}
    for claim in claims:
        own = table[table["claim"] == claim]
        ax.text(0, y, own["words"].iloc[0], transform=ax.get_yaxis_transform(), va="center",
                fontweight="bold", fontsize=9.5)  # fmt: skip
        for name in studies:
            y -= 1
            ticks.append((y, name))
            rows = own[own["study"] == name]
            if "margin" not in rows or rows["margin"].isna().all():
                ax.text(0, y, "not measured", va="center", color="#666666", fontsize=9,
                        bbox={"facecolor": "white", "linewidth": 0, "pad": 1})  # fmt: skip
                continue
            parts.append(rows.assign(y=y + 0.13 * (len(rows) - 1) - 0.26 * np.arange(len(rows))))
        y -= 1.15
    if parts:
        rows = pd.concat(parts, ignore_index=True)
        hues = [color(studies[s], m) for s, m in zip(rows["study"], rows["subject"])]
        ends = {"value": "margin", "low": "margin_low", "high": "margin_high"}
        rows = rows.assign(**{end: rows[c].clip(-edge, edge) for end, c in ends.items()})
        faces = np.where(rows["over"] == "problems", hues, "white")
        rows = rows.assign(each=rows.index, hue=hues, face=faces)
        same = {hue: hue for hue in (*hues, "white")}
        plot = so.Plot(rows, y="y", color="hue", fillcolor="face", marker="label")
        plot = plot.scale(color=same, fillcolor=same, marker=looks)
        draw_on(ax, add_points(plot, linewidth=1.8))
        names = {n: (looks[n], hue, hue) for n, hue in zip(rows["label"], hues)}
    ax.set_xscale("symlog", linthresh=1, linscale=0.6)
    decades = [10**power for power in range(len(f"{reach:.0f}"))]
    ends = [*(-end for end in reversed(decades)), 0, *decades]
    ax.set_xticks(ends, [f"{end:+d}" if end else "criterion" for end in ends])
    ax.set_xlim(-edge, edge)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
    ax.set_ylim(y + 0.6, 0.7)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("points outside (−) or inside (+) the criterion; of ratios, percent")
    for at, side, text in ((0.0, "left", "does not hold"), (1.0, "right", "holds")):
        ax.text(at, 1.0, text, ha=side, va="bottom", transform=ax.transAxes, color="#444444")
    names["over problems"], names["over seeds"] = (
        ("s", "#888888", c) for c in ("#888888", "white")
    )
    handles = [mark(name, *look) for name, look in names.items()]
    fig.legend(handles=handles, loc="outside lower center", ncols=5)
    return fig


def open_questions(studies: dict[str, Study]) -> tuple[pd.DataFrame, str]:
    """The paper's open questions, see `questions.questions_table`, and a sentence on each study."""
    claims = {name: claims_table(s, read_evidence(name)) for name, s in studies.items()}
    table = questions_table(studies, claims)
    return table, say_questions(table)


def say_verdicts(counts: pd.DataFrame, without: list[str]) -> str:
    """How many claims hold on each study, those that are near certain by design apart."""
    lines = []
    for name, own in counts.groupby("study", sort=False):
        telling = own[own["grade"] != "structural"][list(VERDICTS)].sum()
        tested = telling.sum() - telling[NOT_TESTABLE]
        easy = own[own["grade"] == "structural"][list(VERDICTS)].sum()
        expected = easy.sum() - easy[NOT_TESTABLE]
        lines.append(
            f"**{name}**: of {tested} claims (a model each) that were open, {telling[SUPPORTED]} hold, "
            f"{telling[NOT_SUPPORTED]} do not, {telling[UNDECIDED]} undecided; of {expected} that the "
            f"design makes near certain, {easy[SUPPORTED]} hold, {easy[NOT_SUPPORTED]} do not, "
            f"{easy[UNDECIDED]} undecided."
        )
    if without:
        lines.append(f"Not computed here: {', '.join(without)}.")
    return "\n".join(lines)


def write_criteria_log(study):
    """Write ``results/<study>/criteria_log.md``; returns the log as HTML that unfolds."""
    from IPython.display import HTML

    log = criteria_log()
    text = (
        "Changes of the claims' criteria since they were first fixed; `seen` says whether a change was\n"
        "made before or after the numbers that it decides were seen.\n\n"
    )
    file = paths.results(study.name) / "criteria_log.md"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, f"# Criteria that changed\n\n{text}{to_markdown(log)}")
    title = f"Changes of criteria: {len(log)} ({paths.display(file)})"
    return HTML(f"<details><summary>{title}</summary>\n{to_html(log)}\n</details>")


def section_claims(study, evidence: pd.DataFrame, section: int, seeds=None) -> pd.DataFrame:
    """The rows of `claims_table` of one section, from its evidence and its intervals over seeds."""
    if seeds is not None:
        evidence = pd.concat([part for part in (evidence, seeds) if len(part)])
    table = claims_table(study, evidence)
    return table[table["claim"].str.startswith(f"{section}-")].reset_index(drop=True)


def say_claims(study, table: pd.DataFrame) -> str:
    """Which claims reproduced and which did not: a line a verdict, one on multiplicity, and one on
    those that hold over problems and not over training seeds."""
    lines = []
    for verdict in VERDICTS:
        rows = table[table["verdict"] == verdict]
        if rows.empty:
            continue
        named = ", ".join(
            f"{claim} ({', '.join(own['subject'])})" for claim, own in rows.groupby("claim")
        )
        easy = (rows["grade"] == "structural").sum()
        count = f"{len(rows)}, {easy} of them structural" if easy else f"{len(rows)}"
        lines.append(f"**{verdict.capitalize()}** ({count}): {named}.")
    held = table[table["verdict"] == SUPPORTED]
    lost = held[held["p_holm"] > (1 - study.statistics.confidence) / 2]
    if len(held):
        lines.append(
            "Corrected for the number of claims in a section (Holm), "
            + (
                f"these are no longer supported: {_named(lost)}."
                if len(lost)
                else "all of these stay."
            )
        )
    seeds = held[held["seeds_verdict"].isin([UNDECIDED, NOT_SUPPORTED])]
    if len(seeds):
        lines.append(
            f"Supported over problems, and not over the few training seeds: {_named(seeds)}."
        )
    return "\n".join(lines)


def _named(rows: pd.DataFrame) -> str:
    return ", ".join(f"{c} ({s})" for c, s in zip(rows["claim"], rows["subject"]))


def claims_markdown(study_name: str) -> str:
    """The verdicts of a study's committed claims table in short, as Markdown (the table of guide/story.md).

    Raises
    ------
    TokenshiftError
        Where notebook 00 has not been run for the study.
    """
    file = paths.tables(study_name) / "00_claims.csv"
    if not file.is_file():
        raise TokenshiftError(
            f"there is no {paths.display(file)}: run tokenshift reproduce --study {study_name}"
        )
    shown = ["claim", "says", "subject", "measured", "verdict"]
    return to_markdown(read_csv(file, RUN_AGAIN, usecols=shown)[shown])


def _picture(file: Path) -> str:
    """A figure at half size, embedded: each 2 x 2 pixels are averaged."""
    pixels = plt.imread(file)
    rows, columns = (n // 2 for n in pixels.shape[:2])
    halved = pixels[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2, -1).mean(axis=(1, 3))
    small = io.BytesIO()
    plt.imsave(small, np.clip(halved, 0, 1), metadata={"Software": None})
    data, name = base64.b64encode(small.getvalue()).decode("ascii"), escape(file.stem)
    return (
        f'<figure style="margin:0;width:{columns}px"><img alt="{name}" '
        f'src="data:image/png;base64,{data}"><figcaption>{name}</figcaption></figure>'
    )


def gallery(study):
    """All figures of the other notebooks as one HTML page part, grouped by notebook."""
    from IPython.display import HTML

    files = sorted(paths.figures(study.name).glob("[0-9][1-9]_*.png"))
    if not files:
        return HTML("<p>This study has no figures yet: run the other notebooks first.</p>")
    blocks = []
    for number in dict.fromkeys(file.name[:2] for file in files):
        title = SECTION_TITLES.get(number.lstrip("0"), "Robustness")
        pictures = "".join(_picture(file) for file in files if file.name.startswith(number))
        blocks.append(
            f"<h4>{number} {escape(title)}</h4>"
            f'<div style="display:flex;flex-wrap:wrap;gap:12px">{pictures}</div>'
        )
    return HTML("".join(blocks))
