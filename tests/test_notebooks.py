"""Each notebook says what its text does, and runs from top to bottom on what the package ships."""

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
STUDENT = {"encoder": "mae", "width": 32, "depth": 1, "heads": 2}
OVERRIDES = {f"student.{key}": value for key, value in STUDENT.items()} | {"eval.rename": "", "eval.baselines": ()}
SMALL = {
    "segment": {"SCENES": 2},
    "distill": {"STEPS": 2, "IMAGES": 16, "SCENES": 2, "OVERRIDES": OVERRIDES},
    "evaluate": {"SCENES": 2},
}
"""Values of each notebook's parameters that make it quick; what is left out takes long to compile."""


def contents(notebook: nbformat.NotebookNode) -> list[tuple]:
    return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook(path, tmp_path, monkeypatch):
    notebook = nbformat.read(path, as_version=4)
    text = jupytext.read(path.with_suffix(".py"))
    assert contents(notebook) == contents(text), "the pair differs: run `jupytext --sync notebooks/*.py`"
    assert notebook.metadata.jupytext.formats == "ipynb,py:percent"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), "clear the outputs before committing"

    (parameters,) = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    for name, value in SMALL[path.stem].items():
        assert f"{name} = " in parameters.source
        parameters.source += f"\n{name} = {value!r}"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert any("image/png" in output.get("data", {}) for output in code[-1].outputs), "it should end in a picture"
