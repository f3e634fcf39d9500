"""Colours that stay apart, overlays that name what they show, galleries of the right size."""

import numpy as np
from PIL import Image

from zeroseg_jax import draw, fonts

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deuteranopia": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "tritanopia": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}
LMS = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
LAB = np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])


def least_distance(colours: np.ndarray, sight: np.ndarray) -> float:
    """The smallest OKLab distance between two of the colours as this eye sees them; black to white is 1."""
    linear = (colours / 255.0) ** 2.2
    seen = np.cbrt(np.clip(linear @ sight.T, 0, 1) @ LMS.T) @ LAB.T
    distances = np.linalg.norm(seen[:, None] - seen, axis=-1)
    return distances[~np.eye(len(colours), dtype=bool)].min()


def test_colours_stay_apart_for_every_eye():
    for sight in SIGHTS.values():
        assert least_distance(draw.palette(24), sight) > 0.065  # Okabe and Ito's seven: 0.076 to 0.159
    assert len(np.unique(draw.palette(72), axis=0)) == 72


def test_no_colour_is_nearly_black():
    lightness = np.cbrt((draw.palette(72) / 255.0) ** 2.2 @ LMS.T) @ LAB[0]  # from 0, black, to 1, white
    assert lightness[:24].min() > 0.35 and lightness.min() > 0.25


def test_paint_greys_what_is_no_label():
    painted = draw.paint(np.array([[0, 1], [-1, 255]]), 2)
    np.testing.assert_array_equal(painted[0], draw.palette(2))
    np.testing.assert_array_equal(painted[1], [draw.NO_LABEL, draw.NO_LABEL])


def test_segments_have_the_mean_colour_of_the_image_and_white_borders():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, :2], image[:, 4:] = (100, 0, 50), (10, 20, 30)
    segments = np.repeat([[7, 7, 7, 7, 2, 2, 2, 2]], 8, axis=0)
    painted = draw.paint_segments(image, segments)
    assert (painted[:, :4] == (50, 0, 25)).all() and (painted[:, 5:] == (10, 20, 30)).all()
    assert (painted[:, 4] == 255).all()


def test_overlay_enlarges_small_images_and_tints_regions():
    labels = np.zeros((24, 32), np.int32)
    labels[:, 16:] = 1
    picture = np.asarray(draw.overlay(np.zeros((24, 32, 3), np.uint8), labels, ["cat", "grass"], opacity=0.5, size=320))
    assert picture.shape[1] == 320 and picture.shape[0] > 240  # the legend is below
    for i, x in enumerate((20, 300)):  # corners, away from the names
        np.testing.assert_allclose(picture[235, x], draw.palette(2)[i] / 2, atol=1)


def test_overlay_of_a_large_image_keeps_its_pixels():
    picture = draw.overlay(np.zeros((30, 900, 3), np.uint8), np.full((30, 900), -1, np.int32), ["cat"])
    assert picture.width == 900


