"""The validation cell: parameters refused or applied, with and without Papermill."""

import pytest

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.run.notebook import PARAMETERS, Notebook, start
from tokenshift_utils.study.study import Study, load_study


def namespace(notebook: str, *cells: str, **values) -> dict:
    """The globals of a notebook whose parameters cell and the cells given have run."""
    return {"study": "tiny", **dict.fromkeys(PARAMETERS[notebook]), "In": ["", *cells], **values}


def test_none_means_as_in_the_study(capsys):
    nb = start("02_cross_sampling", namespace("02_cross_sampling"))
    assert nb.study == load_study("tiny") and nb.number == "02"
    assert "torch 2.13.0" in capsys.readouterr().out


def test_values_override_the_study_and_are_told(capsys):
    cell = "# Parameters\nthresholds = [0.1]\nrandom_rates = []\n"
    values = {"thresholds": [0.1], "random_rates": []}
    nb = start("02_cross_sampling", namespace("02_cross_sampling", cell, **values))
    assert nb.study.cross_sampling.thresholds == (0.1,)
    assert "thresholds = [0.1] here" in capsys.readouterr().out


def test_injected_unknown_parameter_is_refused():
    cell = '# Parameters\nstudy = "smoke"\ntop_q = 0.9\n'
    with pytest.raises(TokenshiftError, match="no parameter 'top_q': it has study, pairs"):
        start("02_cross_sampling", namespace("02_cross_sampling", cell, top_q=0.9))


def test_renamed_parameter_is_noticed():
    values = namespace("02_cross_sampling")
    values["treshold"] = values.pop("thresholds")
    with pytest.raises(TokenshiftError, match="needs the parameter 'thresholds'"):
        start("02_cross_sampling", values)


def test_value_out_of_range_is_refused():
    with pytest.raises(TokenshiftError, match=r"'cross_sampling.top_p' is 1.5"):
        start("02_cross_sampling", namespace("02_cross_sampling", top_p=1.5))


def test_study_without_the_section_is_refused(mini_root):
    with pytest.raises(TokenshiftError, match="no 'robustness' section"):
        start("05_robustness", namespace("05_robustness", study="mini"))


@pytest.mark.parametrize("notebook", PARAMETERS)
def test_parameters_stand_for_study_keys(notebook):
    for key in PARAMETERS[notebook].values():
        model = Study
        *parents, last = key.split(".")
        for parent in parents:
            annotation = model.model_fields[parent].annotation
            model = annotation if isinstance(annotation, type) else annotation.__args__[0]
        assert last in model.model_fields


def test_artefacts_are_named_after_the_notebook_and_repeat_exactly(mini_root):
    import matplotlib.pyplot as plt
    import pandas as pd

    nb = Notebook("02_cross_sampling", load_study("mini"))
    made = []
    for _ in range(2):
        figure, axis = plt.subplots()
        axis.plot([0, 1], [1, 0])
        nb.figure(figure, "curve", alt="a falling line")
        frame = pd.DataFrame({"x": [0.5], "x_low": [0.4], "x_high": [0.6]})
        nb.table(frame, "shares", "shares of nothing")
        files = [*paths.figures("mini").iterdir(), *paths.tables("mini").iterdir()]
        made.append({file.name: file.read_bytes() for file in files})
    assert sorted(made[0]) == [
        *("02_curve.pdf", "02_curve.png", "02_shares.csv", "02_shares.md", "02_shares.tex")
    ]
    assert made[0] == made[1]


def shown_by(monkeypatch, call) -> list[dict]:
    """What a call displays, as bundles by media type."""

    shown = []
    monkeypatch.setattr(
        "tokenshift_utils.run.notebook.display", lambda data, raw=False: shown.append(data)
    )
    call()
    return shown


def test_a_table_is_folded_says_what_it_holds_and_shows_at_most_12_rows_and_8_columns(
    mini_root, monkeypatch
):
    import pandas as pd

    nb = Notebook("02_cross_sampling", load_study("mini"))
    frame = pd.DataFrame({f"c{i}": range(20) for i in range(10)})
    frame = frame.assign(share=0.5, share_low=0.25, share_high=0.75)
    frame.insert(0, "name", "<b>")
    shown = shown_by(monkeypatch, lambda: nb.table(frame, "wide", "what is <in> it"))
    html = shown[0]["text/html"]
    assert html.startswith("<details><summary>Table: what is &lt;in&gt; it (12 of 20 rows, 8 of 12")
    assert "results/mini/tables/02_wide.csv" in html and html.count("<tr>") == 13
    assert html.count("<th ") == 8 and "&lt;b&gt;" in html and "<b>" not in html
    chosen = shown_by(monkeypatch, lambda: nb.table(frame, "w", "it", ["name", "share"], rows=1))
    assert "<td>50.0%<br><small" in chosen[0]["text/html"]
    assert "[25.0, 75.0]" in chosen[0]["text/html"] and chosen[0]["text/html"].count("<tr>") == 2


def test_sentences_are_markdown_one_item_a_line(mini_root, monkeypatch):
    nb = Notebook("02_cross_sampling", load_study("mini"))
    assert shown_by(monkeypatch, lambda: nb.say("JS ~ $1"))[0]["text/markdown"] == r"JS \~ \$1"
    two = shown_by(monkeypatch, lambda: nb.say("one\n  two\n"))[0]
    assert two["text/markdown"] == "- one\n- two" == two["text/plain"]
