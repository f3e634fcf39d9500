"""Finds a font on this machine that has all the letters of a text.

Letters beyond ASCII need matplotlib, which finds and reads fonts. Without it, pictures show numbers instead of names.
"""

import unicodedata
from functools import cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

INVISIBLE = ("Cc", "Cf", "Zs", "Zl", "Zp")
"""Unicode categories of characters that a font does not draw."""
_UNLIKELY = ("mono", "bold", "italic", "oblique", "light", "thin", "black", "condensed", "serif")


def has_font(text: str) -> bool:
    """Whether some font on this machine has all the letters of `text`."""
    return text.isascii() or _find_font(text) is not None


def font_for(text: str, size: int) -> Font:
    """The first font with all the letters of `text`. If there is none, a font that shows boxes for them."""
    return _load("" if text.isascii() else _find_font(text) or "", size)


@cache
def _load(path: str, size: int) -> Font:
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)


@cache
def _find_font(text: str) -> str | None:
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
