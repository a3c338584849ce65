"""The overview: evidence of whichever notebooks ran, verdicts, the gallery."""

import made_up
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from tokenshift_utils import paths
from tokenshift_utils.report.style import save_figure
from tokenshift_utils.report.tables import write_table
from tokenshift_utils.sections import overview
from tokenshift_utils.sections.claims import SEEDS_COLUMNS
from tokenshift_utils.sections.common import evidence

STUDY = made_up.study()


@pytest.fixture(autouse=True)
def _root(tmp_path, monkeypatch):
    (tmp_path / "notebooks" / "studies").mkdir(parents=True)
    monkeypatch.setenv("TOKENSHIFT_HOME", str(tmp_path))


def leave(number, *rows):
    write_table(evidence(list(rows)), paths.tables(STUDY.name), f"{number}_evidence")


def test_without_results_everything_is_untestable_and_nothing_breaks():
    table = overview.claims_table(STUDY, overview.read_evidence(STUDY.name))
    assert set(table["verdict"]) == {"not testable"} and len(table) > 30
    assert "no figures yet" in overview.gallery(STUDY).data


def test_evidence_of_all_notebooks_is_judged_together():
    leave("01", ("near_zero_share", "dapo", (0.9, 0.88, 0.92), ""))
    leave("03", ("rank3", "dapo", (0.7, 0.65, 0.75), ""), ("rank1", "dapo", None, "no high JS"))
    table = overview.claims_table(STUDY, overview.read_evidence(STUDY.name)).set_index(
        ["claim", "subject"]
    )
    assert table.loc[("1-sparsity-dapo", "dapo"), "verdict"] == "supported"
    assert table.loc[("1-sparsity-dapo", "dapo"), "measured"] == "0.9 [0.88, 0.92]"
    assert table.loc[("3-rank3-dapo", "dapo"), "verdict"] == "not supported"
    assert table.loc[("3-rank1", "dapo"), "measured"] == "no high JS"


def test_section_claims_and_their_wording():
    leave("01", ("near_zero_share", "dapo", (0.9, 0.88, 0.92), ""))
    rows = overview.section_claims(STUDY, overview.read_evidence(STUDY.name), 1)
    assert rows["claim"].str.startswith("1-").all()
    said = overview.say_claims(STUDY, rows)
    assert "**Supported** (1): 1-sparsity-dapo (dapo)." in said and "all of these stay" in said
    assert "Not supported" not in said and len(said.splitlines()) == 3
    row = {"quantity": "near_zero_share", "subject": "dapo", "seeds": 3, "note": ""}
    seeds = pd.DataFrame([row | {"value": 0.9, "low": 0.8, "high": 1.0}])
    found = overview.read_evidence(STUDY.name)
    said = overview.say_claims(STUDY, overview.section_claims(STUDY, found, 1, seeds))
    assert "not over the few training seeds: 1-sparsity-dapo (dapo)." in said


def test_intervals_over_seeds_stand_beside_and_decide_between_recipes():
    leave(
        "01",
        ("near_zero_share", "dapo", (0.9, 0.88, 0.92), ""),
        ("wider_difference", "dapo", (0.2, 0.1, 0.3), ""),
    )
    seeds = [
        ("near_zero_share", "dapo", 3, 0.85, 0.8, 0.9),
        ("wider_difference", "dapo", 3, -0.2, -0.3, -0.1),
    ]
    write_table(
        pd.DataFrame(seeds, columns=list(SEEDS_COLUMNS)), paths.tables(STUDY.name), "01_seeds"
    )
    table = overview.claims_table(STUDY, overview.read_evidence(STUDY.name)).set_index(
        ["claim", "subject"]
    )
    row = table.loc[("1-sparsity-dapo", "dapo")]
    assert row["verdict"] == "supported" and row["seeds"] == "0.85 [0.8, 0.9] (3 seeds)"
    row = table.loc[("1-dapo-wider", "dapo")]
    assert row["verdict"] == "not supported" and row["measured"] == "-0.2 [-0.3, -0.1] (3 seeds)"


