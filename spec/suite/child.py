"""The harness, for code in a child process too: without torch and pytest, it starts fast."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spec.suite.fake_env import ENV_KEYWORDS, NUM_ACTIONS, FakeEnv, filled
from spec.suite.video_reader import Video, is_video_name, read_step, read_video


def load(target: str) -> type:
    """Return the class that "package.module:Class" names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


class Harness:
    """An env to wrap, a folder for its videos, and a reader for what they show."""

    def __init__(
        self, out_dir: Path, implementation: type, env: type = FakeEnv, reader: Any = read_step
    ) -> None:
        self.out_dir = out_dir
        self.env = env  # the class of new envs, which takes the arguments of `FakeEnv`
        self._implementation = implementation
        self._reader = reader
        self._wrapped: list[tuple[Any, Any]] = []  # with the actions for each

    def wrap(
        self, env: Any = None, *, build: bool = True, implementation: Any = None, **keywords: Any
    ) -> Any:
        """Wrap an env, a new one if none is given, and call `build` if asked to.

        Arguments of `FakeEnv` go to the new env, the others to the wrapper, of the class under test
        unless it is given. By default, step 0 starts a recording of 0.5 s, a frame at each step.
        """
        if env is None:
            names = ENV_KEYWORDS.intersection(keywords)
            env = self.env(**{name: keywords.pop(name) for name in names})
        defaults = {"out_dir": str(self.out_dir), "video_length_sec": 0.5, "logging": False}
        keywords = {**defaults, **keywords}
        if "episode_trigger" not in keywords:
            keywords.setdefault("step_trigger", lambda n: n == 0)
        if "fps" not in keywords:
            keywords["fps"] = round(1 / env.dt)
        implementation = implementation or self._implementation
        wrapper = implementation(env, **taken(implementation, keywords))
        self._wrapped.append((wrapper, filled(0.0, env.num_envs, NUM_ACTIONS)))
        if build:
            wrapper.build()
        return wrapper

    def run(self, wrapper: Any, steps: int) -> list[Any]:
        """Step the wrapper so often, and return all results."""
        (actions,) = [actions for wrapped, actions in self._wrapped if wrapped is wrapper]
        return [wrapper.step(actions) for _ in range(steps)]

    def record(self, steps: int, env: Any = None, **keywords: Any) -> Any:
        """Wrap an env as `wrap` does, step the wrapper so often, and return it."""
        wrapper = self.wrap(env, **keywords)
        self.run(wrapper, steps)
        return wrapper

    def forget(self) -> None:
        """Let go of all wrappers."""
        self._wrapped.clear()

    def files(self) -> list[str]:
        """Return the names of all files in the folder, hidden ones too."""
        return sorted(os.listdir(self.out_dir)) if self.out_dir.is_dir() else []

    def video(self, name: str) -> Video:
        """Decode one video."""
        return read_video(self.out_dir / name, self._reader)

    def videos(self) -> dict[str, list[int]]:
        """Return the steps that each video shows. A broken one is an error."""
        return {name: self.video(name).steps for name in self.files() if is_video_name(name)}

    def close(self) -> None:
        """Close all wrappers, also those whose folder or encoder a test took away."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for wrapper, _ in reversed(self._wrapped):
                with contextlib.suppress(Exception):
                    wrapper.close()


def taken(implementation: type, keywords: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that a class takes. If it needs to take another, skip the test."""
    parameters = inspect.signature(implementation).parameters
    if any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
        return keywords
    for name in [name for name in keywords if name not in parameters]:
        # A class without one of these never does what False switches off.
        if name not in ("record_final_episode", "logging") or keywords[name]:
            error = sys.modules["pytest"].skip.Exception if "pytest" in sys.modules else TypeError
            raise error(f"it takes no {name}, which is API-1's")
    return {name: value for name, value in keywords.items() if name in parameters}


@contextlib.contextmanager
def warned(*words: str, count: int | None = 1) -> Iterator[list[str]]:
    """Expect so many warnings (None: any number), all with these patterns, and yield their texts."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    others = (ResourceWarning, DeprecationWarning, PendingDeprecationWarning)  # for developers
    texts += [str(w.message) for w in caught if not issubclass(w.category, others)]
    assert count in (None, len(texts)), f"expected {count} warning(s), got {len(texts)}: {texts}"
    for text in texts:
        missing = [word for word in words if not re.search(word, text, re.IGNORECASE)]
        assert not missing, f"the warning lacks {' and '.join(missing)}: {text!r}"


def children(parent: int = 0, program: str = "") -> list[int]:
    """Return the child processes, of this process if not told, whose program is named so."""
    found, parent = [], parent or os.getpid()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            name, fields = stat.read_text().rsplit(")", 1)
            if program in name and int(fields.split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def encoders() -> set[int]:
    """Return the ffmpeg processes that this one started and has not waited for."""
    return {*children(program="ffmpeg")}
