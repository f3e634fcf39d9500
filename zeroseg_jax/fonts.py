"""Fonts for any letters: of those on this machine, one that has all the letters of a text.

Letters beyond ASCII need matplotlib, which finds and reads fonts. Without it a legend has numbers in their place.
"""

import unicodedata
from functools import cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

INVISIBLE = ("Cc", "Cf", "Zs", "Zl", "Zp")
"""Categories of Unicode that need no letter of a font."""
_UNLIKELY = ("mono", "bold", "italic", "oblique", "light", "thin", "black", "condensed", "serif")


def has_font(text: str) -> bool:
    """Whether some font here has the letters of `text`."""
    return text.isascii() or _find(text) is not None


def font_for(text: str, size: int) -> Font:
    """The first font with all letters of `text`; one that shows boxes in their place where there is none."""
    return _load("" if text.isascii() else _find(text) or "", size)


@cache
def _load(path: str, size: int) -> Font:
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)


@cache
def _find(text: str) -> str | None:
    letters = {ord(letter) for letter in text if unicodedata.category(letter) not in INVISIBLE}
    return next((path for path in _paths() if letters <= _letters(path)), None)


@cache
def _paths() -> tuple[str, ...]:
    """DejaVu Sans, which matplotlib brings (Latin, Greek, Cyrillic, Arabic), then the fonts of the machine, those of
    regular shape first. None without matplotlib."""
    try:
        from matplotlib import font_manager, get_data_path
    except ModuleNotFoundError:
        return ()

    def order(path: str) -> tuple[bool, str]:
        name = Path(path).name.lower()
        return any(word in name for word in _UNLIKELY), name

    # fonts of emoji are pictures of one size, which Pillow does not scale
    installed = [path for path in font_manager.findSystemFonts() if "emoji" not in path.lower()]
    return (str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), *sorted(installed, key=order))


@cache
def _letters(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (RuntimeError, OSError):  # a damaged font, or of a kind that FreeType does not know
        return frozenset()
