"""Reading configs: overrides from the command line, checks, and the workdir's config.json."""

import json
import random
from pathlib import Path

import pytest

from zeroseg_jax.config import (
    default_config,
    flatten,
    from_json,
    load_config,
    read_config,
    set_key,
    to_json,
    validate,
)
from zeroseg_jax.config_ranges import RANGES
from zeroseg_jax.errors import InputError


def write(tmp_path, body: str):
    path = tmp_path / "some.py"
    lines = ["from zeroseg_jax.config import default_config", "def get_config():", "    config = default_config()"]
    path.write_text("\n".join([*lines, body, "    return config", ""]))
    return path


def test_overrides_take_the_type_of_the_default(tmp_path):
    path = write(tmp_path, "    config.steps = 7\n")
    config = load_config(
        path,
        [
            ("loss.global", "2"),
            ("mesh.data", "2"),
            ("data.flip", "false"),
            ("views.grids", "(1,4)"),
            ("student.segment_tokens", "[8, 4]"),
            ("data.root", "12"),
        ],
    )
    assert config.steps == 7
    assert config.loss["global"] == 2.0 and isinstance(config.loss["global"], float)
    assert config.mesh.data == 2 and config.data.flip is False
    assert config.views.grids == (1, 4) and config.student.segment_tokens == (8, 4)
    assert config.data.root == "12"


@pytest.mark.parametrize(
    ("key", "text", "told"),
    [
        ("stepz", "3", "did you mean 'steps'"),
        ("loss.globl", "3", "did you mean 'loss.global'"),
        ("lr", "3", "did you mean 'optimizer.lr'"),
        ("data", "3", "set one of data.augment"),
        ("steps", "many", "not of type int"),
        ("steps", "1.5", "not of type int"),
        ("data.flip", "3", "not of type bool"),
        ("views.grids", "abc", "not a list of numbers"),
    ],
)
def test_bad_overrides_are_told(key, text, told):
    with pytest.raises(InputError, match=told):
        set_key(default_config(), key, text)


def test_bad_config_files_are_told(tmp_path):
    with pytest.raises(InputError, match="there is no config file"):
        load_config(tmp_path / "none.py")
    with pytest.raises(InputError, match="steps"):
        load_config(write(tmp_path, "    config.stepz = 3\n"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(InputError, match="get_config"):
        load_config(tmp_path / "empty.py")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"image_size": 100, "student.patch_size": 16},
            "image_size 100 is not divisible by the patch size 16; 96 would be",
        ),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 10, "optimizer.accumulate": 4}, "does not split into optimizer.accumulate=4 parts"),
        ({"data.augment": "none", "teacher.cached_crops": 2}, "set it to 1, or data.augment=crop"),
        ({"data.augment": "center", "teacher.cached_crops": 2}, "with data.augment=center every crop is the same"),
        ({"views.grids": "(1,)"}, "loss.match compares segments with parts of the image"),
        ({"data.augment": "centre"}, "data.augment is 'centre'; it must be one of crop, center, none"),
    ],
)
def test_impossible_values_are_told(changes, told):
    config = default_config()
    for key, value in changes.items():
        set_key(config, key, str(value))
    with pytest.raises(InputError, match=told):
        validate(config)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("eval.baselines", "maskclip,cells", ("maskclip", "cells")),
        ("eval.baselines", "maskclip", ("maskclip",)),
        ("eval.baselines", "", ()),
        ("eval.baselines", "()", ()),
        ("eval.baselines", "('cells', 'windows')", ("cells", "windows")),
        ("views.grids", "1,2,4", (1, 2, 4)),
        ("views.grids", "3", (3,)),
        ("eval.templates", "clip7", "clip7"),
        ("eval.templates", "a photo of a {}, a type of pet", ("a photo of a {}, a type of pet",)),
        ("eval.templates", "('a {}', '{}')", ("a {}", "{}")),
        ("eval.templates", "{}", ("{}",)),
        ("eval.templates", "5", "5"),
    ],
)
@pytest.mark.parametrize("before", ["", "eval.baselines=()", "eval.templates=name"])
def test_lists_on_the_command_line(key, text, value, before, tmp_path):
    overrides = [tuple(before.split("=")), (key, text)] if before else [(key, text)]
    config = load_config(write(tmp_path, "    config.eval.templates = ('the {}',)\n"), overrides)
    found = flatten(config)[key]
    assert ((found,) if isinstance(value, tuple) and isinstance(found, str) else found) == value


def test_a_limit_stays_with_the_images_that_it_was_written_for(tmp_path, caplog):
    path = write(tmp_path, "    config.data.limit, config.eval.limit = 2500, 200\n")
    config = load_config(path)
    assert (config.data.limit, config.eval.limit) == (2500, 200)
    config = load_config(path, [("data.split", "test"), ("data.source", "scenes")])
    assert (config.data.limit, config.eval.limit) == (2500, 200) and not caplog.text
    config = load_config(path, [("data.source", "folder"), ("data.root", "mine")])
    assert (config.data.limit, config.eval.limit) == (0, 200)
    assert "is meant for its own images" in caplog.text and "all images of folder are used" in caplog.text
    config = load_config(path, [("data.source", "folder"), ("data.limit", "7"), ("eval.dataset", "voc")])
    assert (config.data.limit, config.eval.limit) == (7, 0)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("    config.steps = 1 / 0\n", r"line 4: ZeroDivisionError"),
        ("    import nothing_of_that_name\n", r"line 4: ModuleNotFoundError"),
        ("    config.steps = = 3\n", r"line 4: SyntaxError"),
        ("    return None\n", r"does not return a config"),
    ],
)
def test_a_config_file_that_cannot_run_is_told_with_its_line(body, told, tmp_path):
    with pytest.raises(InputError, match=told):
        load_config(write(tmp_path, body))


