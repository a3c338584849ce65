"""Each notebook's .ipynb is what its .py says, bare of outputs."""

import jupytext
import nbformat
import pytest
from conftest import CHECKOUT

from tokenshift_utils.run.notebook import PARAMETERS

NOTEBOOKS = sorted((CHECKOUT / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_every_notebook_is_there_as_both():
    assert [path.stem for path in NOTEBOOKS] == sorted(PARAMETERS)
    assert sorted(path.stem for path in (CHECKOUT / "notebooks").glob("*.py")) == sorted(PARAMETERS)


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
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
