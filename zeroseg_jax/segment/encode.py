"""Encodes images: resizes them, cuts them into windows, and runs the model on batches of windows."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from zeroseg_jax.ops.batching import BATCHES, map_first, padded, sizes_for
from zeroseg_jax.segment.labelling.scoring import whole_image
from zeroseg_jax.segment.methods import Encoding, Method
from zeroseg_jax.segment.options import ModelOptions, Options
from zeroseg_jax.segment.result import EncodedView
from zeroseg_jax.segment.windows import Canvas, Layout, canvas_of, lay_out_all, resize, resize_plainly

FULL, FEW = BATCHES[-1], 4
"""Number of windows in one call of the model: FULL go through it together, FEW one after the other."""


class Pass(NamedTuple):
    """One run of the model over an image: at one size, upright or mirrored."""

    layout: Layout
    mirrored: bool
    canvas: Canvas


class Encoder:
    """Encodes images by a method. It owns the jitted function, so that all images share it."""

    def __init__(self, method: Method):
        self._encode_windows = jax.jit(partial(encode_windows, method.encode), static_argnums=(3, 4))

    def encode(
        self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], method: Method, options: Options
    ) -> list[tuple[EncodedView, ...]]:
        """The views of each image. Windows of one shape go through the model together.

        `method` has the weights. The arrays stay on the device.
        """
        passes = [_passes(image, method, options) for image in images]
        windows: list[np.ndarray] = []
        canvases: list[Canvas] = []
        for image, passes_of_image in zip(images, passes, strict=True):
            for one in passes_of_image:
                windows += _cut(image, one, options)
                canvases += [one.canvas] * len(one.layout)
        encodings = iter(self._encode_all(windows, canvases, method.params, options.of_model))
        return [
            tuple(
                EncodedView(tuple(islice(encodings, len(one.layout))), one.layout, one.mirrored, one.canvas)
                for one in passes_of_image
            )
            for passes_of_image in passes
        ]

    def _encode_all(
        self, windows: Sequence[np.ndarray], canvases: Sequence[Canvas], params: Any, options: ModelOptions
    ) -> list[Encoding]:
        """The encoding of each window. The windows may have several sizes."""
        encodings: dict[int, Encoding] = {}
        for canvas in sorted(set(canvases), key=lambda canvas: canvas.grid):
            indices = [i for i, other in enumerate(canvases) if other == canvas]
            full = FULL in sizes_for(canvas.grid[0] * canvas.grid[1])
            while indices:
                size = FULL if full and len(indices) >= 0.75 * FULL else FEW
                batch_indices, indices = indices[:size], indices[size:]
                batch = padded([windows[i] for i in batch_indices], size)
                count = np.int32(len(batch_indices))
                encoded = self._encode_windows(params, batch, count, options, canvas)
                encodings.update(zip(batch_indices, encoded, strict=False))
        return [encodings[i] for i in range(len(windows))]


def encode_windows(
    encode: Callable[[Any, Array, ModelOptions], Encoding],
    params: Any,
    windows: UInt8[Array, "b y x 3"],
    count: Int[Array, ""],
    options: ModelOptions,
    canvas: Canvas,
) -> tuple[Encoding, ...]:
    """The encoding of each of the first `count` windows, on its canvas. The other encodings have no meaning.

    FULL windows go through the model together. Fewer go one after the other. `count` is known only at run time, so that
    one compiled function serves any number.
    """

    def encode_batch(windows: UInt8[Array, "k y x 3"]) -> Encoding:
        encoding = encode(params, windows, options)
        encoding = encoding._replace(image=whole_image(encoding))
        if encoding.assignment is None:
            return encoding._replace(embeddings=jax.vmap(canvas.add_padding)(jnp.asarray(encoding.embeddings)))
        return encoding._replace(assignment=jax.vmap(canvas.add_padding)(jnp.asarray(encoding.assignment)))

    encodings = encode_batch(windows) if len(windows) == FULL else map_first(encode_batch, windows, count)
    return tuple(jax.tree.map(lambda x, k=k: x[k], encodings) for k in range(len(windows)))


def _passes(image: UInt8[np.ndarray, "y x 3"], method: Method, options: Options) -> list[Pass]:
    """One pass for each of `Options.scales`, and with `Options.flip` one more for its mirror image."""
    layouts = lay_out_all(image.shape[0], image.shape[1], method, options)
    mirrors = (False, True) if options.flip else (False,)
    return [Pass(layout, mirrored, canvas_of(layout, options)) for layout in layouts for mirrored in mirrors]


def _cut(image: UInt8[np.ndarray, "y x 3"], one: Pass, options: Options) -> list[UInt8[np.ndarray, "h w 3"]]:
    """The windows that the model sees."""
    resized = (resize_plainly if options.window else resize)(image, one.layout.shape)
    windows = [np.asarray(window) for window in one.layout.cut(resized)]
    return [window[:, ::-1] for window in windows] if one.mirrored else windows
