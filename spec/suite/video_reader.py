"""Draw and read step numbers, decode videos, read their MP4 boxes, compare frames."""

from __future__ import annotations

import functools
import itertools
import math
import os
import re
import subprocess
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np

# A number is drawn as 6 x 4 cells, black or white: its 16 bits and 8 of a checksum. Cells of 8
# pixels are whole blocks of H.264, and stay readable at every quality that people would look at.
CELL, COLUMNS, BITS = 8, 6, 24


def draw_step(picture: np.ndarray, number: int) -> None:
    """Draws `number`, below 65536, into the top left 48 x 32 pixels."""
    code = number << 8 | zlib.crc32(number.to_bytes(2, "big")) & 0xFF
    cells = np.array([code >> i & 1 for i in range(BITS)], np.uint8).reshape(-1, COLUMNS)
    area = np.kron(cells, np.full((CELL, CELL), 255, np.uint8))
    picture[: area.shape[0], : area.shape[1]] = area[..., None]


def read_step(picture: np.ndarray) -> int:
    """Reads what `draw_step` drew. Raises ValueError if it cannot be read."""
    height, width = BITS // COLUMNS * CELL, COLUMNS * CELL
    if picture.shape[0] < height or picture.shape[1] < width:
        raise ValueError(f"no step can be read in a picture of shape {picture.shape}")
    area = picture[:height, :width].reshape(BITS // COLUMNS, CELL, COLUMNS, CELL, 3)
    number, check = divmod(read_bits(area[:, 2:-2, :, 2:-2]), 256)
    if check != zlib.crc32(number.to_bytes(2, "big")) & 0xFF:
        raise ValueError("no step can be read in the picture")
    return number


def read_bits(cells: np.ndarray) -> int:
    """The number whose bits are black or white cells, an array (row, y, column, x, colour)."""
    levels = cells.mean(axis=(1, 3, 4)).ravel()
    if np.abs(levels - 127).min() < 64:
        raise ValueError("no step can be read in the picture")
    return sum(1 << i for i, level in enumerate(levels) if level > 127)


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[str, int, int]]:
    """The MP4 boxes between two offsets: name, start and end of the content."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, head = int.from_bytes(data[start : start + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        stop = start + size if size else end
        if stop < start + head or stop > end:
            raise AssertionError(f"the MP4 box at byte {start} does not fit into its file")
        yield data[start + 4 : start + 8].decode("latin-1"), start + head, stop
        start = stop


def box(data: bytes, path: str) -> bytes:
    """The content of the first box at a path such as "moov/trak"."""
    start, end = 0, len(data)
    for name in path.split("/"):
        found = [(s, e) for n, s, e in boxes(data, start, end) if n == name]
        if not found:
            raise AssertionError(f"there is no MP4 box {path}")
        start, end = found[0]
    return data[start:end]


def is_video_name(name: str) -> bool:
    """Whether people would take the file for a video: not hidden, and with one of ARG-5's suffixes."""
    return name[0] != "." and Path(name).suffix.lower() in (".mp4", ".m4v", ".mov", ".mkv")


# ffmpeg's option to decode each frame once, of which no release has both names for ever.
FFMPEG_MAJOR = int(re.search(r"\d+", imageio_ffmpeg.get_ffmpeg_version())[0])


EACH_FRAME = ["-vsync" if FFMPEG_MAJOR < 6 else "-fps_mode", "passthrough"]


@dataclass
class Video:
    """A decoded video. What only MP4 files tell is read when it is asked for."""

    path: Path
    frames: list[np.ndarray] = field(repr=False)
    width: int
    height: int
    codec: str
    pix_fmt: str
    reader: Callable[[np.ndarray], int] = field(repr=False)
    start: float = 0.0  # when the first frame is shown, in seconds

    @property
    def count(self) -> int:
        """The number of frames."""
        return len(self.frames)

    @functools.cached_property
    def steps(self) -> list[int]:
        """The step that each frame shows."""
        return [self.reader(frame) for frame in self.frames]

    @functools.cached_property
    def _timing(self) -> tuple[Fraction, Fraction]:
        media = box(self.path.read_bytes(), "moov/trak/mdia")
        header, table = box(media, "mdhd"), box(media, "minf/stbl/stts")
        at = 20 if header[0] else 12
        timescale = int.from_bytes(header[at : at + 4], "big")
        numbers = [int.from_bytes(table[i : i + 4], "big") for i in range(8, len(table), 4)]
        counts, deltas = numbers[::2], numbers[1::2]
        if len(set(deltas)) != 1:
            raise AssertionError(f"the frames of {self.path.name} last differently long: {deltas}")
        return Fraction(timescale, deltas[0]), Fraction(deltas[0] * sum(counts), timescale)

    @property
    def rate(self) -> Fraction:
        """Frames per second, exactly, from the MP4's own clock."""
        return self._timing[0]

    @property
    def duration(self) -> float:
        """Seconds."""
        return float(self._timing[1])

    @property
    def index_first(self) -> bool:
        """Whether the MP4's index stands before its data."""
        names = [name for name, _, _ in boxes(self.path.read_bytes())]
        return names.index("moov") < names.index("mdat")


