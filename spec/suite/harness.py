"""The fixtures: the harness on the fake env and on the real scene."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from spec.suite import child
from spec.suite.child import Harness, warned
from spec.suite.doubles import never
from spec.suite.fake_env import FakeEnv
from spec.suite.genesis_scenes import Board, GenesisEnv, Stage, board, needs_genesis, start_genesis
from spec.suite.video_reader import assert_steps


def load(target: str, option: str = "") -> type:
    """Return the class that "package.module:Class" names, or say in one line why it cannot."""
    if not all(target.partition(":")):
        raise pytest.UsageError(f"{option} {target} names no class: write package.module:Class")
    try:
        found = child.load(target)
    except Exception as error:  # noqa: BLE001 a module may raise anything
        cause = f"{type(error).__name__}: {first_line(error)}{place_of(error)}"
        raise pytest.UsageError(f"{option} {target} cannot be imported: {cause}") from None
    if not isinstance(found, type):
        raise pytest.UsageError(f"{option} {target} is no class")
    return found


def place_of(error: Exception) -> str:
    """Return the line of the user's code that an import failed at."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" (line {error.lineno} of {error.filename})"
    frames = traceback.extract_tb(error.__traceback__)
    others = (__file__, child.__file__)
    own = [f for f in frames if f.filename not in others and "importlib" not in f.filename]
    return f" (line {own[-1].lineno} of {own[-1].filename})" if own else ""


def first_line(text: Any) -> str:
    """Return the first line of a message, shortened."""
    return (str(text).strip().splitlines() or [""])[0][:160]


def env_class(cls: type, base: type | None) -> type:
    """Return `cls`, made a subclass of the --env-base as well."""
    if base and "genesis" in sys.modules:
        start_genesis()  # which bases ask for its device when they are constructed
    return type(cls.__name__, (cls, base), {}) if base else cls


@contextmanager
def saved_or_warned(fake: Harness, name: str, steps: list[int]) -> Iterator[None]:
    """Expect a warning if the video is missing: a class may make a lost folder anew."""
    with warned(count=None) as said:
        yield
    if name in fake.files():
        assert_steps(fake.video(name).steps, steps)
    told = any(name in text for text in said)
    assert told == (name not in fake.files()), f"{fake.files()}, warned: {said}"


@pytest.fixture(scope="session")
def start_recording(suite: Any, leave_to: Any, tmp_path_factory: Any) -> Callable[..., None]:
    """Start a recording of that type. Skip the test if a class saves no background recording."""
    folder = tmp_path_factory.mktemp("background")
    trial = Harness(folder, suite.implementation, env_class(FakeEnv, suite.env_base))
    with suppress(Exception):  # which the tests of REC-2 find
        wrapper = trial.wrap(step_trigger=never, record_final_episode=False)
        wrapper.start_recording("background")
        trial.run(wrapper, 3)
        wrapper.close()

    def start(wrapper: Any, type: str) -> None:
        if type == "active":
            wrapper.start_recording()
        elif trial.files():
            wrapper.start_recording(type)
        else:
            leave_to("it saves no background recording: API-1b or REC-2b")

    return start


@pytest.fixture
def fake(suite: Any, tmp_path: Path) -> Iterator[Harness]:
    """The harness without a simulation."""
    env = env_class(FakeEnv, suite.env_base)
    with closing(Harness(tmp_path / "videos", suite.implementation, env)) as harness:
        yield harness


@pytest.fixture(scope="session")
def real_scene(suite: Any) -> Any:
    """The class of envs on the one real scene of this run, and the reader for what it shows."""
    try:
        board(False, 0.1)
    except Exception as error:  # noqa: BLE001 Genesis raises many kinds if OpenGL is missing
        suite.no_scene = f"{type(error).__name__}: {first_line(error)}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no real scene: {suite.no_scene}")
    return env_class(GenesisEnv, suite.env_base), Board.read


@pytest.fixture
def genesis(suite: Any, real_scene: Any, tmp_path: Path) -> Iterator[Harness]:
    """The harness with the real, headless Genesis scene."""
    with closing(Harness(tmp_path / "videos", suite.implementation, *real_scene)) as harness:
        yield harness


@pytest.fixture
def reproducible(genesis: Harness) -> Harness:
    """The harness with the real scene, if this Genesis can render its frames later."""
    needs_genesis("1.2.0", "frames cannot be rendered later")
    return genesis


@pytest.fixture
def new_stage(suite: Any, genesis: Harness) -> type[Stage]:
    """The class of envs on real scenes of many kinds."""
    return env_class(Stage, suite.env_base)


@pytest.fixture(params=["fake", "genesis"])
def world(request: pytest.FixtureRequest) -> Harness:
    """The harness on the fake env, then on the real scene."""
    return request.getfixturevalue(request.param)