@pytest.mark.parametrize("name", ["README.md", "", "a" * 300 + ".py", "nul\0.py", "~nobody_of_that_name/x.py"])
def test_what_is_no_config_file_is_told(name):
    with pytest.raises(InputError, match=r"^(there is no config file|--config=|README.md is not a Python file)"):
        load_config(name)


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"3", b'{"steps": 3', b"\xff\xfe{}", b"[" * 100_000])
def test_a_damaged_config_json_is_told(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config.json is damaged \(.*\); put the file back that the run wrote"):
        read_config(tmp_path)


def test_every_number_has_a_range():
    teacher = load_config(Path(__file__).parents[1] / "configs/teacher_demo.py")
    for key, value in (flatten(default_config()) | flatten(teacher)).items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            assert key in RANGES, f"give {key} a range in zeroseg_jax/config_ranges.py"


INTEGERS = ("-1", "0", "1", "2", "7", "16", "100000", str(10**12), str(2**63), "-" + "9" * 40)
FLOATS = ("-1.0", "0.0", "0.5", "1.0", "1e-30", "1e30", "1e400", "-1e400", "float('nan')", "nan")
TUPLES = (
    "()",
    "(0,)",
    "(1,)",
    "(-1, 2)",
    "(1, 2, 3)",
    "((0.5, 0.25),)",
    "((1,),)",
    "(0.9, 0.1)",
    "(1e400, 1)",
    "(True,)",
)
TEXTS = ("", "x", "x" * 300, "a/" * 200, "nul\0", "é", "\udcff", "None", "{", "{}", "[" * 50, "scenes", "1/0", "a,b")


@pytest.mark.end_to_end
def test_random_overrides_are_taken_or_told(seed=0, runs=600):
    """The tables of the right values are those of `config_ranges`; here nothing else than InputError may come."""
    rng, taken = random.Random(seed), 0
    for _ in range(runs):
        config = default_config()
        for key in rng.sample(sorted(flatten(config)), rng.choice((1, 1, 2, 5))):
            try:
                set_key(config, key, rng.choice(rng.choice((INTEGERS, FLOATS, TUPLES, TEXTS))))
            except InputError:
                continue
        try:
            validate(config)
            taken += 1
        except InputError as error:
            assert len(str(error).splitlines()) == 1
        read = from_json(json.loads(json.dumps(to_json(config))))
        assert flatten(read).keys() == flatten(config).keys()
    assert 0 < taken < runs


@pytest.mark.parametrize(
    ("key", "text", "told"),
    [
        ("optimizer.betas", "0.9", "2 numbers of at least 0 and below 1, with commas between"),
        ("optimizer.betas", "0.9,1.0", "2 numbers of at least 0 and below 1"),
        ("optimizer.lr", "-1.0", "a number of at least 0"),
        ("optimizer.lr", "1e400", "a number of at least 0"),
        ("data.limit", "-3", "a whole number of at least 0"),
        ("eval.limit", "-3", "a whole number of at least 0"),
        ("data.workers", "-2", "at least -1"),
        ("data.scale", "0.9,0.1", "the smaller number comes first"),
        ("data.scale", "0.2", "2 numbers above 0 and at most 1"),
        ("image_size", "-1", "a whole number of at least 0 and at most 4096"),
        ("student.patch_size", "-1", "at least 0"),
        ("student.heads", "0", "at least 1"),
        ("student.segment_tokens", "()", "1 to 16 whole numbers"),
        ("student.segment_tokens", "0,8", "1 to 16 whole numbers of at least 1"),
        ("views.grids", "0", "whole numbers of at least 1"),
        ("views.grids", "1.5", "whole numbers of at least 1"),
        ("views.windows", "0.5,0.25", "pairs of a side and a stride"),
        ("views.windows", "((0.5, 0.0),)", "pairs of a side and a stride"),
        ("seed", "-1", "at least 0"),
        ("seed", str(2**63), "at least 0"),
        ("data.root", "x" * 300, "a name of 300 letters; at most 255 are allowed"),
        ("teacher.path", "a\0b", "a text cannot hold a null byte"),
    ],
)
def test_values_out_of_range_are_told_before_anything_is_read(key, text, told, tmp_path):
    with pytest.raises(InputError, match=f"{key} is .*{told}"):
        load_config(write(tmp_path, ""), [(key, text)])


def test_a_config_file_with_variants(tmp_path):
    path = write(tmp_path, "    config.steps = {'': 1, 'long': 7}[size]\n")
    path.write_text(path.read_text().replace("get_config()", "get_config(size='')"))
    assert (load_config(path).steps, load_config(f"{path}:long").steps) == (1, 7)
    with pytest.raises(InputError, match=r"has one variant only; leave out the :long"):
        load_config(f"{write(tmp_path, '')}:long")
