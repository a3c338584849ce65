"""What the notebooks found, together: the claims and the gallery. Reads results, computes nothing.

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

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.files import read_csv, write_text
from tokenshift_utils.report.tables import to_html, to_markdown
from tokenshift_utils.sections.claims import (
    EVIDENCE_COLUMNS,
    SUPPORTED,
    VERDICTS,
    criteria_log,
    evaluate,
)

RUN_AGAIN = "delete it and run the notebook that makes it again (tokenshift reproduce)"
SECTIONS = {
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
    return evaluate(roles(study), evidence, study.statistics.confidence)


def roles(study) -> dict[str, set]:
    """Kind and recipe of the study's models, by which claims ask for them."""
    return {name: {spec.kind, spec.recipe} for name, spec in study.models.items()}


def write_criteria_log(study) -> str:
    """Write ``results/<study>/criteria_log.md``; returns the log as HTML that unfolds."""
    log = criteria_log()
    text = (
        "Changes of the claims' criteria since they were first fixed; `seen` says whether a change was\n"
        "made before or after the numbers that it decides were seen.\n\n"
    )
    file = paths.results(study.name) / "criteria_log.md"
    write_text(file, f"# Criteria that changed\n\n{text}{to_markdown(log)}")
    title = f"{len(log)} changes of criteria ({paths.display(file)})"
    return f"<details><summary>{title}</summary>\n{to_html(log)}\n</details>"


def section_claims(study, evidence: pd.DataFrame, section: int, seeds=None) -> pd.DataFrame:
    """The rows of `claims_table` of one section, from its evidence and its intervals over seeds."""
    if seeds is not None:
        evidence = pd.concat([part for part in (evidence, seeds) if len(part)])
    table = claims_table(study, evidence)
    return table[table["claim"].str.startswith(f"{section}-")].reset_index(drop=True)


def say_claims(table: pd.DataFrame) -> str:
    """Which claims reproduced and which did not: a line a verdict, and one on multiplicity."""
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
    lost = held[held["p_holm"] > 0.025]
    if len(held):
        named = ", ".join(f"{c} ({s})" for c, s in zip(lost["claim"], lost["subject"]))
        lines.append(
            "Corrected for the number of claims in a section (Holm), "
            + (f"these are no longer supported: {named}." if len(lost) else "all of these stay.")
        )
    return "\n".join(lines)


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
    """All figures of the study as one HTML page part, grouped by notebook."""
    from IPython.display import HTML

    files = sorted(paths.figures(study.name).glob("[0-9][0-9]_*.png"))
    if not files:
        return HTML("<p>This study has no figures yet: run the other notebooks first.</p>")
    blocks = []
    for number in dict.fromkeys(file.name[:2] for file in files):
        title = SECTIONS.get(number.lstrip("0"), "Robustness")
        pictures = "".join(_picture(file) for file in files if file.name.startswith(number))
        blocks.append(
            f"<h4>{number} {escape(title)}</h4>"
            f'<div style="display:flex;flex-wrap:wrap;gap:12px">{pictures}</div>'
        )
    return HTML("".join(blocks))
