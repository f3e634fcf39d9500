"""Reading configs: overrides from the command line, checks, and the workdir's config.json."""

import pytest

from zeroseg_jax.config import default_config, flatten, load_config, open_workdir, read_config, set_key, validate
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


def test_a_workdir_keeps_its_config(tmp_path):
    config = default_config()
    open_workdir(config, tmp_path / "run")
    assert flatten(read_config(tmp_path / "run")) == flatten(config)
    (tmp_path / "run/checkpoints/100").mkdir(parents=True)
    open_workdir(config, tmp_path / "run")

    harmless = default_config()
    harmless.eval.split = "validation"
    harmless.mesh.fsdp = 2
    harmless.checkpoint_every = 3
    open_workdir(harmless, tmp_path / "run")
    assert read_config(tmp_path / "run").checkpoint_every == 3

    other = default_config()
    other.optimizer.lr = 1.0
    with pytest.raises(InputError, match=r"different config: optimizer.lr \(0.0006 there, 1.0 now\); choose another"):
        open_workdir(other, tmp_path / "run")

    # a run that failed before its first checkpoint may be mended
    (tmp_path / "run/checkpoints/100").rmdir()
    open_workdir(other, tmp_path / "run")
    assert read_config(tmp_path / "run").optimizer.lr == 1.0
