"""Configs: the defaults of a distillation run, overrides from the command line, checks, and `config.json`.

A config is a locked `ml_collections.ConfigDict`; every file in `configs/` has a `get_config()` that returns one.
`--config=FILE.py:NAME` calls `get_config("NAME")`.
"""

import ast
import dataclasses
import difflib
import importlib.util
import inspect
import json
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from zeroseg_jax.config_ranges import check_ranges, check_whole_patches
from zeroseg_jax.errors import InputError
from zeroseg_jax.storage import AnyPath, to_path


def default_config() -> ConfigDict:
    """The config of a distillation run as in the paper: ViT-B/16, three losses, 30 views.

    A file in `configs/` starts from it and changes some values. The config is locked: setting an unknown key raises.
    """
    from zeroseg_jax.models.student import StudentConfig
    from zeroseg_jax.segment.options import FIELDS

    config = ConfigDict()
    config.task = "distill"  # "distill"; "teacher": train a small CLIP on captions; "eval": train nothing
    config.seed = 0  # seed of the weights, of the order of the images, of the crops and of the noise
    config.steps = 25_000  # steps of the optimiser
    config.batch_size = 4096  # images of a step, on all devices and processes together
    config.image_size = 224  # side of the square training images, in pixels; 0 = the size of the teacher
    config.dtype = "float32"  # "float32" or "bfloat16": dtype of the computation; parameters are always float32
    config.checkpoint_every = 1000  # steps between two checkpoints; the last step is always saved
    config.keep_checkpoints = 2  # number of checkpoints that stay, the newest
    config.log_every = 10  # steps between two lines of metrics.jsonl
    config.profile_steps = ""  # first and last step to trace, such as "10:15"; xprof shows WORKDIR/profile; "" = none
    config.wandb = ""  # a project of Weights & Biases that also gets the metrics; "" = none
    config.mesh = ConfigDict()  # number of devices along each axis; docs/launch.md says when to use which
    config.mesh.data = -1  # devices that split the batch; -1 = all devices that the other axes leave
    config.mesh.fsdp = 1  # devices that split the batch, the parameters and the state of the optimiser
    config.mesh.tensor = 1  # devices that split each layer

    config.data = ConfigDict()
    config.data.source = "scenes"  # "scenes", "folder", "tar", "tfds:NAME" or "arrayrecord"
    # the folder with the images; for "scenes" the folder where they are stored, "" = ~/.cache/zeroseg_jax
    config.data.root = ""
    config.data.split = "train"  # the part of the data set; "all" = all of it
    config.data.limit = 0  # number of images to use, the first ones; 0 = all
    config.data.held_out = 0  # number of images to leave out; a run without masks shows them in gallery.png
    # "crop": a random crop, resized; "center": the largest centred square; "none": the whole image, resized
    config.data.augment = "center"
    config.data.flip = False  # whether half of the images are mirrored
    config.data.scale = (0.2, 1.0)  # smallest and largest area of the random crop, as a share of the image
    config.data.ratio = (3 / 4, 4 / 3)  # smallest and largest ratio of the width of the random crop to its height
    config.data.workers = -1  # processes that read images; 0 = threads of the main process; -1 = by the number of CPUs
    config.data.max_broken_share = 0.1  # broken images are skipped; the run stops if their share is larger than this

    config.views = ConfigDict()
    config.views.grids = (1, 2, 3, 4)  # the teacher sees the n x n cells of each grid; 1 is the whole image
    config.views.windows = ()  # more views: pairs (side of overlapping windows, stride), as shares of the image's side
    config.views.local_size = 0  # side of the views of a part of the image, in pixels; 0 = the size of the teacher

    config.teacher = ConfigDict()
    config.teacher.path = "demo"  # anything that `zeroseg_jax.load_clip` takes
    config.teacher.source = "online"  # "online": embed the views in each step; "cache": embed them once
    config.teacher.cache = ""  # folder of the stored embeddings; "" = WORKDIR/teacher_cache
    config.teacher.cached_crops = 1  # stored random crops of each image; epoch e trains on crop e modulo this
    config.teacher.chunk = 0  # images whose views go through the teacher together, on each device; 0 = the whole batch

    config.init = ConfigDict()
    config.init.mae = ""  # weights to start from: a ViTMAE folder or hub id, or a .pth of MAE; "" = none
    # a student to start from: the workdir of a run, an exported folder or a hub id; "" = none
    config.init.student = ""
    derived = ("image_size", "embed_dim", "tower")  # from `image_size` and the teacher
    config.student = ConfigDict(
        {field.name: field.default for field in dataclasses.fields(StudentConfig) if field.name not in derived}
    )

    config.student.encoder = "mae"  # "mae", or "clip": the teacher's image tower, starting from its weights

    config.loss = ConfigDict()
    config.loss["global"] = 1.0  # weight of the global loss: the image's feature is pulled to every view
    config.loss.match = 1.0  # weight of the match loss: each segment is pulled to the nearest view
    config.loss.mae = 1.0  # weight of MAE's loss: hidden patches are reconstructed; 0 = the decoder is not run
    config.loss.ground = 0.0  # weight of the ground loss: the segments in a view's cell are pulled to that view
    config.loss.distance = "l1"  # "l1" or "cosine": distance between features
    config.loss.ground_pool = "unit"  # how the ground loss averages the segments of a view: "unit" length, or "raw"

    config.optimizer = ConfigDict()
    config.optimizer.lr = 6e-4  # learning rate after the warm-up; it follows a cosine to 0
    config.optimizer.encoder_lr = 1.0  # the encoder's learning rate as a share of `lr`
    config.optimizer.betas = (0.9, 0.95)  # decay rates of AdamW's two moments
    config.optimizer.weight_decay = 0.05  # weight decay, of matrices only
    config.optimizer.warmup_steps = 1000  # steps of the warm-up; at most half of `steps`
    config.optimizer.clip = 1.0  # largest global norm of the gradient; 0 = no clipping
    # dtype in which gradients are summed over devices: "compute" (that of `dtype`) or "float32"
    config.optimizer.reduce_dtype = "compute"
    config.optimizer.accumulate = 1  # parts of the images of a device, computed one after the other

    # an option of inference that is None has the value of the vocabulary's protocol, or else of the model
    config.eval = ConfigDict()
    config.eval.dataset = "scenes"  # a benchmark of evaluate/benchmarks; "" = no evaluation
    config.eval.root = ""  # the folder of the data set; for "scenes" as data.root
    config.eval.split = "validation"  # the part of the data set
    # words for gallery.png of a run without masks, separated by commas; "" = the lines of labels.txt in data.root
    config.eval.labels = ""
    config.eval.limit = 0  # number of images to use, the first ones; 0 = all
    config.eval.vocabulary = ""  # class names, prompts, protocol: a name in evaluate/vocabularies, or a .toml file
    config.eval.mask = ""  # for tfds:NAME, the feature with the masks; "" = found by its name
    # for a class of background: a threshold such as "0.9", or phrases; "" = the rule of the vocabulary, or else the
    # name of the class
    config.eval.background = ""
    config.eval.compare = ""  # other models for the same images: what `zeroseg_jax.load` takes, separated by commas
    # readouts of the teacher, and other baselines; () = none
    config.eval.baselines = ("maskclip", "naclip", "sc_clip", "pearl", "cells", "windows", "untrained", "colours")
    # "name", "photo", "clip7", "imagenet80", or a tuple of templates with {} in each; None: those of the vocabulary, or
    # else of the model
    config.eval.templates = None
    config.eval.update(dict.fromkeys(FIELDS))  # the options of inference

    # for --mode=eval: anything that `zeroseg_jax.load` takes; "" = the newest checkpoint of the workdir
    config.model = ""
    return config.lock()


