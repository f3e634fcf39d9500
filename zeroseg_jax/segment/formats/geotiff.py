"""GeoTIFF to GeoTIFF: images larger than memory, window by window, with their georeference kept. Needs rasterio."""

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from zeroseg_jax import draw
from zeroseg_jax.errors import InputError
from zeroseg_jax.segment.labelling.score_maps import Words, embed_words, label_scores, score_image
from zeroseg_jax.segment.options import encodes
from zeroseg_jax.segment.prompts import Background, Templates, reusable
from zeroseg_jax.segment.result import SOFTWARE, check_count
from zeroseg_jax.segment.segmenter import Segmenter

SAMPLE = 1024
"""Side in pixels of the overview from which the range of values that are not 8-bit is taken."""


def segment_geotiff(
    model: Segmenter,
    source: str | Path,
    destination: str | Path,
    labels: Iterable[str],
    *,
    window: int = 1024,
    overlap: int = 256,
    bands: tuple[int, ...] | None = None,
    templates: Templates | None = None,
    background: Background = None,
    report: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,
) -> None:
    """Segments a raster of any size into a GeoTIFF with the same size, coordinate system and transform.

    Square windows are read one after the other. Where they overlap the scores are averaged, with weights that fall to
    the borders of each window, so that seams do not show. One row of windows is kept in memory: 4 bytes x `window` x
    width x (labels + phrases for background), and twice that with a threshold.

    A pixel of the result is the index of its label. Background, and pixels that the input marks as missing, have the
    value that the result declares as "nodata": 255, or 65535 with more than 255 labels. The names of the labels are in
    the tags LABEL_0, LABEL_1, ... of the band, and a palette has their colours.

    Args:
        source: what rasterio opens. Values that are not 8-bit are stretched from the 2nd to the 98th percentile of each
            band.
        destination: the file that is written. Its folder is made.
        window: side of the windows in pixels.
        overlap: pixels by which neighbouring windows overlap, less than `window`.
        bands: the numbers of red, green and blue, or of one band, from 1. None: the first three, or the first.
        report: called after each window with the number that are done and the number of all.
        labels, templates, background, options: as for `Segmenter.segment`.

    Raises:
        InputError: rasterio is missing, a file cannot be read or written, or an argument cannot be used.
    """
    rasterio = _import_rasterio()
    no_georeference = rasterio.errors.NotGeoreferencedWarning  # a photograph has none, and may be segmented
    if window < 1 or not 0 <= overlap < window:
        raise InputError(f"windows of {window} pixels cannot overlap by {overlap}; the overlap must be smaller")
    labels = list(reusable(labels))
    check_count(len(labels))
    words = embed_words(model, labels, templates, background, options)
    encoding = {name: value for name, value in options.items() if encodes(name)}
    source, destination = Path(source).expanduser(), Path(destination).expanduser()
    if destination.exists() and source.exists() and destination.samefile(source):
        raise InputError(f"{destination} is the input; give another file")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(action="ignore", category=no_georeference), rasterio.open(source) as raster:
            chosen = _bands(raster, bands)
            limits = _limits(raster, chosen)
            with rasterio.open(destination, "w", **_profile(raster, len(labels))) as output:
                _describe(output, labels)
                _segment_rows(model, raster, output, words, (window, overlap), chosen, limits, encoding, report)
    except (OSError, rasterio.errors.RasterioError) as error:
        raise InputError(f"{source} cannot be segmented into {destination} ({error}); give other files") from error


def _segment_rows(
    model: Segmenter,
    raster: Any,
    output: Any,
    words: Words,
    sizes: tuple[int, int],
    bands: tuple[int, ...],
    limits: Float32[np.ndarray, "b 2"] | None,
    encoding: dict[str, Any],
    report: Callable[[int, int], None],
) -> None:
    """Segments one row of windows after the other. The pixels that two rows share are written with the second."""
    from rasterio.windows import Window

    size, overlap = sizes
    height, width = raster.height, raster.width
    tops, lefts = starts(height, *sizes), starts(width, *sizes)
    size_y, size_x = min(size, height), min(size, width)
    channels = words.total * (2 if words.threshold else 1)
    scores, weights = np.zeros((size_y, width, channels), np.float32), np.zeros((size_y, width, 1), np.float32)
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            pixels, valid = _read(raster, Window(left, top, size_x, size_y), bands, limits)
            if valid.any():
                part = score_image(model, model.encode(pixels, **encoding), words).pixels
                weight = (ramp(size_y, overlap)[:, None] * ramp(size_x, overlap))[..., None]
                scores[:, left : left + size_x] += weight * part
                weights[:, left : left + size_x] += weight
            report(i * len(lefts) + j + 1, len(tops) * len(lefts))
        done = (tops[i + 1] if i + 1 < len(tops) else height) - top
        label_map = label_scores(scores[:done] / np.maximum(weights[:done], 1e-12), words)
        strip = Window(0, top, width, done)
        values = np.where((label_map < 0) | ~_valid(raster, strip, bands), output.nodata, label_map).astype(
            output.dtypes[0]
        )
        output.write(values, 1, window=strip)
        for array in (scores, weights):
            array[: size_y - done] = array[done:].copy()
            array[size_y - done :] = 0


