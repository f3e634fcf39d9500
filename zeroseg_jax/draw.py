"""Pictures of segmentations: overlays with names and a legend, and galleries that compare several methods."""

from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image, ImageDraw
from scipy import ndimage

from zeroseg_jax import fonts

# The first seven are by Okabe and Ito ("Color Universal Design", 2008). Each later colour is the one farthest in OKLab
# from all before it and from grey. None is nearly black or nearly white. The distance is the least of four: normal
# sight, protanopia, deuteranopia and tritanopia, as simulated by Machado (2009).
_BASE = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)),
    *((120, 30, 0), (75, 45, 120), (150, 255, 225), (135, 75, 105), (165, 105, 255), (60, 0, 225), (180, 45, 30)),
    *((135, 210, 255), (120, 0, 165), (135, 180, 120), (180, 225, 165), (135, 45, 255), (225, 195, 90), (195, 30, 165)),
    *((45, 105, 45), (0, 75, 75), (105, 120, 90)),
)
NO_LABEL = (190, 190, 190)
"""Grey, the colour of pixels without a label."""

_DARK, _WHITE = (25, 25, 25), (255, 255, 255)


def palette(count: int) -> UInt8[np.ndarray, "c 3"]:
    """`count` colours, uint8. Colour-blind people can tell the first 24 apart.

    The next 24 are paler versions of them, and the next 24 are darker versions. Then the colours repeat.
    """
    base = np.array(_BASE, float)
    tones = np.concatenate([base, 0.5 * base + 0.5 * 255, 0.7 * base])
    return np.resize(tones, (count, 3)).round().astype(np.uint8)


def paint(labels: Int[np.ndarray, "h w"], count: int) -> UInt8[np.ndarray, "h w 3"]:
    """Colours a map of indices in [0, count) by `palette`. Every other value, such as -1 and 255, becomes grey."""
    colours = np.concatenate([palette(count), np.array([NO_LABEL], np.uint8)])
    return colours[np.where((labels >= 0) & (labels < count), labels, count)]


