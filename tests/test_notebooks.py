"""Each notebook holds the outputs of a run, equals its text, and runs from top to bottom on what the package ships."""

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from zeroseg_jax.data.scenes.render import scene

ROOT = Path(__file__).parents[1]
STUDENT = {"encoder": "mae", "segment_feature": "mlp", "width": 32, "depth": 1, "heads": 2}
OVERRIDES = {f"student.{key}": value for key, value in STUDENT.items()} | {"eval.rename": "", "eval.baselines": ()}
SMALL = {
    "segment": {"SCENES": 2},
    "distill": {"STEPS": 2, "IMAGES": 16, "SCENES": 2, "OVERRIDES": OVERRIDES},
    "evaluate": {"SCENES": 2},
}
"""Values of each notebook's parameters that make it quick; what is left out takes long to compile."""


def contents(notebook: nbformat.NotebookNode) -> list[tuple]:
    return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]


def pictures(notebook: nbformat.NotebookNode) -> list[str]:
    """The PNGs that its cells show."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]


@pytest.mark.end_to_end
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook(path, tmp_path, monkeypatch):
    notebook = nbformat.read(path, as_version=4)
    text = jupytext.read(path.with_suffix(".py"))
    assert contents(notebook) == contents(text), "the pair differs: run `jupytext --sync notebooks/*.py`"
    assert notebook.metadata.jupytext.formats == "ipynb,py:percent"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert pictures(notebook), "run it and keep its outputs, so that they show on a code host"
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"], "its last run failed"

    (parameters,) = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    values = SMALL[path.stem]
    if path.stem == "distill":  # its last cell takes photographs
        (tmp_path / "photographs").mkdir()
        for seed in range(10):
            Image.fromarray(scene(seed, "test").image).save(tmp_path / "photographs" / f"{seed}.png")
        values = values | {"PHOTOGRAPHS": str(tmp_path / "photographs"), "TEACHER": "demo", "WORDS": "fish,grass"}
    for name, value in values.items():
        assert f"{name} = " in parameters.source
        parameters.source += f"\n{name} = {value!r}"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert len(pictures(notebook)) >= 2
    if path.stem == "distill":
        assert [output for output in code[-1].outputs if "image/png" in output.get("data", {})]