def starts(length: int, window: int, overlap: int) -> list[int]:
    """Where the windows along one axis start. The last one ends where the image ends."""
    if length <= window:
        return [0]
    return [*range(0, length - window, window - overlap), length - window]


def ramp(length: int, overlap: int) -> Float32[np.ndarray, " n"]:
    """Weights along one axis of a window: 1 inside, and falling towards both ends over `overlap` pixels."""
    from_end = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1
    return np.minimum(1, from_end / (overlap + 1)).astype(np.float32)


def _import_rasterio() -> Any:
    try:
        import rasterio
        import rasterio.errors
    except ModuleNotFoundError as error:
        raise InputError(f"GeoTIFF needs the package {error.name}; pip install 'zeroseg_jax[geo]'") from error
    return rasterio


def _bands(raster: Any, bands: tuple[int, ...] | None) -> tuple[int, ...]:
    bands = bands or ((1, 2, 3) if raster.count >= 3 else (1,))
    if len(bands) not in (1, 3) or not all(1 <= band <= raster.count for band in bands):
        raise InputError(
            f"bands is {bands}; {raster.name} has the bands 1 to {raster.count}: give one or three of them"
        )
    return bands


def _limits(raster: Any, bands: tuple[int, ...]) -> Float32[np.ndarray, "b 2"] | None:
    """The 2nd and 98th percentile of each band, from an overview; None for 8 bits, which stay as they are."""
    if all(raster.dtypes[band - 1] == "uint8" for band in bands):
        return None
    shape = min(raster.height, SAMPLE), min(raster.width, SAMPLE)
    sample = raster.read(bands, out_shape=(len(bands), *shape), masked=True).astype(np.float32)
    valid = [band.compressed()[np.isfinite(band.compressed())] for band in sample]
    return np.array([np.percentile(v, (2, 98)) if len(v) else (0, 1) for v in valid], np.float32)


def _read(
    raster: Any, window: Any, bands: tuple[int, ...], limits: Float32[np.ndarray, "b 2"] | None
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """The pixels of a window as RGB, and `_valid` of them."""
    values = raster.read(bands, window=window)
    if limits is not None:
        low, high = limits[:, :1, None], limits[:, 1:, None]
        scaled = (np.nan_to_num(values.astype(np.float32)) - low) / np.maximum(high - low, 1e-12)
        values = (255 * scaled.clip(0, 1)).round().astype(np.uint8)
    pixels = np.ascontiguousarray(np.broadcast_to(np.moveaxis(values, 0, -1), (*values.shape[1:], 3)))
    return pixels, _valid(raster, window, bands)


def _valid(raster: Any, window: Any, bands: tuple[int, ...]) -> Bool[np.ndarray, "h w"]:
    """True for pixels where at least one of the bands has a value."""
    valid: np.ndarray = (raster.read_masks(bands, window=window) > 0).any(axis=0)
    return valid


def _profile(raster: Any, labels: int) -> dict[str, Any]:
    """The settings of the output: one band in tiles, and the georeference of the input."""
    deep = labels > 255
    profile = {
        "driver": "GTiff",
        "height": raster.height,
        "width": raster.width,
        "count": 1,
        "dtype": "uint16" if deep else "uint8",
        "nodata": 65535 if deep else 255,
        "crs": raster.crs,
        "transform": raster.transform,
        "compress": "deflate",
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "bigtiff": "if_safer",
    }
    if raster.crs is None and raster.gcps[0]:
        profile |= {"gcps": raster.gcps[0], "crs": raster.gcps[1]}
        del profile["transform"]
    return profile


def _describe(output: Any, labels: list[str]) -> None:
    output.update_tags(TIFFTAG_SOFTWARE=SOFTWARE)
    output.update_tags(1, **{f"LABEL_{i}": label for i, label in enumerate(labels)})
    if len(labels) <= 255:
        colours = [(*colour, 255) for colour in draw.palette(len(labels)).tolist()]
        output.write_colormap(1, dict(enumerate(colours)) | {255: (*draw.NO_LABEL, 0)})
