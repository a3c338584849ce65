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
from tokenshift_utils.files import read_csv
from tokenshift_utils.report.tables import to_markdown
from tokenshift_utils.sections.claims import EVIDENCE_COLUMNS, VERDICTS, evaluate

RUN_AGAIN = "delete it and run the notebook that makes it again (tokenshift reproduce)"
SECTIONS = {
    "1": "Divergence characterization",
    "2": "Cross-sampling",
    "3": "Token mechanics",
    "4": "Weighted objective",
}


def read_evidence(study) -> pd.DataFrame:
    """The evidence that the notebooks wrote for this study, together; empty where there is none."""
    files = sorted(paths.tables(study.name).glob("[0-9][0-9]_*evidence.csv"))
    parts = [read_csv(file, RUN_AGAIN, dtype={"note": object}) for file in files]
    parts = [part for part in parts if len(part)]
    if not parts:
        return pd.DataFrame(columns=list(EVIDENCE_COLUMNS))
    return pd.concat(parts, ignore_index=True)


def claims_table(study, evidence: pd.DataFrame) -> pd.DataFrame:
    """All claims of the paper with what was measured and the verdict, one row a claim and subject."""
    roles = {name: {spec.kind, spec.recipe} for name, spec in study.models.items()}
    return evaluate(roles, evidence)


def section_claims(study, evidence: pd.DataFrame, section: int) -> pd.DataFrame:
    """The claims of one section: claim, subject, measured, verdict."""
    table = claims_table(study, evidence)
    rows = table[table["claim"].str.startswith(f"{section}-")]
    return rows[["claim", "subject", "measured", "verdict"]].reset_index(drop=True)


def say_claims(table: pd.DataFrame) -> str:
    """Which claims reproduced and which did not, one line a verdict."""
    lines = []
    for verdict in VERDICTS:
        rows = table[table["verdict"] == verdict]
        named = ", ".join(f"{c} ({s})" for c, s in zip(rows["claim"], rows["subject"]))
        lines.append(f"{verdict} ({len(rows)}): {named or 'none'}")
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
