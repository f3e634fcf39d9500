"""Writes text of any script into pictures, in fonts of this machine that have its letters.

Letters beyond ASCII need matplotlib, which finds and reads fonts. Pictures show a number in place of a name that cannot
be written.
"""

import unicodedata
from functools import cache
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour = tuple[int, int, int]

INVISIBLE = ("Cc", "Cf", "Zs", "Zl", "Zp")
"""Unicode categories of characters that a font does not draw."""
_UNLIKELY = ("mono", "bold", "italic", "oblique", "light", "thin", "black", "condensed", "serif")


def has_font(text: str) -> bool:
    """Whether fonts on this machine have all the letters of `text`."""
    return None not in (path for _, path in _runs(text))


def missing_fonts_hint() -> str:
    """What to install so that `has_font` is true for more texts."""
    if not _paths():
        return "pip install matplotlib, which finds the fonts of this machine"
    return "install a font, such as fonts-noto-core and fonts-noto-cjk of Debian and Ubuntu (fonts.google.com/noto)"


def width(text: str, size: int) -> float | int:
    """The width of `text` in pixels, in letters of `size` pixels."""
    return sum(_load(path or "", size).getlength(run) for run, path in _runs(text))


def write(
    pen: ImageDraw.ImageDraw,
    place: tuple[float | int, float | int],
    text: str,
    size: int,
    colour: Colour,
    *,
    centred: bool = False,
    outline: tuple[int, Colour] | None = None,
) -> None:
    """Writes one line of text.

    Args:
        place: x and y of the middle of its left end, or of its middle if it is `centred`.
        outline: the thickness and the colour of a line around the letters.
    """
    x, y = place
    x -= width(text, size) / 2 if centred else 0
    thickness, around = outline or (0, None)
    ascent, descent = _metrics(_load("", size))
    baseline = y + (ascent - descent) / 2  # one for all fonts
    for run, path in _runs(text):
        font = _load(path or "", size)
        pen.text((x, baseline), run, colour, font, anchor="ls", stroke_width=thickness, stroke_fill=around)
        x += font.getlength(run)


@cache
def _runs(text: str) -> tuple[tuple[str, str | None], ...]:
    """The parts of `text` that are each written in one font, with the font's path.

    The path is "" for ASCII, which Pillow's own font has, and None if no font has the letters. Neighbouring words of
    other letters stay together if one font has them all, because words from right to left change places.
    """
    runs: list[tuple[str, str | None]] = []
    for ascii_only, group in groupby(text.split(" "), str.isascii):
        words = list(group)
        whole = " ".join(words)
        if ascii_only:
            runs.append((whole, ""))
        elif path := _find_font(whole):
            runs.append((whole, path))
        else:
            runs += [(word + " " * (i < len(words) - 1), _find_font(word)) for i, word in enumerate(words)]
        runs[-1] = (runs[-1][0] + " ", runs[-1][1])
    runs[-1] = (runs[-1][0][:-1], runs[-1][1])
    return tuple(runs)


@cache
def _load(path: str, size: int) -> Font:
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)


def _metrics(font: Font) -> tuple[float | int, float | int]:
    """How far letters reach above and below the baseline."""
    if isinstance(font, ImageFont.FreeTypeFont):
        return font.getmetrics()
    return font.getbbox("x")[3], 0


@cache
def _find_font(text: str) -> str | None:
    """The path of the first font with all the letters of `text`."""
    letters = {ord(letter) for letter in text if unicodedata.category(letter) not in INVISIBLE}
    return next((path for path in _paths() if letters <= _letters(path)), None)


@cache
def _paths() -> tuple[str, ...]:
    """Files of fonts in the order in which they are tried; empty without matplotlib.

    DejaVu Sans, which is part of matplotlib, is first (Latin, Greek, Cyrillic, Arabic). The machine's fonts follow,
    regular ones before bold or italic ones.
    """
    try:
        from matplotlib import font_manager, get_data_path
    except ModuleNotFoundError:
        return ()

    def order(path: str) -> tuple[bool, str]:
        name = Path(path).name.lower()
        return any(word in name for word in _UNLIKELY), name

    # Pillow cannot scale emoji fonts, whose letters are pictures of one size
    installed = [path for path in font_manager.findSystemFonts() if "emoji" not in path.lower()]
    return (str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), *sorted(installed, key=order))


@cache
def _letters(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (RuntimeError, OSError):  # the font is damaged, or FreeType does not know its format
        return frozenset()
