"""The notebooks as sources: in sync with their .py, bare of outputs, short, and parameterised."""

import ast

import jupytext
import nbformat
import pytest
from conftest import CHECKOUT

from tokenshift_utils.notebook import PARAMETERS

NOTEBOOKS = sorted((CHECKOUT / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_has_its_parameters_declared_and_its_source_beside_it():
    assert [path.stem for path in NOTEBOOKS] == sorted(PARAMETERS)
    sources = sorted(path.stem for path in (CHECKOUT / "notebooks").glob("*.py"))
    assert sources == sorted(PARAMETERS)


@each_notebook
def test_source_and_notebook_are_in_sync(path):
    source, notebook = jupytext.read(path.with_suffix(".py")), nbformat.read(path, as_version=4)
    for ours in (source, notebook):
        for cell in ours.cells:
            cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
    assert [(cell.cell_type, cell.source, cell.metadata) for cell in source.cells] == [
        (cell.cell_type, cell.source, cell.metadata) for cell in notebook.cells
    ]


@each_notebook
def test_notebook_is_valid_and_carries_no_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"  # Papermill needs to know
    for cell in code_cells(notebook):
        assert cell.outputs == [] and cell.execution_count is None


@each_notebook
def test_source_header_holds_the_kernel_only(path):
    header = path.with_suffix(".py").read_text().split("# ---")[1]
    assert "kernelspec" in header and "jupytext" not in header


@each_notebook
def test_parameters_come_first_as_literals_with_a_comment_each_and_are_validated(path):
    first, second = code_cells(nbformat.read(path, as_version=4))[:2]
    assert first.metadata.tags == ["parameters"]
    body = ast.parse(first.source).body
    assert [node.targets[0].id for node in body] == ["study", *PARAMETERS[path.stem]]
    for node in body:
        ast.literal_eval(node.value)  # a value derived here would go stale under Papermill
    assert ast.literal_eval(body[0].value) == "tiny"
    assert all("#" in line for line in first.source.splitlines() if line.strip())
    assert f'start("{path.stem}", globals())' in second.source


@each_notebook
def test_notebook_is_short_and_leaves_logic_to_the_package(path):
    cells = code_cells(nbformat.read(path, as_version=4))
    trees = [ast.parse(cell.source) for cell in cells]
    functions = [
        node
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    ]
    assert len(cells) <= 18 and len(functions) <= 1
    assert max(len(cell.source.splitlines()) for cell in cells) <= 15


@each_notebook
def test_no_absolute_path_and_no_training_or_download(path):
    text = path.with_suffix(".py").read_text()
    for word in ('"/', "'/", "from_pretrained", "snapshot_download", "training.run", "chdir"):
        assert word not in text