def load_config(path: str | Path, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """Reads the config file at `path` and sets the overrides, which are pairs such as `("data.source", "folder")`.

    `path` may end in an argument for its `get_config`, as in "configs/vitb16.py:24gb".

    Raises:
        InputError: the file does not exist or has no `get_config`, a key does not exist, or a value is not allowed.
    """
    config = _call_get_config(path)
    values_of_file = {key: flatten(config).get(key) for pair in _OWN_LIMITS for key in pair}
    for key, text in overrides:
        set_key(config, key, text)
    overridden = {key for key, _ in overrides}
    for source, limit in _OWN_LIMITS:
        set_by_file = values_of_file[source] is not None and bool(values_of_file[limit])
        if set_by_file and limit not in overridden and flatten(config)[source] != values_of_file[source]:
            set_key(config, limit, "0")
            logging.warning(
                "%s=%s of %s is meant for its own images, so it is not used; all images of %s are used",
                limit,
                values_of_file[limit],
                path,
                flatten(config)[source],
            )
    check_ranges(flatten(config))
    return config.lock()


_OWN_LIMITS = (("data.source", "data.limit"), ("eval.dataset", "eval.limit"))
"""A limit in a config file is meant for the source in the same file. It is not used for another source."""


def _call_get_config(path: str | Path) -> ConfigDict:
    """Calls the `get_config` of a Python file."""
    file, _, argument = str(path).rpartition(":") if ".py:" in str(path) else (str(path), "", "")
    try:
        path = Path(file).expanduser()
        if not path.is_file():
            raise InputError(f"there is no config file {path}; --config takes a Python file such as configs/demo.py")
    except (OSError, ValueError, RuntimeError) as error:  # the name is too long, or names an unknown home
        if isinstance(error, InputError):
            raise
        raise InputError(f"--config={str(path)[:80]!r} is not the name of a file ({error})") from error
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file; --config takes one, such as configs/demo.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise InputError(f"{path} has no function get_config() that returns the config")
        if argument and not inspect.signature(module.get_config).parameters:
            raise InputError(f"{path} has one variant only; leave out the :{argument} after its name")
        config = module.get_config(argument) if argument else module.get_config()
    except InputError:
        raise
    except Exception as error:  # the user's code may raise anything; a locked ConfigDict raises for a bad key or type
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else "?"
        said = " ".join(str(error).split())
        raise InputError(f"{path} is not a valid config: line {line}: {type(error).__name__}: {said}") from error
    if not isinstance(config, ConfigDict) or "task" not in config:
        raise InputError(f"get_config() in {path} does not return a config; start from default_config()")
    return config


# This is not done by ml_collections' config_flags for three reasons. It cannot set `loss.global`, because `global` is a
# keyword of Python. It cannot set keys that are None by default. A misspelt key ends in a traceback.
def set_key(config: ConfigDict, key: str, text: str) -> None:
    """Sets `key` (such as "data.source") of `config` to `text`, which is read as the type of the present value."""
    if key not in flatten(config):
        inside = [k for k in flatten(config) if k.startswith(key + ".")]
        if inside:
            raise InputError(f"--config.{key} is a group of keys; set one of {', '.join(inside)}")
        raise InputError(f"there is no config key {key!r}; did you mean {nearest(key, flatten(config))!r}?")
    *groups, last = key.split(".")
    group = config
    for name in groups:
        group = group[name]
    with group.ignore_type():  # `parse` has checked the type; `eval.templates` may be a tuple or a name
        group[last] = parse(key, text, group[last])


def nearest(key: str, keys: Iterable[str]) -> str:
    """The most similar of `keys`."""
    return max(keys, key=lambda candidate: similarity(key, candidate))


def similarity(key: str, candidate: str) -> float:
    """How similar a name is to a key, or to the last part of the key: from 0 to 1."""
    names = {candidate, candidate.split(".")[-1]}
    return max(difflib.SequenceMatcher(None, key, name).ratio() for name in names)


def parse(key: str, text: str, present: Any) -> Any:
    """`text` as a value of the type of `present`. An int may stand for a float, and one value for a tuple of one."""
    if key.endswith("templates"):
        return parse_templates(key, text)
    if isinstance(present, str):
        return text
    value = parse_literal(text)
    if isinstance(present, float) and type(value) is int:
        value = float(value)
    if isinstance(present, tuple):
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        value = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        if key != "eval.baselines" and any(isinstance(item, str) for item in value):
            raise InputError(f"--config.{key}={text} is not a list of numbers, such as {present}")
    if present is not None and type(value) is not type(present):
        raise InputError(f"--config.{key}={text} is not of type {type(present).__name__}, as {present!r} is")
    return value


def parse_templates(key: str, text: str) -> str | tuple[Any, ...]:
    """A list of templates, or one template, which may have commas. For `eval.templates` also the name of a set."""
    value = parse_literal(text)
    if isinstance(value, tuple | list):
        return tuple(value)
    return text if key == "eval.templates" and "{" not in text else (text,)


def parse_literal(text: str) -> Any:
    """A number, a list, true or false as Python or the command line writes it. Anything else is a text."""
    try:
        return ast.literal_eval(text.capitalize() if text in ("true", "false") else text)
    except (SyntaxError, ValueError):
        return text


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """All values, by names with dots such as "data.source"."""
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, ConfigDict):
            leaves |= flatten(value, key + ".")
        else:
            leaves[key] = value
    return leaves


