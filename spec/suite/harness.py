"""The harness: an env to wrap, a folder for its videos and a reader for them, and fixtures."""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from spec.suite.doubles import never
from spec.suite.fake_env import ENV_KEYWORDS, NUM_ACTIONS, FakeEnv
from spec.suite.genesis_scenes import Board, GenesisEnv, board, needs_genesis, start_genesis
from spec.suite.video_reader import Video, is_video_name, read_step, read_video

if TYPE_CHECKING:
    from spec.suite.plugin import Suite


def load(target: str, option: str = "") -> type:
    """The class that "package.module:Class" names."""
    name, _, attribute = target.partition(":")
    if not (name and attribute):
        raise pytest.UsageError(f"{option} {target} names no class: write package.module:Class")
    try:
        found = getattr(importlib.import_module(name), attribute)
    except Exception as error:  # noqa: BLE001 a module may raise anything
        cause = f"{type(error).__name__}: {first_line(error)}{place_of(error)}"
        raise pytest.UsageError(f"{option} {target} cannot be imported: {cause}") from None
    if not isinstance(found, type):
        raise pytest.UsageError(f"{option} {target} is no class")
    return found


def place_of(error: Exception) -> str:
    """The line of the user's code that an import failed at."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" (line {error.lineno} of {error.filename})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename != __file__ and "importlib" not in f.filename]
    return f" (line {own[-1].lineno} of {own[-1].filename})" if own else ""


def first_line(text: Any) -> str:
    """The first line of a message, shortened."""
    line = (str(text).strip().splitlines() or [""])[0]
    return line if len(line) <= 160 else line[:157] + "..."


def env_class(cls: type, base: type | None) -> type:
    """`cls`, made a subclass of the --env-base as well."""
    if not base:
        return cls
    if (
        "genesis" in sys.modules
    ):  # bases that import it ask for its device when they are constructed
        start_genesis()
    return type(cls.__name__, (cls, base), {})


class Harness:
    """An env to wrap, a folder for its videos, and a reader for what they show.

    Attributes:
        kind: "fake" or "genesis".
        out_dir: The folder for the videos.
    """

    def __init__(
        self,
        kind: str,
        out_dir: Path,
        implementation: type,
        env_class: type,
        reader: Callable[[np.ndarray], int] = read_step,
    ) -> None:
        self.kind = kind
        self.out_dir = out_dir
        self._implementation = implementation
        self._env_class = env_class
        self._reader = reader
        self._wrapped: list[tuple[Any, Any]] = []

    def env(self, **keywords: Any) -> Any:
        """A new env; `keywords` are those of `FakeEnv`."""
        return self._env_class(**keywords)

    def wrap(
        self,
        env: Any = None,
        *,
        build: bool = True,
        implementation: type | None = None,
        **keywords: Any,
    ) -> Any:
        """Wraps an env, a new one if none is given, and builds it.

        Args:
            env: What is wrapped.
            build: Whether `build()` is called.
            implementation: Another class than the one under test.
            **keywords: Those of `FakeEnv` go to the new env, the others to the wrapper. It gets
                out_dir, logging=False, video_length_sec=0.5, a frame a step and a step trigger for
                step 0 if not told else.
        """
        if env is None:
            names = ENV_KEYWORDS.intersection(keywords)
            env = self.env(**{name: keywords.pop(name) for name in names})
        keywords.setdefault("out_dir", str(self.out_dir))
        keywords.setdefault("video_length_sec", 0.5)
        keywords.setdefault("logging", False)
        if "episode_trigger" not in keywords:
            keywords.setdefault("step_trigger", lambda n: n == 0)
        if "fps" not in keywords:
            keywords["fps"] = round(1 / env.dt)
        implementation = implementation or self._implementation
        parameters = inspect.signature(implementation).parameters
        takes_all = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
        for name in [] if takes_all else [n for n in keywords if n not in parameters]:
            # Who lacks one of these never does what False switches off, and fails API-1 alone for it.
            if name not in ("record_final_episode", "logging") or keywords[name] is not False:
                pytest.skip(f"it takes no {name}, which is API-1's")
            del keywords[name]
        wrapper = implementation(env, **keywords)
        self._wrapped.append((wrapper, torch.zeros(env.num_envs, NUM_ACTIONS)))
        if build:
            wrapper.build()
        return wrapper

    def run(self, wrapper: Any, steps: int) -> list[Any]:
        """Steps `wrapper` so often, and returns what it returned."""
        (actions,) = [actions for wrapped, actions in self._wrapped if wrapped is wrapper]
        return [wrapper.step(actions) for _ in range(steps)]

    def forget(self) -> None:
        """Holds no wrapper any more."""
        self._wrapped.clear()

    def files(self) -> list[str]:
        """The names of all files in the folder, hidden ones too."""
        return sorted(os.listdir(self.out_dir)) if self.out_dir.is_dir() else []

    def video(self, name: str) -> Video:
        """Decodes one video."""
        return read_video(self.out_dir / name, self._reader)

    def videos(self) -> dict[str, list[int]]:
        """Name: the steps it shows. All files in the folder with a video's name must be videos."""
        return {n: self.video(n).steps for n in self.files() if is_video_name(n)}

    def close(self) -> None:
        """Closes all wrappers. Tests took folders and encoders away that some would miss."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for wrapper, _ in reversed(self._wrapped):
                with contextlib.suppress(Exception):
                    wrapper.close()


def saves_background(world: Harness) -> bool:
    """Whether the class under test saves a background recording when it is closed (REC-4)."""
    with contextlib.suppress(Exception):  # then that is what the tests find
        wrapper = world.wrap(step_trigger=never, record_final_episode=False)
        wrapper.start_recording("background")
        world.run(wrapper, 3)
        wrapper.close()
    return world.files() != []


@contextlib.contextmanager
def warned(*words: str, count: int = 1) -> Iterator[list[str]]:
    """Expects so many warnings, of any category. Each word, a pattern, is in all of them.

    Yields the list that they are put into.
    """
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    # Python's own, of the suite's code and its libraries.
    theirs = (ResourceWarning, DeprecationWarning, PendingDeprecationWarning)
    said += [str(w.message) for w in caught if not issubclass(w.category, theirs)]
    assert len(said) == count, f"{count} warning(s) were wanted, and there were {len(said)}: {said}"
    for text in said:
        missing = [word for word in words if not re.search(word, text, re.IGNORECASE)]
        assert not missing, f"the warning lacks {' and '.join(missing)}: {text!r}"


@contextlib.contextmanager
def saved_or_warned(fake: Any, name: str, steps: list[int]) -> Iterator[None]:
    """Where the folder went away, a class may make it anew and lose nothing, or warn."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    if name in fake.files():
        assert fake.video(name).steps == steps
    elif not caught:
        raise AssertionError(f"{name} is not there, and no warning says so")
    with warned(*([] if name in fake.files() else [name, "No such file"]), count=len(caught)):
        for warning in caught:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, 0)
    assert len(caught) == (name not in fake.files())


