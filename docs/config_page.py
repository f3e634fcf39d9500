"""Writes docs/config.md, the list of all config keys, from the comments beside them.

python docs/config_page.py
"""

import ast
import inspect
import io
import itertools
import tokenize
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from zeroseg_jax import config as defaults
from zeroseg_jax.config import flatten, load_config
from zeroseg_jax.models import student
from zeroseg_jax.segment.options import FIELDS, description

PAGE = Path(__file__).with_name("config.md")
TEACHER = Path(__file__).parents[1] / "configs/teacher_demo.py"

BEGINNING = """# Every key of a config

`--config.KEY=VALUE` sets a key on the command line; a config file sets it in its `get_config()`. Values are written as
in Python: `--config.data.flip=false`, `--config.views.grids=1,2,3`, `--config.eval.baselines=maskclip,cells`,
`--config.eval.templates="('a {}', '{}')"`. A key that does not exist is refused. The message
names the most similar key.
The defaults below are those of `zeroseg_jax.config.default_config`. A recipe may change them in its file in `configs/`.

This page is made by `python docs/config_page.py` from the comments in the code.
"""


def comments_in(source: str) -> dict[str, str]:
    """The comment of each `config.KEY = ...` in Python code, by key. It is beside the key, or in the lines above it."""
    comments: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ").strip()
    lines, keys = source.splitlines(), {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign) or not ast.unparse(node.targets[0]).startswith("config"):
            continue
        first, last = node.lineno, node.end_lineno or node.lineno
        above = first - 1
        while above in comments and lines[above - 1].lstrip().startswith("#"):
            above -= 1
        beside = [comments[line] for line in range(first, last + 1) if line in comments]
        text = " ".join([comments[line] for line in range(above + 1, first)] + beside)
        key = ast.unparse(node.targets[0]).replace("['", ".").replace("']", "").removeprefix("config.")
        keys[key] = text
    return keys


def comments_of_fields(module: ModuleType, name: str) -> dict[str, str]:
    """The string below each field of a class."""
    (body,) = [
        n.body for n in ast.parse(inspect.getsource(module)).body if isinstance(n, ast.ClassDef) and n.name == name
    ]
    comments = {}
    for node, below in itertools.pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            assert isinstance(node.target, ast.Name)
            comments[node.target.id] = " ".join(str(below.value.value).split())
    return comments


def table(config: ConfigDict, comments: dict[str, str]) -> list[str]:
    """A Markdown table for each group of keys."""
    groups: dict[str, list[str]] = {}
    for key, value in flatten(config).items():
        group, _, _ = key.rpartition(".")
        text = comments.get(key, "").replace("|", r"\|")
        groups.setdefault(group, []).append(f"| `{key}` | `{shown(value)}` | {text} |")
    lines = []
    for group, rows in groups.items():
        about = comments.get(group, "")
        lines += ["", f"### {group or 'The run'}", ""] + ([about[:1].upper() + about[1:] + ".", ""] if about else [])
        lines += ["| key | default | meaning |", "|---|---|---|", *rows]
    return lines


def shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, float) else f"{value:g}"
    return text.replace("|", r"\|")


def make_page() -> str:
    """The whole page."""
    function: Callable = defaults.default_config
    comments = comments_in(inspect.getsource(function))
    comments |= {f"student.{name}": text for name, text in comments_of_fields(student, "StudentConfig").items()}
    comments |= {f"eval.{name}": description(name) for name in FIELDS}
    lines = [BEGINNING, "## Distillation and evaluation", *table(defaults.default_config(), comments)]
    source = TEACHER.read_text(encoding="utf-8")
    lines += ["", "## Training a teacher", "", "Of `configs/teacher_demo.py`, with its values."]
    of_teacher = comments_in(source[source.index("def get_config") :])
    lines += table(load_config(TEACHER), comments | {key: text for key, text in of_teacher.items() if text})
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
