"""Videos and folders of frames, with labels that are held steady over time."""

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from zeroseg_jax import draw
from zeroseg_jax.data.image_like import ImageLike, to_pixels
from zeroseg_jax.errors import InputError
from zeroseg_jax.segment.labelling.score_maps import embed_words, label_scores, score_image
from zeroseg_jax.segment.options import encodes
from zeroseg_jax.segment.prompts import Background, Templates
from zeroseg_jax.segment.result import SegmentResult
from zeroseg_jax.segment.segmenter import Segmenter

STEADY = 5
"""Frames whose scores are averaged, unless another number is given."""
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
"""Endings of video files."""


def segment_frames(
    model: Segmenter,
    frames: Iterable[ImageLike],
    labels: Iterable[str],
    *,
    steady: int = STEADY,
    templates: Templates | None = None,
    background: Background = None,
    **options: Any,
) -> Iterator[SegmentResult]:
    """Segments the frames of a video, one after the other.

    The label of a pixel comes from the mean of its scores over the last `steady` frames, this one included. So labels
    do not flicker, but they lag behind fast motion by about half as many frames. With `steady` of 1 every frame is
    labelled by itself. A frame of another size starts a new mean. The scores of these frames are kept in memory: 4
    bytes for each pixel, label and frame.

    `frames` are images as `Segmenter.segment` takes them, such as those of `read_video`. The other arguments are as
    there. `probability` of the results is None.

    Raises:
        InputError: `steady`, the words or an option cannot be used, or a frame cannot be read. Nothing is checked
            before the first result is taken from the iterator.
    """
    if not isinstance(steady, int) or steady < 1:
        raise InputError(f"steady is {steady!r}; it must be a number of frames of at least 1")
    labels = list(labels)
    words = embed_words(model, labels, templates, background, options)
    encoding = {name: value for name, value in options.items() if encodes(name)}
    last: deque[np.ndarray] = deque(maxlen=steady)
    for frame in frames:
        pixels = to_pixels(frame)
        scored = score_image(model, model.encode(pixels, **encoding), words)
        if last and last[0].shape != scored.pixels.shape:
            last.clear()
        last.append(scored.pixels)
        label_map = label_scores(np.mean(np.stack(last), axis=0), words)
        yield SegmentResult(pixels, label_map, scored.segments, scored.scores, labels)


def read_video(path: str | Path) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """The frames of a video file. Raises InputError if PyAV is missing or the file cannot be read."""
    av = _import_av()
    path = Path(path).expanduser()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path} has no pictures; give a video")
            for frame in container.decode(container.streams.video[0]):
                yield frame.to_ndarray(format="rgb24")
    except (OSError, av.FFmpegError) as error:
        raise InputError(f"the video {path} cannot be read ({error}); give another file") from error


def frame_rate(path: str | Path) -> Fraction:
    """Frames per second of a video file; 25 if the file does not tell. Raises InputError as `read_video` does."""
    av = _import_av()
    try:
        with av.open(str(Path(path).expanduser())) as container:
            streams = container.streams.video
            return Fraction(streams[0].average_rate or 25) if streams else Fraction(25)
    except (OSError, av.FFmpegError) as error:
        raise InputError(f"the video {path} cannot be read ({error}); give another file") from error


def draw_frame(result: SegmentResult, opacity: float = 0.55) -> UInt8[np.ndarray, "h w 3"]:
    """A frame with coloured regions. The legend below has all labels, so that all pictures have the same size."""
    painted = draw.paint(result.label_map, len(result.labels))
    blended = Image.blend(Image.fromarray(result.image), Image.fromarray(painted), opacity)
    colours = [tuple(colour) for colour in draw.palette(len(result.labels)).tolist()]
    entries = [*zip(result.labels, colours, strict=True), ("no label", draw.NO_LABEL)]
    return np.asarray(draw.stack([blended, draw.legend(entries, blended.width)]))


class VideoWriter:
    """Writes pictures of one size as an H.264 video."""

    def __init__(self, path: Path, rate: Fraction):
        self._av, self._path, self._rate = _import_av(), path, rate
        self._container: Any = None
        self._stream: Any = None

    def add(self, picture: UInt8[np.ndarray, "h w 3"]) -> None:
        """Adds a picture. H.264 has even sizes, so the last row or column of an odd size is left out."""
        height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
        try:
            if self._container is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._container = self._av.open(str(self._path), "w")
                self._stream = self._container.add_stream("libx264", rate=self._rate)
                self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
            frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
            self._container.mux(self._stream.encode(frame))
        except (OSError, self._av.FFmpegError) as error:
            raise InputError(f"the video {self._path} cannot be written ({error}); give another folder") from error

    def close(self) -> None:
        if self._container is not None:
            self._container.mux(self._stream.encode())
            self._container.close()


def _import_av() -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise InputError(f"videos need the package {error.name}; pip install 'zeroseg_jax[video]'") from error
    return av
