"""Draw and read step numbers, decode videos, read their MP4 boxes, compare frames."""

from __future__ import annotations

import functools
import itertools
import math
import os
import re
import subprocess
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np

# A number is drawn as 6 x 4 cells, black or white: its 16 bits and 8 of a checksum. Cells of 8
# pixels are whole blocks of H.264, and stay readable at every quality that people would look at.
CELL, COLUMNS, ROWS = 8, 6, 4


def draw_step(frame: np.ndarray, number: int) -> None:
    """Draw `number`, below 65536, into the top left 48 x 32 pixels."""
    code = number << 8 | zlib.crc32(number.to_bytes(2, "big")) & 0xFF
    cells = np.array([code >> i & 1 for i in range(ROWS * COLUMNS)], np.uint8)
    area = np.kron(cells.reshape(ROWS, COLUMNS), np.full((CELL, CELL), 255, np.uint8))
    frame[: ROWS * CELL, : COLUMNS * CELL] = area[..., None]


def read_step(frame: np.ndarray) -> int:
    """Read what `draw_step` drew. Raise a ValueError if it cannot be read."""
    area = frame[: ROWS * CELL, : COLUMNS * CELL]
    if area.shape != (ROWS * CELL, COLUMNS * CELL, 3):
        raise ValueError(f"no step can be read in a frame of shape {frame.shape}")
    cells = area.reshape(ROWS, CELL, COLUMNS, CELL, 3)[:, 2:-2, :, 2:-2]
    number, check = divmod(read_bits(cells), 256)
    if check != zlib.crc32(number.to_bytes(2, "big")) & 0xFF:
        raise ValueError("no step can be read in the frame")
    return number


def read_bits(cells: np.ndarray) -> int:
    """Return the number whose bits are black or white cells: (row, y, column, x, colour)."""
    levels = cells.mean(axis=(1, 3, 4)).ravel()
    if np.abs(levels - 127).min() < 64:
        raise ValueError("no step can be read in the frame")
    return sum(1 << i for i, level in enumerate(levels) if level > 127)


def box(data: bytes, path: str) -> bytes:
    """Return the content of the first MP4 box at a path such as "moov/trak"."""
    for name in path.split("/"):
        found, rest = b"", data
        while found != name.encode():
            size, found = int.from_bytes(rest[:4], "big"), rest[4:8]
            head = 16 if size == 1 else 8
            size = int.from_bytes(rest[8:16], "big") if size == 1 else size or len(rest)
            if not head <= size <= len(rest):
                raise AssertionError(f"there is no MP4 box {path}, or one does not fit its file")
            data, rest = rest[head:size], rest[size:]
    return data


def is_video_name(name: str) -> bool:
    """Return whether people would take the file for a video: not hidden, with a video's suffix."""
    return name[0] != "." and Path(name).suffix.lower() in (".mp4", ".m4v", ".mov", ".mkv")


# ffmpeg's option to decode each frame once. No release has both names for ever.
FFMPEG_MAJOR = int(re.search(r"\d+", imageio_ffmpeg.get_ffmpeg_version())[0])
EACH_FRAME = ["-vsync" if FFMPEG_MAJOR < 6 else "-fps_mode", "passthrough"]


@dataclass
class Video:
    """A decoded video. Facts that only MP4 files have are read when they are asked for."""

    path: Path
    frames: list[np.ndarray] = field(repr=False)
    width: int
    height: int
    codec: str
    pix_fmt: str
    start: float  # when the first frame is shown, in seconds
    reader: Callable[[np.ndarray], int] = field(repr=False)

    @property
    def count(self) -> int:
        """The number of frames."""
        return len(self.frames)

    @functools.cached_property
    def steps(self) -> list[int]:
        """The step that each frame shows."""
        return [self.reader(frame) for frame in self.frames]

    @functools.cached_property
    def rate(self) -> Fraction:
        """Frames per second, exactly, from the MP4's own clock."""
        media = box(self.path.read_bytes(), "moov/trak/mdia")
        header, table = box(media, "mdhd"), box(media, "minf/stbl/stts")
        at = 20 if header[0] else 12
        counts, lengths = np.frombuffer(table[8:], ">u4").reshape(-1, 2).T.tolist()
        if sum(counts) != self.count or len(set(lengths)) != 1:
            words = f"{self.path.name} has {self.count} frames, and its index"
            raise AssertionError(f"{words} {counts}, which last {lengths}")
        return Fraction(int.from_bytes(header[at : at + 4], "big"), lengths[0])

    @property
    def duration(self) -> float:
        """Seconds."""
        return float(self.count / self.rate)

    @property
    def index_first(self) -> bool:
        """Whether the MP4's index stands before its data."""
        data = self.path.read_bytes()
        return data.index(b"moov") < data.index(b"mdat")


