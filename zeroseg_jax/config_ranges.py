"""The values that the keys of a config may have. They are checked before a run reads or writes anything."""

import dataclasses
import math
from typing import Any

from zeroseg_jax.errors import InputError

INT32 = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Number:
    """A number from `least` to `most`. With `count` it is a tuple of `count[0]` to `count[1]` such numbers.

    With `above`, `least` itself is not allowed. With `below`, `most` itself is not allowed. With `whole`, only whole
    numbers are allowed.
    """

    least: int | float
    most: int | float
    above: bool = False
    below: bool = False
    count: tuple[int, int] | None = None
    whole: bool = False

    def allows(self, value: Any) -> bool:
        if self.count:
            fits = isinstance(value, tuple) and self.count[0] <= len(value) <= self.count[1]
            return fits and all(map(self._holds, value))
        return self._holds(value)

    def _holds(self, x: Any) -> bool:
        if isinstance(x, bool) or not isinstance(x, int if self.whole else int | float) or not math.isfinite(x):
            return False
        return (self.least < x if self.above else self.least <= x) and (x < self.most if self.below else x <= self.most)

    def __str__(self) -> str:
        kind = "whole number" if self.whole else "number"
        low = f"above {self.least:g}" if self.above else f"of at least {self.least:g}"
        high = f" and below {self.most:g}" if self.below else f" and at most {self.most:g}"
        limits = low + (high if self.most not in (math.inf, INT32) else "")
        if not self.count:
            return f"a {kind} {limits}"
        few, many = self.count
        return f"{few if few == many else f'{few} to {many}'} {kind}s {limits}, with commas between"


def whole(least: int, most: int = INT32, count: tuple[int, int] | None = None) -> Number:
    return Number(least, most, whole=True, count=count)


def from_zero(most: int | float = math.inf) -> Number:
    """A number of at least 0."""
    return Number(0, most)


POSITIVE = Number(0, math.inf, above=True)
SHARE = from_zero(1)
PIXELS = whole(1, 4096)
STAGES = (1, 16)

RANGES: dict[str, Number] = {
    "seed": whole(0),
    "steps": whole(1),
    "batch_size": whole(1, 2**24),
    "image_size": whole(0, 4096),
    "embed_dim": whole(1, 65536),
    "checkpoint_every": whole(1),
    "keep_checkpoints": whole(1),
    "log_every": whole(1),
    "mesh.data": whole(-1),
    "mesh.fsdp": whole(-1),
    "mesh.tensor": whole(-1),
    "data.limit": whole(0),
    "data.held_out": whole(0, 1000),
    "data.scale": Number(0, 1, above=True, count=(2, 2)),
    "data.ratio": Number(0, math.inf, above=True, count=(2, 2)),
    "data.workers": whole(-1, 1024),
    "data.max_broken_share": SHARE,
    "data.scenes": whole(1, 10**7),
    "views.grids": whole(1, 32, count=(1, 32)),
    "views.local_size": whole(0, 4096),
    "teacher.cached_crops": whole(1, 10**6),
    "teacher.chunk": whole(0, 2**24),
    "student.patch_size": whole(0, 4096),
    "student.width": whole(1, 65536),
    "student.depth": whole(1, 1024),
    "student.heads": whole(1, 1024),
    "student.mask_ratio": Number(0, 1, below=True),
    "student.decoder_width": whole(1, 65536),
    "student.decoder_depth": whole(0, 1024),
    "student.decoder_heads": whole(1, 1024),
    "student.segment_tokens": whole(1, 65536, count=STAGES),
    "student.segment_depths": whole(0, 1024, count=STAGES),
    "student.segment_heads": whole(1, 1024),
    "student.pool_depth": whole(0, 1024),
    "student.projection_width": whole(1, 2**20),
    "student.tau": POSITIVE,
    "student.norm_eps": SHARE,
    "loss.global": from_zero(),
    "loss.match": from_zero(),
    "loss.mae": from_zero(),
    "loss.ground": from_zero(),
    "optimizer.lr": from_zero(),
    "optimizer.encoder_lr": from_zero(),
    "optimizer.betas": Number(0, 1, below=True, count=(2, 2)),
    "optimizer.weight_decay": from_zero(),
    "optimizer.warmup_steps": whole(0),
    "optimizer.clip": from_zero(),
    "optimizer.accumulate": whole(1),
    "eval.limit": whole(0),
    # keys of a config that trains a teacher
    "segment_size": PIXELS,
    "name_steps": whole(0),
    "fixed_scale_steps": whole(0),
    "max_logit_scale": POSITIVE,
    "vision.patch_size": PIXELS,
    "vision.width": whole(1, 65536),
    "vision.depth": whole(1, 1024),
    "vision.heads": whole(1, 1024),
    "text.vocabulary": whole(515, 2**20),
    "text.context": whole(3, 4096),
    "text.width": whole(1, 65536),
    "text.depth": whole(1, 1024),
    "text.heads": whole(1, 1024),
}
"""The range of every key with a number. `segment.options` checks the options of inference in `eval`."""

