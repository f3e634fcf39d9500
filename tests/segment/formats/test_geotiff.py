"""GeoTIFF in, GeoTIFF out. Needs rasterio."""

import sys
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from zeroseg_jax import InputError
from zeroseg_jax.data.scenes.render import scene
from zeroseg_jax.segment import load
from zeroseg_jax.segment.__main__ import main
from zeroseg_jax.segment.formats.geotiff import ramp, segment_geotiff, starts

rasterio = pytest.importorskip("rasterio")
LABELS = ["cat", "grass", "天空"]


@pytest.fixture
def make_raster(tmp_path):
    """Writes a georeferenced raster with the missing value 0."""

    def make(pixels: np.ndarray, name: str = "in.tif", **changes):
        profile = {
            "driver": "GTiff",
            "height": pixels.shape[0],
            "width": pixels.shape[1],
            "count": pixels.shape[2],
            "dtype": pixels.dtype,
            "crs": "EPSG:32633",
            "transform": rasterio.transform.from_origin(400_000, 5_800_000, 10, 10),
        }
        with rasterio.open(tmp_path / name, "w", **(profile | changes)) as raster:
            raster.write(np.moveaxis(pixels, -1, 0))
        return tmp_path / name

    return make


def test_a_raster_in_one_window_is_an_image(model, image, make_raster, tmp_path):
    for background in (None, 0.4, ["on"]):
        segment_geotiff(model, make_raster(image), tmp_path / "new/out.tif", LABELS, background=background)
        expected = model.segment(image, LABELS, background=background).label_map
        with rasterio.open(tmp_path / "in.tif") as given, rasterio.open(tmp_path / "new/out.tif") as written:
            assert (written.crs, written.transform, written.shape) == (given.crs, given.transform, given.shape)
            np.testing.assert_array_equal(written.read(1), np.where(expected < 0, 255, expected))
            assert written.nodata == 255 and [written.tags(1)[f"LABEL_{i}"] for i in range(3)] == LABELS


def test_windows_cover_every_pixel_once():
    for length, window, overlap in ((10, 16, 4), (16, 16, 4), (17, 16, 4), (100, 16, 4), (100, 16, 0), (28, 16, 4)):
        begun = starts(length, window, overlap)
        assert begun[0] == 0 and begun[-1] == max(0, length - window) and begun == sorted(set(begun))
        assert all(b - a <= window - overlap for a, b in pairwise(begun))
    np.testing.assert_allclose(ramp(6, 2), [1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3])


def test_seams_do_not_show(make_raster, tmp_path):
    """How often the label changes from one pixel to the next, across borders of windows.

    It is 14 % without an overlap and 2 % with one of half a window; away from the borders it is 1 %.
    """
    demo, calls = load("demo"), list[tuple[int, int]]()
    large = Image.fromarray(scene(3, "test").image).resize((320, 320), Image.Resampling.BICUBIC)
    source, labels = make_raster(np.asarray(large)), ["grass", "bricks", "wood", "star", "fish", "heart", "water"]
    changes = {}
    for overlap in (0, 64):
        out = tmp_path / f"{overlap}.tif"
        segment_geotiff(
            demo, source, out, labels, window=128, overlap=overlap, report=lambda *count: calls.append(count)
        )
        with rasterio.open(out) as written:
            label_map = written.read(1)
        across = np.stack(
            [(label_map[:, 1:] != label_map[:, :-1]).mean(axis=0), (label_map[1:] != label_map[:-1]).mean(axis=1)]
        )
        begun = starts(320, 128, overlap)
        borders = sorted({end - 1 for start in begun for end in (start, start + 128) if 0 < end < 320})
        changes[overlap] = across[:, borders].mean()
    assert calls == [(n, 9) for n in range(1, 10)] + [(n, 16) for n in range(1, 17)]
    assert changes[64] < changes[0] / 4


def test_missing_pixels_sixteen_bits_and_bands(model, image, make_raster, tmp_path):
    deep = image.astype(np.uint16) * 37 + 100
    deep[:5, :7] = 0
    four = np.concatenate([deep[..., :1] * 0 + 9, deep], axis=-1)
    segment_geotiff(model, make_raster(four, nodata=0), tmp_path / "out.tif", LABELS, bands=(2, 3, 4))
    with rasterio.open(tmp_path / "out.tif") as written:
        label_map = written.read(1)
    low, high = (np.percentile(deep[deep[..., 0] > 0], q, axis=0) for q in (2, 98))
    stretched = (255 * ((deep - low) / (high - low)).clip(0, 1)).round().astype(np.uint8)
    expected = model.segment(stretched, LABELS).label_map
    expected[:5, :7] = 255  # missing in the bands that count, though band 1 has values
    np.testing.assert_array_equal(label_map, expected)


def test_many_labels_have_sixteen_bits(model, image, make_raster, tmp_path):
    segment_geotiff(model, make_raster(image), tmp_path / "out.tif", [f"thing {i}" for i in range(300)])
    with rasterio.open(tmp_path / "out.tif") as written:
        assert written.dtypes == ("uint16",) and written.nodata == 65535 and written.read(1).max() < 300


def test_bad_input_is_one_sentence(model, image, make_raster, tmp_path, monkeypatch):
    raster = make_raster(image)
    (tmp_path / "broken.tif").write_bytes(b"II*\0nothing")
    for source, destination, options, words in (
        (tmp_path / "none.tif", tmp_path / "o.tif", {}, "none.tif cannot be segmented"),
        (tmp_path / "broken.tif", tmp_path / "o.tif", {}, "broken.tif cannot be segmented"),
        (raster, raster, {}, "is the input"),
        (raster, tmp_path / "o.tif", {"bands": (1, 7, 2)}, "has the bands 1 to 3"),
        (raster, tmp_path / "o.tif", {"window": 8, "overlap": 8}, "cannot overlap by 8"),
        (raster, tmp_path / "o.tif", {"pamr": 3}, "pamr cannot be used"),
    ):
        with pytest.raises(InputError, match=words):
            segment_geotiff(model, source, destination, LABELS, **options)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(InputError, match=r"pip install 'zeroseg_jax\[geo\]'"):
        segment_geotiff(model, raster, tmp_path / "o.tif", LABELS)


def test_the_command_line(tiny_clip, image, make_raster, tmp_path, capsys):
    make_raster(image, "a.tif")
    Image.fromarray(image).save(tmp_path / "b.png")
    command = [
        str(tmp_path / "a.tif"),
        "--model",
        str(tiny_clip),
        "--labels",
        "cat,grass",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main([*command, "--format", "geotiff"]) == 0
    with rasterio.open(tmp_path / "o/a.tif") as written:
        assert written.crs.to_epsg() == 32633
    assert capsys.readouterr().out == f"1 of 1 images segmented into {tmp_path / 'o'}\n"
    (tmp_path / "bad.tif").write_bytes(b"no")
    assert main([str(tmp_path / "bad.tif"), *command, "--format", "geotiff"]) == 1
    assert "bad.tif cannot be segmented" in capsys.readouterr().err
    assert main([*command, "--format", "geotiff,png"]) == 2
