"""docs/config.md lists every key of a config, as the code has it now."""

import importlib.util
from pathlib import Path

from zeroseg_jax.config import default_config, flatten

ROOT = Path(__file__).parents[1]


def test_the_page_is_up_to_date_and_has_every_key():
    spec = importlib.util.spec_from_file_location("config_page", ROOT / "docs/config_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs/config.md").read_text(encoding="utf-8")
    assert page == module.make_page(), "run python docs/config_page.py"
    for key in flatten(default_config()):
        (row,) = [
            line for line in page.split("## Training a teacher")[0].splitlines() if line.startswith(f"| `{key}` |")
        ]
        assert key.startswith("student.") or not row.endswith("|  |"), f"{key} has no comment in zeroseg_jax/config.py"