CHOICES: dict[str, tuple[str, ...]] = {
    "dtype": ("float32", "bfloat16"),
    "teacher.source": ("online", "cache"),
    "data.augment": ("crop", "center", "none"),
    "student.assignment": ("soft", "hard"),
    "student.encoder": ("mae", "clip"),
    "student.segment_feature": ("mlp", "mask_class_token"),
    "student.remat": ("none", "dots", "full"),
    "loss.distance": ("l1", "cosine"),
    "loss.ground_pool": ("unit", "raw"),
    "optimizer.reduce_dtype": ("compute", "float32"),
}
"""The choices of every key whose value is one of a few words."""

NAME = 255
"""Longest name of a file, in letters, on common file systems."""
NOT_PATHS = ("eval.labels", "eval.templates", "templates", "eval.background")


def check_ranges(values: dict[str, Any]) -> None:
    """Raises InputError for the first of the `values` that is outside the range of its key."""
    for key, value in values.items():
        if key in RANGES and not RANGES[key].allows(value):
            raise InputError(f"{key} is {value!r}; it must be {RANGES[key]}")
        if key in CHOICES and value not in CHOICES[key]:
            raise InputError(f"{key} is {value!r}; it must be one of {', '.join(CHOICES[key])}")
        if isinstance(value, str):
            _check_text(key, value)
    for key in ("data.scale", "data.ratio"):
        if key in values and values[key][0] > values[key][1]:
            raise InputError(f"{key} is {values[key]}; the smaller number comes first")
    parse_steps(values.get("profile_steps", ""))
    if "views.windows" in values:
        _check_windows(values["views.windows"])


def _check_text(key: str, value: str) -> None:
    if "\0" in value:
        raise InputError(f"{key} is {value!r}; a text cannot hold a null byte")
    longest = max(map(len, value.split("/")))
    if key not in NOT_PATHS and longest > NAME:
        raise InputError(f"{key} is {value[:40]!r}..., a name of {longest} letters; at most {NAME} are allowed")


def _check_windows(windows: Any) -> None:
    pair = Number(0, 1, above=True, count=(2, 2))
    if not isinstance(windows, tuple) or not all(pair.allows(window) and window[1] >= 0.01 for window in windows):
        raise InputError(
            f"views.windows is {windows!r}; it must be pairs of a side and a stride, both shares of the image's side,"
            " such as ((0.5, 0.25),)"
        )


def check_whole_patches(key: str, size: int, patch_key: str, patch: int) -> None:
    """Raises InputError if an image whose side is `size` pixels is not a whole number of patches of `patch` pixels."""
    if size % patch:
        near = max(1, round(size / patch)) * patch
        raise InputError(f"{key} {size} is not divisible by {patch_key} {patch}; {near} would be")


def parse_steps(text: str) -> tuple[int, int] | None:
    """Reads the first and the last step to trace: "10:15" -> (10, 15), "" -> None. Raises InputError otherwise."""
    if not text:
        return None
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
        raise InputError(f"profile_steps is {text!r}; it must be the first and the last step to trace, such as 10:15")
    return int(first), int(last)
