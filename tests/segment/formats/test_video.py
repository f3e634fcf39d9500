"""Frames with labels that are held steady over time, and video files. The files need PyAV."""

import json
import sys
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from zeroseg_jax import InputError
from zeroseg_jax.segment.__main__ import main
from zeroseg_jax.segment.formats.video import VideoWriter, draw_frame, frame_rate, read_video, segment_frames
from zeroseg_jax.segment.labelling.score_maps import embed_words, score_image

LABELS = ["cat", "grass", "sky"]


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """One picture with other noise in each frame."""
    rng = np.random.default_rng(0)
    still = rng.integers(0, 256, (24, 34, 3))
    return [(still + rng.normal(0, 40, still.shape)).clip(0, 255).astype(np.uint8) for _ in range(6)]


def test_labels_come_from_the_mean_of_the_last_frames(model, frames):
    words = embed_words(model, LABELS, None, None, {})
    scores = [score_image(model, model.encode(frame), words).pixels for frame in frames]
    for i, result in enumerate(segment_frames(model, frames, LABELS, steady=3)):
        expected = np.mean(scores[max(0, i - 2) : i + 1], axis=0, dtype=np.float32)
        assert (result.label_map == expected.argmax(axis=-1)).mean() > 0.999  # of equal means either may win
        np.testing.assert_array_equal(result.image, frames[i])
    alone = [model.segment(frame, LABELS, background=0.4) for frame in frames]
    for result, expected in zip(segment_frames(model, frames, LABELS, steady=1, background=0.4), alone, strict=True):
        np.testing.assert_array_equal(result.label_map, expected.label_map)
        np.testing.assert_array_equal(result.segments, expected.segments)
        np.testing.assert_array_equal(result.scores, expected.scores)


def test_steady_labels_flicker_less(model, frames):
    def flicker(steady: int) -> float:
        maps = [result.label_map for result in segment_frames(model, frames, LABELS, steady=steady)]
        return float(np.mean([a != b for a, b in pairwise(maps)]))

    assert 0 < flicker(4) < 0.7 * flicker(1)


def test_a_frame_of_another_size_starts_anew(model, frames):
    other = frames[0][:, :20]
    *_, last = segment_frames(model, [frames[0], frames[1], other], LABELS, steady=3)
    np.testing.assert_array_equal(last.label_map, model.segment(other, LABELS).label_map)


def test_bad_arguments(model, frames, monkeypatch, tmp_path):
    for options, words in (({"steady": 0}, "steady is 0"), ({"pamr": 2}, "pamr cannot be used")):
        with pytest.raises(InputError, match=words):
            next(segment_frames(model, frames, LABELS, **options))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"pip install 'zeroseg_jax\[video\]'"):
        next(read_video(tmp_path / "x.mp4"))


def test_video_files(tiny_clip, frames, tmp_path, capsys):
    pytest.importorskip("av")
    writer = VideoWriter(tmp_path / "in/clip.mp4", Fraction(10))
    for frame in frames:
        writer.add(frame)
    writer.close()
    assert frame_rate(tmp_path / "in/clip.mp4") == 10
    read = list(read_video(tmp_path / "in/clip.mp4"))
    assert len(read) == 6 and read[0].shape == frames[0].shape
    out = tmp_path / "out"
    command = ["--model", str(tiny_clip), "--labels", "cat,grass", "--out", str(out), "--templates", "name"]
    assert main([str(tmp_path / "in/clip.mp4"), *command, "--steady", "2"]) == 0
    masks = sorted((out / "clip").iterdir())
    assert [path.name for path in masks] == [f"{i:06d}_mask.png" for i in range(6)]
    assert np.asarray(Image.open(masks[0])).shape == (24, 34)
    drawn = list(read_video(out / "clip_overlay.mp4"))
    assert len(drawn) == 6 and drawn[0].shape[0] > 24 and drawn[0].shape[1] >= 34  # with the legend
    assert capsys.readouterr().out == f"1 of 1 images segmented into {out}\n"
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    assert main([str(tmp_path / "bad.mp4"), *command]) == 1
    assert "bad.mp4 cannot be read" in capsys.readouterr().err
    assert main([str(tmp_path / "bad.mp4"), *command, "--steady", "0"]) == 2


def test_a_folder_of_frames(tiny_clip, frames, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"in/{i}.png")
    (tmp_path / "in/3.png").write_bytes(b"")
    command = ["--model", str(tiny_clip), "--labels", "cat,grass", "--out", str(tmp_path / "o"), "--steady", "3"]
    assert main([str(tmp_path / "in"), *command, "--no-overlay"]) == 1
    written = json.loads((tmp_path / "o/segments.json").read_text())
    assert [image["mask"] for image in written["images"]] == [f"{i}_mask.png" for i in (0, 1, 2, 4, 5)]
    assert "3.png cannot be read" in capsys.readouterr().err


def test_all_frames_are_drawn_at_one_size(model, frames):
    first, last = (
        draw_frame(model.segment(frame, labels)) for frame, labels in ((frames[0], LABELS), (frames[1], LABELS))
    )
    assert first.shape == last.shape and first.dtype == np.uint8