def read_video(
    path: str | os.PathLike[str], reader: Callable[[np.ndarray], int] = read_step
) -> Video:
    """Decode a video with ffmpeg. Raise an AssertionError if it cannot be played."""
    path = Path(path)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-xerror", "-i", f"file:{path}"]
    command += [*EACH_FRAME, "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"]
    result = subprocess.run(command, capture_output=True, check=False)
    words = result.stderr.decode(errors="replace")
    stream = re.search(r"Stream #0:0.*Video: (\w+)[^,]*, (\w+).*?, (\d+)x(\d+)", words)
    if result.returncode or not stream or not result.stdout:
        cause = words.strip().splitlines()[-1:] or [f"ffmpeg ended with {result.returncode}"]
        raise AssertionError(f"{path.name} cannot be played: {cause[0]}")
    width, height = int(stream[3]), int(stream[4])
    frames = list(np.frombuffer(result.stdout, np.uint8).reshape(-1, height, width, 3))
    start = re.search(r"Duration: .*, start: (-?[\d.]+)", words)
    seconds = float(start[1]) if start else 0.0
    return Video(path, frames, width, height, stream[1], stream[2], seconds, reader)


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


def psnr(frame: np.ndarray, expected: np.ndarray) -> float:
    """Return decibels; 30 and more look alike."""
    assert frame.shape == expected.shape
    error = np.mean((frame.astype(float) - expected) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def moving_clip(count: int) -> list[np.ndarray]:
    """Return frames of a box and thin coloured lines that move over a dark floor with a pattern."""
    y, x = np.mgrid[:240, :320]
    floor = 40 + 10 * ((x // 20 + y // 20) % 2) + np.random.default_rng(0).normal(0, 2, x.shape)
    frames = []
    for t in range(count):
        frame = np.repeat(floor[..., None], 3, axis=2)
        left, top = 20 + 5 * t, 90 + round(30 * math.sin(0.3 * t))
        box = (x >= left) & (x < left + 60) & (y >= top) & (y < top + 40)
        frame[box] = np.stack([200 - x, 120 + y % 8, 60 + x % 16], axis=2)[box]
        for i, colour in enumerate([(255, 40, 40), (40, 255, 40), (60, 90, 255)]):
            angle = 0.15 * t + 2.1 * i
            across = (x - left - 30) * math.sin(angle) - (y - top + 25) * math.cos(angle)
            along = (x - left - 30) * math.cos(angle) + (y - top + 25) * math.sin(angle)
            frame[(abs(across) < 1.2) & (along > 0) & (along < 55)] = colour
        frames.append(frame.clip(0, 255).astype(np.uint8))
    return frames


BT709 = [[0.2126, 0.7152, 0.0722], [-0.1146, -0.3854, 0.5], [0.5, -0.4542, -0.0458]]
BT601 = [[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]]


def sharpness(frames: list[np.ndarray], expected: list[np.ndarray]) -> tuple[float, float]:
    """Return PSNR of luma where something moves, and mean error of chroma where something was.

    By BT.709 or BT.601, whichever a class encodes by: what the other takes for luma has some of the
    chroma in it, of which yuv420p keeps a quarter.
    """

    def by(matrix: list[list[float]]) -> tuple[float, float]:
        wanted = np.array(expected, float) @ np.array(matrix).T
        error = np.array(frames, float) @ np.array(matrix).T - wanted
        moves = abs(np.diff(wanted, axis=0)).max(axis=3) > 8
        for axis in (1, 2):  # and eight pixels around, which an encoder spoils as well
            moves = np.logical_or.reduce([np.roll(moves, i, axis) for i in range(-8, 9)])
        luma = (error[1:, ..., 0][moves] ** 2).mean()
        was = np.array([moves[i - 5 : i].any(axis=0) & ~moves[i] for i in range(5, len(moves))])
        return 10 * math.log10(255**2 / luma), float(abs(error[6:, ..., 1:][was]).mean())

    return max(by(BT709), by(BT601))