def read_video(
    path: str | os.PathLike[str], reader: Callable[[np.ndarray], int] = read_step
) -> Video:
    """Decodes a video with ffmpeg.

    Raises:
        AssertionError: It cannot be played.
    """
    path = Path(path)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-xerror", "-i", f"file:{path}"]
    command += [*EACH_FRAME, "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"]
    result = subprocess.run(command, capture_output=True, check=False)
    words = result.stderr.decode(errors="replace")
    stream = re.search(r"Stream #0:0.*Video: (\w+)[^,]*, (\w+).*?, (\d+)x(\d+)", words)
    if result.returncode or not stream or not result.stdout:
        cause = words.strip().splitlines()[-1:] or [f"ffmpeg ended with {result.returncode}"]
        raise AssertionError(f"{path.name} cannot be played: {cause[0]}")
    codec, pix_fmt, width, height = stream[1], stream[2], int(stream[3]), int(stream[4])
    frames = list(np.frombuffer(result.stdout, np.uint8).reshape(-1, height, width, 3))
    start = re.search(r"Duration: .*, start: (-?[\d.]+)", words)
    start_seconds = float(start[1]) if start else 0.0
    return Video(path, frames, width, height, codec, pix_fmt, reader, start_seconds)


def assert_steps(steps: list[int], expected: Iterable[int], exact: bool = False) -> None:
    """Check which steps a video shows.

    Unless `exact`, it may have a frame more or less at either end, so that a class that is wrong by
    one frame in each video fails TIME-4, whose tests are exact, and not every clause.
    """
    expected = [*expected]
    stride = expected[1] - expected[0] if len(expected) > 1 else 1
    around = itertools.product((0,) if exact else (0, -stride, stride), repeat=2)
    near = [range(expected[0] + a, expected[-1] + b + 1, stride) for a, b in around]
    if steps not in [[*steps_of] for steps_of in near]:
        raise AssertionError(f"the video shows the steps {steps}, expected {expected}")


def assert_videos(world: Any, expected: dict[str, Iterable[int]], exact: bool = False) -> None:
    """Check which videos the folder has, and by `assert_steps` what they show."""
    videos = world.videos()
    if [*videos] != sorted(expected):
        raise AssertionError(f"the videos are {[*videos]}, expected {sorted(expected)}")
    for name, steps in videos.items():
        assert_steps(steps, expected[name], exact)


def psnr(frame: np.ndarray, picture: np.ndarray) -> float:
    """Decibels; 30 and more look alike."""
    assert frame.shape == picture.shape
    error = np.mean((frame.astype(float) - picture) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def moving_clip(count: int) -> list[np.ndarray]:
    """A box and thin coloured lines that move over a dark floor with a pattern."""
    y, x = np.mgrid[:240, :320]
    floor = 40 + 10 * ((x // 20 + y // 20) % 2) + np.random.default_rng(0).normal(0, 2, x.shape)
    pictures = []
    for t in range(count):
        picture = np.repeat(floor[..., None], 3, axis=2)
        left, top = 20 + 5 * t, 90 + round(30 * math.sin(0.3 * t))
        box = (x >= left) & (x < left + 60) & (y >= top) & (y < top + 40)
        picture[box] = np.stack([200 - x, 120 + y % 8, 60 + x % 16], axis=2)[box]
        for i, colour in enumerate([(255, 40, 40), (40, 255, 40), (60, 90, 255)]):
            angle = 0.15 * t + 2.1 * i
            across = (x - left - 30) * math.sin(angle) - (y - top + 25) * math.cos(angle)
            along = (x - left - 30) * math.cos(angle) + (y - top + 25) * math.sin(angle)
            picture[(abs(across) < 1.2) & (along > 0) & (along < 55)] = colour
        pictures.append(picture.clip(0, 255).astype(np.uint8))
    return pictures


def sharpness(frames: list[np.ndarray], pictures: list[np.ndarray]) -> tuple[float, float]:
    """PSNR of luma where something moves, and the mean error of chroma where something was.

    By BT.709 or BT.601, whichever a class encodes by: what the other takes for luma has some of the
    chroma in it, of which yuv420p keeps a quarter.
    """
    return max(sharpness_by(matrix, frames, pictures) for matrix in (BT709, BT601))


BT709 = [[0.2126, 0.7152, 0.0722], [-0.1146, -0.3854, 0.5], [0.5, -0.4542, -0.0458]]


BT601 = [[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]]


def sharpness_by(
    matrix: list[list[float]], frames: list[np.ndarray], pictures: list[np.ndarray]
) -> tuple[float, float]:
    weights = np.array(matrix)
    seen = np.array(frames, float) @ weights.T
    wanted = np.array(pictures, float) @ weights.T
    moves = abs(np.diff(wanted, axis=0)).max(axis=3) > 8
    moves = np.array([widened(m) for m in moves])
    luma = ((seen - wanted)[1:, ..., 0][moves] ** 2).mean()
    was = np.array([moves[max(0, i - 5) : i].any(axis=0) & ~moves[i] for i in range(5, len(moves))])
    trail = abs((seen - wanted)[6:, ..., 1:][was]).mean()
    return 10 * math.log10(255**2 / luma), float(trail)


def widened(mask: np.ndarray) -> np.ndarray:
    """The mask and what lies within eight pixels of it, which an encoder spoils as well."""
    for axis in (0, 1):
        mask = np.logical_or.reduce([np.roll(mask, shift, axis) for shift in range(-8, 9)])
    return mask