@pytest.fixture(scope="session")
def start_recording(
    suite: Suite, leave_to: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Any, str], None]:
    """Starts a recording of that type; of a class that saves no other an active one alone."""
    env, folder = env_class(FakeEnv, suite.env_base), tmp_path_factory.mktemp("background")
    saves = saves_background(Harness("fake", folder, suite.implementation, env))

    def start(wrapper: Any, type: str) -> None:
        if type == "active":
            wrapper.start_recording()
        elif saves:
            wrapper.start_recording(type)
        else:
            leave_to("it saves no background recording: API-2 or REC-4")

    return start


@pytest.fixture(scope="session", name="read_video")
def read_video_fixture() -> Callable[..., Video]:
    """`read_video`."""
    return read_video


@pytest.fixture
def fake(suite: Suite, tmp_path: Path) -> Iterator[Harness]:
    """A world without a simulation."""
    env = env_class(FakeEnv, suite.env_base)
    world = Harness("fake", tmp_path / "videos", suite.implementation, env)
    yield world
    world.close()


@pytest.fixture(scope="session")
def real_scene(suite: Suite) -> Any:
    """The class of envs on the one real scene of this run, and the reader for what it shows."""
    try:
        board(False, 0.1)
    except Exception as error:  # noqa: BLE001 Genesis raises many kinds for want of OpenGL
        suite.no_scene = f"{type(error).__name__}: {first_line(error)}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no real scene: {suite.no_scene}")
    return env_class(GenesisEnv, suite.env_base), Board.read


@pytest.fixture
def genesis(suite: Suite, real_scene: Any, tmp_path: Path) -> Iterator[Harness]:
    """A world with the real, headless Genesis scene."""
    world = Harness("genesis", tmp_path / "videos", suite.implementation, *real_scene)
    yield world
    world.close()


@pytest.fixture
def reproducible(genesis: Harness) -> Harness:
    """The world with the real scene, where its pictures can be made again from what was stored."""
    needs_genesis("1.0.0", "pictures cannot be reproduced later")
    return genesis


@pytest.fixture
def new_stage(suite: Suite, genesis: Harness) -> type:
    """The class of envs on real scenes of many kinds, as the implementation wants an env to be."""
    from spec.suite.genesis_scenes import Stage

    return env_class(Stage, suite.env_base)


@pytest.fixture(params=["fake", "genesis"])
def world(request: pytest.FixtureRequest) -> Harness:
    """The one world and the other."""
    return request.getfixturevalue(request.param)