def test_letters_and_lines_grow_with_the_image():
    def white(side: int) -> float:
        """Share of the picture that lines and letters take; the image is black and the regions are dark."""
        labels = np.zeros((side, side), np.int32)
        labels[:, side // 2 :] = 1
        picture = draw.overlay(np.zeros((side, side, 3), np.uint8), labels, ["cat", "grass"], opacity=0.1)
        return float((np.asarray(picture)[:side] > 200).all(axis=-1).mean())

    assert 0.5 < white(2000) / white(500) < 2


def test_names_are_left_out_where_they_do_not_fit():
    labels = np.arange(24, dtype=np.int32)[None].repeat(24, 0) // 8
    names = ["cat", "a name that is far too long for so narrow a region", "grass"]
    image = np.zeros((24, 24, 3), np.uint8)
    picture = np.asarray(draw.overlay(image, labels, names, opacity=0.1))[:480]
    written = [(picture[:, x : x + 150] > 200).all(axis=-1).any() for x in (0, 165, 325)]
    assert written == [True, False, True]


def test_labels_that_have_no_name_count_as_none():
    image, labels = np.zeros((4, 4, 3), np.uint8), np.array([[0, 1], [2, 255]], np.int32).repeat(2, 0).repeat(2, 1)
    picture = draw.overlay(image, labels, ["cat", "grass"])
    np.testing.assert_array_equal(picture, draw.overlay(image, np.where(labels > 1, -1, labels), ["cat", "grass"]))


def test_legend_takes_any_text_and_as_many_columns_as_fit():
    entries = [(name, (0, 0, 0)) for name in ("cat", "небо", "a very long name that cannot possibly fit " * 4, "x")]
    assert draw.legend(entries, 200).width == 200
    short = [(name, (0, 0, 0)) for name in "abcdefgh"]
    assert draw.legend(short, 800).height < draw.legend(short, 60).height
    assert draw.legend([], 100).width == 100


def test_names_without_a_font_are_numbered(monkeypatch):
    image, labels = np.zeros((24, 24, 3), np.uint8), np.zeros((24, 24), np.int32)
    labels[:, 12:] = 1
    strange = chr(0xE5A7) * 3  # for private use, so that no font has it
    assert fonts.has_font("небо ψ") and not fonts.has_font(strange)
    result = draw.overlay(image, labels, ["cat", strange])
    numbered = draw.overlay(image, labels, ["cat", "#1"])
    assert result.height > numbered.height  # the note
    assert "fonts-noto-cjk" in fonts.missing_fonts_hint()
    np.testing.assert_array_equal(np.asarray(result)[: numbered.height], numbered)
    assert draw.overlay(image, np.zeros_like(labels), ["cat", strange]) == draw.overlay(
        image, np.zeros_like(labels), ["cat", "#1"]
    )  # it is not there
    entries = [("cat", (1, 2, 3)), (strange, (4, 5, 6))]
    plain = draw.gallery(["a"], [[image]], [("cat", (1, 2, 3)), ("#1", (4, 5, 6))])
    assert draw.gallery(["a"], [[image]], entries).height > plain.height
    # a font that has the letters is found wherever it is
    monkeypatch.setattr(fonts, "_letters", lambda path: frozenset([ord("天")]) if path == "c" else frozenset())
    monkeypatch.setattr(fonts, "_paths", lambda: ("a", "b", "c"))
    assert fonts._find_font.__wrapped__("天 天") == "c" and fonts._find_font.__wrapped__("空") is None
    monkeypatch.setattr(fonts, "_paths", lambda: ())  # as without matplotlib
    assert "pip install matplotlib" in fonts.missing_fonts_hint()


def test_gallery_is_a_table_of_pictures_of_any_shape():
    pictures = [np.full((10, 20, 3), 50, np.uint8), np.full((300, 100, 3), 200, np.uint8)]
    result = draw.gallery(["image", "a title of several words"], [pictures, pictures], [("cat", (1, 2, 3))], cell=100)
    assert isinstance(result, Image.Image)
    assert result.width == 6 + 2 * 106
    assert np.asarray(result)[:, 50].tolist().count([50, 50, 50]) == 2 * 50  # enlarged to 100x50


def test_the_share_stays_before_a_word_from_right_to_left():
    """The left of the entry, where the share is, looks the same with a Latin and with an Arabic name."""
    latin, arabic = (np.asarray(draw.legend([(f"39 %  {name}", (0, 0, 0))], 400)) for name in ("x", "ماء"))
    share = slice(22, 22 + int(fonts.width("39 %", 15)))
    np.testing.assert_array_equal(latin[:, share], arabic[:, share])


def test_each_word_has_a_font_of_its_own(monkeypatch):
    """A font with Thai letters often has no digits, and one with Chinese letters no Thai ones."""
    letters = {"thai": "หญ้า", "chinese": "草地", "arabic": "حشيش"}
    monkeypatch.setattr(fonts, "_letters", lambda path: frozenset(map(ord, letters[path])))
    monkeypatch.setattr(fonts, "_paths", lambda: tuple(letters))
    for cached in (fonts._find_font, fonts._runs):
        cached.cache_clear()
    try:
        assert fonts._runs("11 %  หญ้า") == (("11 %  ", ""), ("หญ้า", "thai"))
        assert fonts._runs("草 地 or 草 หญ้า") == (
            ("草 地 ", "chinese"),
            ("or ", ""),
            ("草 ", "chinese"),
            ("หญ้า", "thai"),
        )
        assert fonts._runs("حشيش حشيش") == (("حشيش حشيش", "arabic"),)
        assert fonts.has_font("grass 草") and not fonts.has_font("grass घास")
        for text in ("", " ", "a  b ", "草  หญ้า "):
            assert "".join(run for run, _ in fonts._runs(text)) == text
    finally:
        for cached in (fonts._find_font, fonts._runs):
            cached.cache_clear()
