"""Tables: intervals in three columns for machines, in one cell for readers."""

import math

import numpy as np
import pandas as pd

from tokenshift_utils.report.tables import text_table, to_latex, to_markdown, write_table

FRAME = pd.DataFrame(
    {
        "pair": ["DAPO", "a_b & c|d"],
        "positions": [1200, 7],
        "share": [0.8312, np.nan],
        "share_low": [0.8, np.nan],
        "share_high": [0.86, np.nan],
        "growth": [np.inf, -0.0],
        "finished": [True, False],
    }
)


def test_readers_see_the_interval_beside_the_value():
    text = text_table(FRAME)
    assert list(text.columns) == ["pair", "positions", "share", "growth", "finished"]
    assert list(text["share"]) == ["83.1% [80.0, 86.0]", "–"]
    assert list(text["growth"]) == ["∞", "0.000"] and list(text["finished"]) == ["yes", "no"]


def test_a_value_without_interval_says_so():
    frame = FRAME.assign(share=0.5)
    assert text_table(frame)["share"].iloc[1] == "50.0% (too few for an interval)"


def test_small_and_large_numbers_keep_three_digits():
    frame = pd.DataFrame({"small": [0.00123, 0.0004], "large": [12345.6, 7.0]})
    text = text_table(frame)
    assert list(text["small"]) == ["0.00123", "0.00040"]
    assert list(text["large"]) == ["12346", "7"]


def test_values_far_below_the_largest_keep_two_digits():
    frame = pd.DataFrame({"share": [1.0, 0.0312, 0.00042, 0.0, math.nan]})
    assert list(text_table(frame)["share"]) == ["100.0%", "3.1%", "0.042%", "0.0%", "–"]
    frame = frame.assign(share_low=[1.0, 0.03, 0.0, 0.0, math.nan], share_high=frame["share"])
    assert list(text_table(frame)["share"])[1:3] == [
        "3.1% [3.0, 3.1]",
        "0.042% [0.000, 0.042]",
    ]


def test_settings_are_shown_as_the_study_gives_them():
    frame = pd.DataFrame({"threshold": [-1.0, 0.001, 0.35], "gain": [math.nan, 0.5, 1.0]})
    text = text_table(frame)
    assert list(text["threshold"]) == ["-1", "0.001", "0.35"]
    assert list(text["gain"]) == ["–", "0.5", "1"]


def test_markdown_and_latex_escape():
    assert "a_b & c\\|d" in to_markdown(FRAME)
    latex = to_latex(FRAME)
    assert r"a\_b \& c|d" in latex and r"$\infty$" in latex and latex.count(r"\\") == 3


def test_no_cell_is_a_value_plus_minus_something():
    """A known fault: '±' that is a standard deviation, called uncertainty."""
    assert "±" not in to_markdown(FRAME) + to_latex(FRAME)


def test_csv_keeps_the_columns(tmp_path):
    csv, md, tex = write_table(FRAME, tmp_path / "tables", "01_sparsity")
    assert [p.name for p in (csv, md, tex)] == [
        "01_sparsity.csv",
        "01_sparsity.md",
        "01_sparsity.tex",
    ]
    pd.testing.assert_frame_equal(pd.read_csv(csv), FRAME, check_dtype=False)


def test_rows_of_different_quantities_keep_their_own_decimals():
    frame = pd.DataFrame({"quantity": ["share", "ratio"], "value": [0.0271, 28.42]})
    assert list(text_table(frame)["value"]) == ["0.0271", "28.4"]
