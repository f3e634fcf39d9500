"""What `import zeroseg_jax` shows, and how it is installed."""

import ast
import os
import subprocess
import sys
from configparser import ConfigParser
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import zeroseg_jax

ROOT = Path(__file__).parents[1]


def test_names_and_version():
    assert {"InputError", "__version__", "load", "load_clip"} <= set(dir(zeroseg_jax))
    assert zeroseg_jax.__version__.count(".") == 2
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["metadata"]["version"] == "attr: zeroseg_jax.__version__"


def test_an_editable_install_is_found_from_the_folder_above_a_clone(tmp_path):
    """A clone has the package's name, and would be taken for it."""
    clone = tmp_path / "zeroseg_jax"
    (clone / "zeroseg_jax").mkdir(parents=True)
    (clone / "setup.cfg").write_text((ROOT / "setup.cfg").read_text())
    (clone / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (clone / "README.md").write_text("")
    (clone / "zeroseg_jax/__init__.py").write_text('__version__ = "0.1.0"\n')
    build = "import setuptools.build_meta as m; m.build_editable('wheels')"
    (clone / "wheels").mkdir()
    subprocess.run([sys.executable, "-c", build], cwd=clone, check=True, capture_output=True)
    (wheel,) = (clone / "wheels").iterdir()
    installed = tmp_path / "installed"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, installed], check=True)
    code = f"import site; site.addsitedir({str(installed)!r}); import zeroseg_jax; print(zeroseg_jax.__version__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.stdout == "0.1.0\n", run.stderr


def test_other_libraries_are_quiet():
    """Without torch, which users need not have, transformers would say that it finds none."""
    code = """
import importlib.util, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else real(name, *rest)
import pytest

import zeroseg_jax
from transformers import CLIPTokenizer
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == run.stderr == ""


TRAINING = ("array_record", "cykooz_resizer", "grain", "matplotlib", "tensorboardX", "tensorflow_datasets")
"""What the extra `train` installs and nothing else here needs."""

WITHOUT_TRAINING = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {TRAINING!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


@pytest.mark.end_to_end
def test_segmenting_needs_nothing_of_the_extra_for_training(tmp_path):
    code = """
import numpy as np, zeroseg_jax
from zeroseg_jax.segment.__main__ import main
model = zeroseg_jax.load("demo")
result = model.segment(np.zeros((96, 96, 3), np.uint8), ["a star", "\u661f"])
result.save("overlay.png")
sys.exit(main(["overlay.png", "--model", "demo", "--labels", "star,grass", "--out", "out"]))
"""
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRAINING + code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out/overlay_mask.png").exists()


@pytest.mark.end_to_end
def test_training_without_its_extra_says_what_to_install(tmp_path):
    command = f"sys.argv = ['main.py', '--config={ROOT}/configs/demo.py', '--workdir=run']; import runpy"
    code = f"{WITHOUT_TRAINING}{command}; runpy.run_path('{ROOT}/main.py', run_name='__main__')"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].endswith("pip install 'zeroseg_jax[train]' (here: '.[train]')")


@pytest.mark.end_to_end
def test_loading_a_model_imports_nothing_of_the_training():
    code = """
import sys
import zeroseg_jax.segment.io
print(*(name for name in sys.modules if name.startswith(("zeroseg_jax.distill", "zeroseg_jax.train"))))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def imports(path: Path, modules: set[str]) -> set[str]:
    """The modules of the package that a file imports when it is imported itself."""
    names: set[str] = set()
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                submodule = f"{statement.module}.{alias.name}"
                names.add(submodule if submodule in modules else str(statement.module))
    return names & modules


def test_layers():
    """No circle of imports, and no training among what segmenting, models and `ops` import."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "zeroseg_jax").rglob("*.py")
    }
    graph = {name: imports(path, set(paths)) for name, path in paths.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError

    inference, reached = ("zeroseg_jax.segment", "zeroseg_jax.models", "zeroseg_jax.ops"), set[str]()
    waiting = [name for name in graph if name.startswith(inference)]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += graph[name]
    assert "zeroseg_jax.data.decode" in reached
    assert not [name for name in reached if name.startswith(("zeroseg_jax.distill", "zeroseg_jax.train"))]
