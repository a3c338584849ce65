"""The overview: evidence of whichever notebooks ran, verdicts, the gallery."""

import made_up
import matplotlib.pyplot as plt
import pytest

from tokenshift_utils import paths
from tokenshift_utils.report.style import save_figure
from tokenshift_utils.report.tables import write_table
from tokenshift_utils.sections import overview
from tokenshift_utils.sections.common import evidence

STUDY = made_up.study()


@pytest.fixture(autouse=True)
def _root(tmp_path, monkeypatch):
    (tmp_path / "notebooks" / "studies").mkdir(parents=True)
    monkeypatch.setenv("TOKENSHIFT_HOME", str(tmp_path))


def leave(number, *rows):
    write_table(evidence(list(rows)), paths.tables(STUDY.name), f"{number}_evidence")


def test_without_results_everything_is_untestable_and_nothing_breaks():
    table = overview.claims_table(STUDY, overview.read_evidence(STUDY))
    assert set(table["verdict"]) == {"not testable"} and len(table) > 30
    assert "no figures yet" in overview.gallery(STUDY).data


def test_evidence_of_all_notebooks_is_judged_together():
    leave("01", ("near_zero_share", "dapo", (0.9, 0.88, 0.92), ""))
    leave("03", ("rank3", "dapo", (0.7, 0.65, 0.75), ""), ("rank1", "dapo", None, "no high JS"))
    table = overview.claims_table(STUDY, overview.read_evidence(STUDY)).set_index(
        ["claim", "subject"]
    )
    assert table.loc[("1-sparsity-dapo", "dapo"), "verdict"] == "supported"
    assert table.loc[("1-sparsity-dapo", "dapo"), "measured"] == "0.9 [0.88, 0.92]"
    assert table.loc[("3-rank3-dapo", "dapo"), "verdict"] == "not supported"
    assert table.loc[("3-rank1", "dapo"), "measured"] == "no high JS"


def test_section_claims_and_their_wording():
    leave("01", ("near_zero_share", "dapo", (0.9, 0.88, 0.92), ""))
    rows = overview.section_claims(STUDY, overview.read_evidence(STUDY), 1)
    assert rows["claim"].str.startswith("1-").all()
    said = overview.say_claims(rows)
    assert "supported (1): 1-sparsity-dapo (dapo)" in said
    assert "not supported (0): none" in said


def test_an_empty_table_of_evidence_is_no_trouble():
    leave("04")
    assert overview.read_evidence(STUDY).empty


def test_gallery_embeds_every_figure_by_notebook():
    for name in ("01_position", "05_support"):
        fig, _ = plt.subplots(figsize=(1, 1))
        save_figure(fig, paths.figures(STUDY.name), name)
    page = overview.gallery(STUDY).data
    assert page.count("data:image/png;base64,") == 2
    assert page.index("Divergence characterization") < page.index("Robustness")