def paint_segments(image: UInt8[np.ndarray, "h w 3"], segments: Int[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Fills each segment with its mean colour in the image, and draws white lines between segments.

    The colours are not those of `palette`, so that a segment is not taken for a class.
    """
    index = np.unique(segments, return_inverse=True)[1].reshape(segments.shape)
    pixels = np.bincount(index.ravel())
    means = np.stack([np.bincount(index.ravel(), image[..., i].ravel()) / pixels for i in range(3)], axis=-1)
    painted = means[index].round().astype(np.uint8)
    painted[_borders(index, max(1, round(min(segments.shape) / 200)))] = _WHITE
    return painted


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    labels: Int[np.ndarray, "h w"],
    names: Sequence[str],
    *,
    opacity: float = 0.55,
    size: int = 480,
) -> Image.Image:
    """The image with coloured, outlined and named regions. A legend below it gives the share of each label.

    Args:
        image: the photograph, with the same height and width as `labels`.
        labels: indices into `names`. Any other value means no label.
        names: the names of the labels. The number stands for a name that no font on this machine can write.
        opacity: of the colours over the image, in [0, 1].
        size: a smaller image is enlarged until its longer side has about this many pixels. Letters and lines grow with
            larger images.
    """
    labels = np.where((labels >= 0) & (labels < len(names)), labels, -1)
    original_names, names = names, _legible(names)
    zoom = max(1, round(size / max(labels.shape)))
    height, width = labels.shape[0] * zoom, labels.shape[1] * zoom
    letters = max(14, round((height * width) ** 0.5 / 45))
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    large = labels.repeat(zoom, axis=0).repeat(zoom, axis=1)
    pixels = np.array(Image.blend(picture, Image.fromarray(paint(large, len(names))), opacity))
    pixels[_borders(large, max(1, letters // 14))] = _WHITE
    canvas = Image.fromarray(pixels)

    counts = np.bincount(labels[labels >= 0], minlength=len(names))
    present = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    _name_regions(canvas, labels, {i: names[i] for i in present}, letters)
    colours = [tuple(colour) for colour in palette(len(names)).tolist()]
    entries = [(f"{_percent(counts[i] / labels.size)}  {names[i]}", colours[i]) for i in present]
    unlabelled = labels.size - counts.sum()
    if unlabelled:
        entries.append((f"{_percent(unlabelled / labels.size)}  no label", NO_LABEL))
    below = [legend(entries, max(width, 200), size=letters + 1)]
    if any(names[i] != original_names[i] for i in present):
        below.append(_note(max(width, 200), letters))
    return stack([canvas, *below])


def legend(
    entries: Sequence[tuple[str, tuple[int, ...]]], width: int, *, size: int = 15, columns: int | None = None
) -> Image.Image:
    """Coloured squares with names, in `columns` columns, or as many as fit into `width` pixels.

    A name that is too long is cut.
    """
    line, swatch = round(1.6 * size), size
    widest = max((fonts.width(name, size) for name, _ in entries), default=0)
    columns = columns or max(1, min(int(width // (widest + 3 * swatch)), len(entries) or 1))
    rows, pitch = ceil(len(entries) / columns), width // columns
    canvas = Image.new("RGB", (width, rows * line + size), _WHITE)
    pen = ImageDraw.Draw(canvas)
    for i, (name, colour) in enumerate(entries):
        x, y = (i // rows) * pitch + swatch // 2, (i % rows) * line + size // 2
        red, green, blue = (int(c) for c in colour)
        pen.rectangle((x, y, x + swatch, y + swatch), fill=(red, green, blue), outline=_DARK)
        text = _fit(name, pitch - 2 * swatch - 4, size)
        fonts.write(pen, (x + swatch + size // 2, y + swatch // 2), text, size, _DARK)
    return canvas


def stack(parts: Sequence[Image.Image]) -> Image.Image:
    """Puts the pictures below one another on a white background."""
    canvas = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), _WHITE)
    top = 0
    for part in parts:
        canvas.paste(part, (0, top))
        top += part.height
    return canvas


def gallery(
    titles: Sequence[str],
    rows: Sequence[Sequence[UInt8[np.ndarray, "_ _ 3"]]],
    entries: Sequence[tuple[str, tuple[int, ...]]],
    *,
    cell: int = 144,
    margin: int = 6,
) -> Image.Image:
    """A table of pictures with one title for each column, and a legend of `entries` below.

    Each picture is scaled to fit a square of `cell` pixels. Small pictures are enlarged without smoothing.
    """
    size = max(11, cell // 11)
    lines = [_wrap(title, cell, size) for title in titles]
    header = round(1.35 * size * max(len(title) for title in lines)) + margin
    width = margin + len(titles) * (cell + margin)
    canvas = Image.new("RGB", (width, header + margin + len(rows) * (cell + margin)), _WHITE)
    pen = ImageDraw.Draw(canvas)
    for column, title in enumerate(lines):
        x = margin + column * (cell + margin) + cell // 2
        for i, text in enumerate(title):
            y = header - round(1.35 * size * (len(title) - i - 0.5))
            fonts.write(pen, (x, y), text, size, _DARK, centred=True)
    for row, pictures in enumerate(rows):
        for column, pixels in enumerate(pictures):
            picture = _scaled(pixels, cell)
            x = margin + column * (cell + margin) + (cell - picture.width) // 2
            y = header + margin + row * (cell + margin) + (cell - picture.height) // 2
            canvas.paste(picture, (x, y))
    if not entries:
        return canvas
    names = _legible([name for name, _ in entries])
    below = [legend([(name, colour) for name, (_, colour) in zip(names, entries, strict=True)], width)]
    if names != [name for name, _ in entries]:
        below.append(_note(width, 14))
    return stack([canvas, *below])


def _scaled(pixels: UInt8[np.ndarray, "h w 3"], cell: int) -> Image.Image:
    scale = cell / max(pixels.shape[:2])
    width, height = (max(1, round(n * scale)) for n in (pixels.shape[1], pixels.shape[0]))
    resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return Image.fromarray(pixels).resize((width, height), resampling)


def _borders(labels: Int[np.ndarray, "h w"], thickness: int) -> Bool[np.ndarray, "h w"]:
    """True along one side of every border between regions."""
    border = np.zeros(labels.shape, bool)
    for step in range(1, thickness + 1):
        border[:, step:] |= labels[:, step:] != labels[:, :-step]
        border[step:] |= labels[step:] != labels[:-step]
    return border


def _name_regions(canvas: Image.Image, labels: Int[np.ndarray, "h w"], names: Mapping[int, str], letters: int) -> None:
    """Writes each name where its region is thickest. Leaves out a name that has no room there or meets another name."""
    step = ceil(max(labels.shape) / 400)  # a coarse map is precise enough, and faster for a large image
    small = labels[::step, ::step]
    scale = canvas.width / small.shape[1]
    pen, taken = ImageDraw.Draw(canvas), list[tuple[float, float, float, float]]()
    for i, name in names.items():
        depth = ndimage.distance_transform_edt(np.pad(small == i, 1))[1:-1, 1:-1]
        row, column = divmod(int(depth.argmax()), depth.shape[1])
        room, x, y = depth[row, column] * scale, (column + 0.5) * scale, (row + 0.5) * scale
        text = _fit(name, canvas.width - 8, letters)
        half = fonts.width(text, letters) / 2 + 2
        if room < letters / 2 or half > 2 * room:
            continue
        x = min(max(x, half + 2), max(canvas.width - half - 2, half + 2))
        box = (x - half, y - 0.7 * letters, x + half, y + 0.7 * letters)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            continue
        taken.append(box)
        fonts.write(pen, (x, y), text, letters, _WHITE, centred=True, outline=(max(2, letters // 7), _DARK))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "< 1 %"


def _legible(names: Sequence[str]) -> list[str]:
    """The names, with "#3" in place of name number 3 if no font on this machine has its letters."""
    return [name if fonts.has_font(name) else f"#{i}" for i, name in enumerate(names)]


def _note(width: int, size: int) -> Image.Image:
    """A line that explains the numbers of `_legible`."""
    reason = "#N is label number N, counted from 0: no font on this machine has its letters"
    lines = _wrap(f"{reason}; {fonts.missing_fonts_hint()}", width - size, size)
    canvas = Image.new("RGB", (width, round(1.35 * size * len(lines)) + size // 2), _WHITE)
    pen = ImageDraw.Draw(canvas)
    for i, line in enumerate(lines):
        fonts.write(pen, (size // 2, round(1.35 * size * (i + 0.5))), line, size, _DARK)
    return canvas


def _fit(text: str, width: float | int, size: int) -> str:
    """`text`, cut and ended with "..." if it is wider than `width` pixels."""
    if fonts.width(text, size) <= width:
        return text
    while len(text) > 1 and fonts.width(text + "...", size) > width:
        text = text[:-1]
    return text.rstrip() + "..."


def _wrap(text: str, width: int, size: int) -> list[str]:
    """`text` broken at spaces into lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and fonts.width(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_fit(line, width, size) for line in lines]
