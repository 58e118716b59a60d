"""What code in a child process works with: a small harness, which starts fast without torch and pytest."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from spec.suite.fake_env import ENV_KEYWORDS, NUM_ACTIONS, FakeEnv
from spec.suite.video_reader import Video, is_video_name, read_video


def load(target: str) -> type:
    """Return the class that "package.module:Class" names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


class World:
    """The fake env to wrap, and a folder for its videos. Its methods are those of `Harness`."""

    def __init__(self, out_dir: Path, implementation: type, env_class: type = FakeEnv) -> None:
        self.out_dir = out_dir
        self.env = env_class
        self._implementation = implementation
        self._wrapped: list[Any] = []

    def wrap(self, env: Any = None, *, build: bool = True, **keywords: Any) -> Any:
        """Wrap an env, a new one if none is given. Keywords of `FakeEnv` go to the new env."""
        if env is None:
            names = ENV_KEYWORDS.intersection(keywords)
            env = self.env(**{name: keywords.pop(name) for name in names})
        defaults = {"out_dir": str(self.out_dir), "video_length_sec": 0.5, "logging": False}
        keywords = {**defaults, "fps": round(1 / env.dt), **keywords}
        if "episode_trigger" not in keywords:
            keywords.setdefault("step_trigger", lambda n: n == 0)
        parameters = inspect.signature(self._implementation).parameters
        for name in ("record_final_episode", "logging"):  # to be switched off only if it exists
            if name not in parameters and keywords.get(name) is False:
                del keywords[name]
        wrapper = self._implementation(env, **keywords)
        self._wrapped.append(wrapper)
        if build:
            wrapper.build()
        return wrapper

    def run(self, wrapper: Any, steps: int) -> list[Any]:
        """Step the wrapper so often, and return all results."""
        actions = np.zeros((wrapper.num_envs, NUM_ACTIONS), np.float32)
        return [wrapper.step(actions) for _ in range(steps)]

    def forget(self) -> None:
        """Let go of all wrappers."""
        self._wrapped.clear()

    def files(self) -> list[str]:
        """Return the names of all files in the folder."""
        return sorted(os.listdir(self.out_dir)) if self.out_dir.is_dir() else []

    def video(self, name: str) -> Video:
        """Decode one video."""
        return read_video(self.out_dir / name)

    def videos(self) -> dict[str, list[int]]:
        """Return the steps that each video shows. A broken one is an error."""
        return {name: self.video(name).steps for name in self.files() if is_video_name(name)}


@contextlib.contextmanager
def warned() -> Iterator[list[str]]:
    """Yield a list that takes the text of each warning, except those for Python's developers."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    kinds = (RuntimeWarning, UserWarning)
    texts += [str(w.message) for w in caught if issubclass(w.category, kinds)]


def encoders(parent: int | None = None) -> set[int]:
    """Return the ffmpeg processes that a process, or this one, started and has not waited for."""
    found, parent = set(), parent or os.getpid()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = stat.read_text().rsplit(")", 1)
        except OSError:
            continue
        if "ffmpeg" in name and int(fields.split()[1]) == parent:
            found.add(int(stat.parent.name))
    return found


def children(parent: int | None = None) -> list[int]:
    """Return all child processes of a process, or of this one."""
    found = []
    for path in Path(f"/proc/{parent or os.getpid()}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # its thread has just ended
            found += map(int, path.read_text().split())
    return found