def validate(config: ConfigDict) -> None:
    """Checks a distillation config, without reading data or the teacher.

    Raises:
        InputError: a value cannot work. The message says what to set instead.
    """
    check_ranges(flatten(config))
    check_whole_patches("image_size", config.image_size, "the patch size", config.student.patch_size)
    parts = config.optimizer.accumulate
    if config.batch_size % parts:
        raise InputError(f"batch_size {config.batch_size} does not split into optimizer.accumulate={parts} parts")
    if config.teacher.cached_crops > 1 and config.data.augment != "crop":
        raise InputError(
            f"teacher.cached_crops is {config.teacher.cached_crops}, but with data.augment={config.data.augment} every"
            " crop is the same; set it to 1, or data.augment=crop"
        )
    if config.loss.match and set(config.views.grids) <= {1} and not config.views.windows:
        raise InputError(
            "loss.match compares segments with parts of the image, but views.grids has the whole image only; set"
            " views.grids=(1,2), or loss.match=0"
        )


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The config as plain values of JSON. Tuples become lists."""
    return json.loads(config.to_json())


def read_config(workdir: str | AnyPath) -> ConfigDict:
    """The config in `config.json` of a workdir.

    Raises:
        InputError: `workdir` has no config.json, or it is damaged.
    """
    path = to_path(workdir) / "config.json"
    if not path.is_file():
        raise InputError(
            f"{workdir} holds no config.json, so it is not the workdir of a run; train first, or name another"
        )
    return from_json(read_json_of_run(path))


def read_json_of_run(path: AnyPath) -> dict[str, Any]:
    """The object in a JSON file that a run has written to its workdir. Raises InputError if the file is damaged."""
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__} instead of an object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); put the file back that the run wrote") from error
    return values


def from_json(values: dict[str, Any]) -> ConfigDict:
    """The inverse of `to_json`. Lists become tuples again."""

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: restore(item) for key, item in value.items()}
        return tuple(restore(item) for item in value) if isinstance(value, list) else value

    return ConfigDict(restore(values)).lock()