def test_the_log_of_criteria_is_written_and_unfolds():
    page = overview.write_criteria_log(STUDY).data
    text = (paths.results(STUDY.name) / "criteria_log.md").read_text()
    assert "4-boosts-alike" in text and "4-boosts-alike" in page and "<details>" in page


def test_an_empty_table_of_evidence_is_no_trouble():
    leave("04")
    assert overview.read_evidence(STUDY.name).empty


def test_gallery_embeds_every_figure_by_notebook():
    for name in ("01_position", "05_support"):
        fig, _ = plt.subplots(figsize=(1, 1))
        save_figure(fig, paths.figures(STUDY.name), name)
    page = overview.gallery(STUDY).data
    assert page.count("data:image/png;base64,") == 2
    assert page.index("Divergence characterization") < page.index("Robustness")


def test_leading_claims_stand_side_by_side_with_those_not_measured():
    leave(
        "01",
        ("near_zero_share", "dapo", (0.9, 0.88, 0.92), ""),
        ("answer_ratio", "dapo", (0.5, 0.4, 0.6), ""),
    )
    leave("03", ("rank1", "dapo", (0.39, 0.35, 0.45), ""))
    studies, without = overview.side_by_side(STUDY)
    assert list(studies) == [STUDY.name] and without == []
    table = overview.forest_table(studies).set_index("claim")
    assert table.loc["1-sparsity-dapo", "margin"] == pytest.approx(7)
    assert table.loc["1-end", "margin_high"] == pytest.approx(-40)
    straddles = table.loc["3-rank1", ["margin_low", "margin", "margin_high"]].tolist()
    assert straddles == pytest.approx([-5, 1, 5])
    assert table.loc["3-jaccard-late", "label"] == "not measured"
    never = table.loc[["1-end"]].assign(margin=-np.inf, margin_low=-np.inf)
    fig = overview.plot_forest(pd.concat([table, never]).reset_index(), studies)
    assert np.isfinite(fig.axes[0].get_xlim()).all()
    texts = [text.get_text() for text in fig.axes[0].texts]
    assert "holds" in texts and "not measured" in texts
    said = overview.say_verdicts(overview.verdict_table(studies), ["other"])
    assert "of 3 claims" in said and "1 hold, 1 do not, 1 undecided" in said
    assert "Not computed here: other." in said
    leave("02", ("recovered", "dapo", (0.5, 0.4, 0.6), ""), ("lost", "dapo", (0.95, 0.92, 1.0), ""))
    said = overview.say_verdicts(overview.verdict_table(studies), [])
    assert "of 2 that the design makes near certain, 1 hold, 1 do not, 0 undecided" in said


def test_the_open_questions_are_answered_from_tables_or_said_to_be_open():
    table, said = overview.open_questions({STUDY.name: STUDY})
    assert len(table) == 15 and set(table[STUDY.name]) == {"not measured"}
    assert "not measured: 1, 2, 3" in said
    leave("01", ("answer_ratio", "dapo", (0.5, 0.4, 0.6), ""))
    sources = pd.DataFrame({"trajectories": ["its own"], "benchmark": ["Easy"]})
    share = {"nucleus_high": [0.02], "nucleus_high_low": [0.01], "nucleus_high_high": [0.03]}
    write_table(sources.assign(**share), paths.tables(STUDY.name), "05_trajectories")
    table = overview.open_questions({STUDY.name: STUDY})[0].set_index("number")
    assert table.loc[9, "answer"] == "high-JS positions: 2.0% [1.0, 3.0] on its own"
    assert "0.5 [0.4, 0.6], not supported" in table.loc[11, "answer"]
    assert table.loc[6, STUDY.name] == "in part" and table.loc[1, STUDY.name] == "not measured"
