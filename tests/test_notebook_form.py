"""The form of the notebooks: short cells, literal parameters, no paths, an interpretation after."""

import ast
import itertools
import re
from pathlib import Path

import jupytext
import pytest

from tokenshift_utils.run.notebook import PARAMETERS

SOURCES = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9][0-9]_*.py"))


def cells(path, kind):
    return [cell for cell in jupytext.read(path).cells if cell.cell_type == kind]


@pytest.fixture(params=SOURCES, ids=lambda path: path.stem)
def notebook(request):
    return request.param


def test_there_is_a_source_for_every_notebook():
    assert [path.stem for path in SOURCES] == sorted(PARAMETERS)


def test_cells_are_few_and_short(notebook):
    code = [cell.source for cell in cells(notebook, "code")]
    assert len(code) <= 15
    assert max(len(source.splitlines()) for source in code) <= 12
    assert sum(source.count("def ") for source in code) <= 1


def test_first_cell_is_a_title_and_second_the_parameters(notebook):
    first, second = jupytext.read(notebook).cells[:2]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert second.metadata["tags"] == ["parameters"]


def test_parameters_are_literals_with_a_comment_and_declared(notebook):
    source = cells(notebook, "code")[0].source
    names = []
    for line, node in zip(source.splitlines(), ast.parse(source).body, strict=True):
        assert isinstance(node, ast.Assign) and isinstance(ast.literal_eval(node.value), str | None)
        assert "  # " in line, line
        names.append(node.targets[0].id)
    assert names == ["study", *PARAMETERS[notebook.stem]]


def test_second_code_cell_validates(notebook):
    assert f'nb = start("{notebook.stem}", globals())' in cells(notebook, "code")[1].source


def test_no_absolute_path_and_no_download(notebook):
    text = notebook.read_text(encoding="utf-8")
    assert not re.search(r"[\"'](/|~|[A-Z]:\\\\)", text)
    assert "http" not in text and "from_pretrained" not in text


def test_every_figure_has_text_before_it_and_words_after_it(notebook):
    found = jupytext.read(notebook).cells
    drawing = [i for i, c in enumerate(found) if "nb.figure(" in c.source]
    for i in drawing:
        before = found[i - 1] if found[i - 1].cell_type == "markdown" else found[i - 2]
        assert before.cell_type == "markdown", found[i].source
        code = [c.source for c in found[i:] if c.cell_type == "code"][:3]
        assert any("nb.say(" in source for source in code), found[i].source


def test_every_table_says_what_it_holds_and_every_figure_has_words_for_who_cannot_see_it(notebook):
    for call in ast.walk(ast.parse("\n".join(c.source for c in cells(notebook, "code")))):
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("nb.table", "nb.figure"):
            words = [*call.args[2:], *(k.value for k in call.keywords if k.arg in ("holds", "alt"))]
            assert words, ast.unparse(call)


def test_a_notebook_imports_its_section_and_the_helper(notebook):
    """Of the package; the lists of names stay short."""
    modules = []
    for node in ast.walk(ast.parse("\n".join(c.source for c in cells(notebook, "code")))):
        if isinstance(node, ast.ImportFrom | ast.Import):
            modules.append(getattr(node, "module", None) or node.names[0].name)
    ours = {m for m in modules if m.startswith("tokenshift_utils")}
    assert len(ours) <= 2 and "tokenshift_utils.run.notebook" in ours, ours
    assert set(modules) == ours, modules


def test_headings_form_an_outline(notebook):
    levels = [
        len(line) - len(line.lstrip("#"))
        for cell in cells(notebook, "markdown")
        for line in cell.source.splitlines()
        if line.startswith("#")
    ]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_header_names_the_kernel_and_no_version(notebook):
    head = notebook.read_text(encoding="utf-8").split("# %%")[0]
    assert "name: python3" in head and "version" not in head
