"""The conformance tests, in the order of the clauses of spec/README.md that they name.

They judge from outside: they decode the videos and read which steps they show. Unless a test says
otherwise, `world.wrap` makes an env with dt = 0.1 s and wraps it for videos of 0.5 s at 10 fps, so
that a recording of five steps is five frames. A test that takes a process of its own, or more of a
scene than `world` has, is in spec/tests.
"""

from __future__ import annotations

import ast
import collections
import contextlib
import copy
import errno
import gc
import importlib
import inspect
import io
import itertools
import json
import math
import operator
import os
import pickle
import re
import shutil
import signal
import sys
import threading
import tracemalloc
import warnings
import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_origin
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest
import torch

from spec.suite import video_reader
from spec.suite.child import warned
from spec.suite.doubles import Asked, Flags, Interrupts, Large, OnDevice, first_only, never, only_at
from spec.suite.harness import saved_or_warned
from spec.suite.processes import encoders, needs_proc, refuse_threads, signal_encoders, wait_until
from spec.suite.video_reader import assert_steps, assert_videos, is_video_name, psnr, read_step

VECTORS = json.loads((Path(__file__).parent / "spec" / "vectors.json").read_text())
STUB = ast.parse((Path(__file__).parent / "spec" / "video_wrapper.pyi").read_text())
MEMBERS = [m for m in ast.walk(STUB) if isinstance(m, ast.FunctionDef)]
METHODS = [m for m in MEMBERS if not m.decorator_list]
PROPERTIES = [m for m in MEMBERS if m.decorator_list]
by_name = operator.attrgetter("name")
TRIGGERS = ["step_trigger", "episode_trigger"]
START, FINISH = "start_recording", "finish_recording"
SECOND = {"episode_trigger": lambda e: e == 1}
ENV_2 = {"env_idx": 2, "watched": 2}


def case(clauses: str, *values: Any, id: str | None = None) -> Any:
    """Return a parameter that is judged by these cases. The report calls it by `id`."""
    return pytest.param(*values, id=id, marks=pytest.mark.clause(*clauses.split()))


def table(names: str, *rows: Any, **options: Any) -> Any:
    """Run a test for each of these rows, which have values for the names."""
    return pytest.mark.parametrize(names, rows, **options)


def act(harness: Any, wrapper: Any, *calls: int | str) -> None:
    """Run so many steps for a number, and call the method for a name."""
    for call in calls:
        if isinstance(call, int):
            harness.run(wrapper, call)
        elif call == "background":
            wrapper.start_recording(call)
        else:
            getattr(wrapper, call)()


CASES = ["API-1a" if m.name == "__init__" else "API-1b" for m in METHODS]
ASKS = [case("TRIG-3a", "step_trigger"), case("TRIG-3b", "episode_trigger")]


def spellings(annotation: Any, function: Any) -> set[str]:
    """Return the ways to write a function's annotation. The documented one may be any of them."""
    meaning = vars(sys.modules[function.__module__]).get(str(annotation), annotation)
    if get_origin(meaning):  # an alias, such as one of a Literal
        annotation = meaning
    if inspect.ismodule(annotation):
        return {annotation.__name__}
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = ast.unparse(ast.parse(text)).replace("typing.", "").replace("collections.abc.", "")
    if isinstance(annotation, type):  # documented by its name, or as its package exports it
        package = annotation.__module__.partition(".")[0]
        return {text, annotation.__qualname__, f"{package}.{annotation.__qualname__}"}
    return {text}


def without_deferred_renderer(source: str) -> str:
    """Remove `_DeferredRenderer`, and make the one method that calls it return False."""
    tree = ast.parse(source)
    named = {node.name: node for node in ast.walk(tree) if hasattr(node, "name")}
    tree.body.remove(named["_DeferredRenderer"])
    named["_defer"].body = ast.parse("return False").body
    return ast.unparse(tree)


class TestApi:
    @pytest.mark.parametrize("method", [*map(case, CASES, METHODS)], ids=by_name)
    def test_a_method_takes_the_documented_parameters(
        self, implementation: type, method: ast.FunctionDef
    ) -> None:
        signature = inspect.signature(getattr(implementation, method.name))
        _, *actual = signature.parameters.values()
        taken, names = [p.name for p in actual], [a.arg for a in method.args.args[1:]]
        lacks = [name for name in names if name not in taken]
        assert taken == names, f"it lacks the parameters {lacks}, and takes {taken}"
        defaults = [ast.literal_eval(default) for default in method.args.defaults]
        defaults = [inspect.Parameter.empty] * (len(names) - len(defaults)) + defaults
        for parameter, default in zip(actual, defaults, strict=True):
            words = f"{parameter.name} is {parameter.default!r} by default, expected {default!r}"
            assert parameter.default == default, words

    @pytest.mark.clause("API-1c")
    @pytest.mark.parametrize("name", [p.name for p in PROPERTIES])
    def test_a_property_is_a_read_only_property(self, implementation: type, name: str) -> None:
        member = getattr(implementation, name)
        assert isinstance(member, property)
        assert member.fset is None

    @pytest.mark.clause("API-1d")
    def test_env_is_the_wrapped_env_and_the_wrapper_can_be_wrapped(self, fake: Any) -> None:
        env = fake.env()
        wrapper = fake.wrap(env)
        assert wrapper.env is env
        assert wrapper.can_be_wrapped is True

    @pytest.mark.clause("API-1e")
    @pytest.mark.parametrize("method", METHODS, ids=by_name)
    def test_annotations_are_the_documented_ones(
        self, implementation: type, method: ast.FunctionDef
    ) -> None:
        function = getattr(implementation, method.name)
        signature = inspect.signature(function)
        for argument in method.args.args[1:]:
            if argument.annotation is not None:
                given = signature.parameters[argument.arg].annotation
                assert ast.unparse(argument.annotation) in spellings(given, function)
        if method.returns is not None:
            assert ast.unparse(method.returns) in spellings(signature.return_annotation, function)

    @pytest.mark.clause("API-1e")
    @pytest.mark.parametrize("stub", PROPERTIES, ids=by_name)
    def test_a_property_has_the_documented_type(
        self, implementation: type, stub: ast.FunctionDef
    ) -> None:
        owner = next(c for c in implementation.__mro__ if stub.name in vars(c))
        returns = inspect.get_annotations(owner).get(stub.name)  # of the name, or of the getter
        if returns is None:
            returns = inspect.signature(vars(owner)[stub.name].fget).return_annotation
        assert ast.unparse(stub.returns) in spellings(returns, owner)

    @pytest.mark.parametrize("cut", [case("API-7a", "nothing"), case("API-7b", "the_renderer")])
    def test_the_file_works_alone_under_another_name(
        self, module: Any, fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
    ) -> None:
        package = tmp_path / f"their_project_without_{cut}" / "tools"
        package.mkdir(parents=True)
        source = Path(module.__file__).read_text(encoding="utf-8")
        source = source if cut == "nothing" else without_deferred_renderer(source)
        (package / "recording.py").write_text(source, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        copied = importlib.import_module(f"{package.parent.name}.tools.recording")
        wrapper = fake.wrap(implementation=copied.VideoWrapper)
        act(fake, wrapper, 8, "background", 3, "close")
        assert_videos(fake, {"0.mp4": range(5), "8.mp4": range(8, 11)})

    @pytest.mark.clause("API-8")
    def test_the_module_carries_its_versions_and_licence(
        self, module: Any, spec_version: str
    ) -> None:
        assert re.fullmatch(r"\d+\.\d+\.\d+", module.__version__)
        assert module.__spec_version__ == spec_version
        source = Path(module.__file__).read_text(encoding="utf-8")
        assert re.search(r"^# SPDX-License-Identifier: MIT$", source, re.MULTILINE)

    @pytest.mark.clause("API-9")
    def test_it_is_a_wrapper_of_the_library_whose_envs_it_wraps(
        self, implementation: type, fake: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class ForgeWrapper:
            def step(self, actions: Any) -> Any:
                raise AssertionError("the wrapper's own step goes first")

        for name in ("genesis_forge", "genesis_forge.wrappers", "genesis_forge.wrappers.wrapper"):
            monkeypatch.setitem(sys.modules, name, type(sys)(name))
        sys.modules["genesis_forge.wrappers.wrapper"].Wrapper = ForgeWrapper
        wrapper = fake.record(8)
        assert isinstance(wrapper, ForgeWrapper)
        assert isinstance(wrapper, implementation)
        wrapper.close()
        assert_videos(fake, {"0.mp4": range(5), "5.mp4": range(5, 8)})

    @pytest.mark.clause("API-10")
    @pytest.mark.parametrize("steps", [0, 2, 9], ids=["before", "in", "after"])
    @pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
    def test_a_copy_is_refused_at_any_time(self, fake: Any, steps: int, copied: Callable) -> None:
        wrapper = fake.record(steps)
        # Its own words, and not those of pickle for some part of it.
        with pytest.raises(TypeError, match=r"(?i)\bcop(y|ied|ies)\b|\bpickl(ed|ing)\b"):
            copied(wrapper)
        act(fake, wrapper, 9, "close")
        assert_steps(fake.video("0.mp4").steps, range(5))


NOT_POSITIVE = [0, -1, math.nan, math.inf, "60", None]
NAMES = [(row["clause"], name) for row in VECTORS["refused_names"] for name in row["filenames"]]
LONGEST = ["x" * 251 + ".mp4", "x" + "ü" * 125 + ".mp4"]
CLOSED = ["/dev/null", "/dev/null/videos", "/proc/self"]  # also to root
REFUSED = [
    *(case("ARG-1c", TypeError, name, value) for name in TRIGGERS for value in (5, "1500")),
    *(case("ARG-3a", ValueError, "fps", value) for value in NOT_POSITIVE),
    *(case("ARG-3b", ValueError, "video_length_sec", value) for value in NOT_POSITIVE),
    *(case("ARG-3c", ValueError, "dt", value) for value in NOT_POSITIVE),
    *(case("ARG-4", ValueError, "env_idx", value) for value in (-1, 3, 1.0, "0", None)),
    *(case(clause, ValueError, "filename", name) for clause, name in NAMES),
    *(case("ARG-5c", ValueError, "filename", "x" + name) for name in LONGEST),
    *(case("ARG-5d", ValueError, "camera_attr", value) for value in ("./a", "", None, 3, "a b")),
    *(case("ARG-6c", (TypeError, ValueError), "num_envs", value) for value in (None, "2", 0, -1)),
    *(case("ARG-7b", OSError, "out_dir", path) for path in CLOSED),
    *(case("ARG-7e", ValueError, "out_dir", value) for value in (None, "")),
]
TAKEN = [
    *(case("ARG-4", "env_idx", value) for value in (2, np.int64(2), torch.tensor(2))),
    *(case("ARG-5c", "filename", name) for name in LONGEST),
    case("ARG-7a", "out_dir", Path("videos")),
]
EXTREMES = [("fps", 1e-7, 0.01), ("fps", 1e-320, 0.01), ("fps", 1e10, 1e-10)]
EXTREMES += [("video_length_sec", 1e308, 0.01)]
BOTH = r"(?s)(?=.*episode_trigger)(?=.*step_trigger)"


class TestArguments:
    @pytest.mark.parametrize(("error", "name", "value"), REFUSED)
    def test_a_wrong_argument_is_refused_by_name(
        self, fake: Any, error: Any, name: str, value: Any
    ) -> None:
        env, keywords = fake.env(), {"fps": 10, name: value}
        if name in ("dt", "num_envs"):
            setattr(env, name, keywords.pop(name))
        with pytest.raises(error) as caught:
            fake.wrap(env, **keywords)
        words = str(caught.value)
        assert re.search(rf"\b{name}\b", words), f"the error does not name {name}: {words!r}"
        given = repr(value)[:100]  # a long value may be shortened
        assert given in words, f"the error does not give the value {value!r}: {words!r}"

    @pytest.mark.parametrize(("name", "value"), TAKEN)
    def test_a_right_argument_is_taken(
        self, fake: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
    ) -> None:
        monkeypatch.chdir(fake.out_dir.parent)
        fake.record(8, **{name: value})
        assert_videos(fake, {value if name == "filename" else "0.mp4": range(5)})

    @table("error, words", case("ARG-1a", Exception, None), case("ARG-1b", ValueError, BOTH))
    def test_both_triggers_are_refused(self, fake: Any, error: type, words: Any) -> None:
        with pytest.raises(error, match=words):
            fake.wrap(episode_trigger=never, step_trigger=never)

    @pytest.mark.clause("ARG-3d")
    @pytest.mark.parametrize(("name", "value", "dt"), EXTREMES)
    def test_a_number_that_makes_no_length_or_rate_is_refused(
        self, fake: Any, name: str, value: float, dt: float
    ) -> None:
        with pytest.raises(ValueError, match=name):
            fake.wrap(dt=dt, **{name: value})

    @pytest.mark.clause("ARG-6a")
    def test_an_env_that_cannot_be_wrapped_is_refused(self, fake: Any) -> None:
        env = fake.env()
        env.can_be_wrapped = False
        with pytest.raises(ValueError, match="env|can_be_wrapped"):
            fake.wrap(env)

    @pytest.mark.clause("ARG-6b")
    @pytest.mark.parametrize("missing", ["step", "dt", "num_envs", "everything", "an instance"])
    def test_an_env_that_lacks_what_is_needed_is_refused(
        self, implementation: type, fake: Any, missing: str
    ) -> None:
        parts = {"step": lambda self, actions: None, "dt": 0.1, "num_envs": 2}
        kind = type("Env", (), {k: v for k, v in parts.items() if k != missing})
        env = {"everything": None, "an instance": kind}.get(missing, kind())
        with pytest.raises(TypeError, match="env"):
            implementation(env, out_dir=str(fake.out_dir))

    @pytest.mark.clause("ARG-7a")
    def test_out_dir_is_created_with_its_parents_at_construction(self, fake: Any) -> None:
        fake.out_dir = fake.out_dir / "of" / "monday"
        fake.wrap(build=False)
        assert fake.out_dir.is_dir()

    @pytest.mark.clause("ARG-7c", "ARG-7d")
    @pytest.mark.parametrize("lacks", ["rename", "seek"])
    def test_an_out_dir_that_cannot_rename_or_rewrite_is_refused(
        self, fake: Any, monkeypatch: pytest.MonkeyPatch, lacks: str
    ) -> None:
        refuse = MagicMock(side_effect=OSError(errno.ENOTSUP, "not supported"))

        def opened(*arguments: Any, opens: Any = io.open, **options: Any) -> Any:
            file = opens(*arguments, **options)
            double = MagicMock(wraps=file, seek=refuse)
            double.__enter__.return_value = double
            double.__exit__.side_effect = lambda *error: file.close()
            return double

        renames = dict.fromkeys(("os.link", "os.rename", "os.replace"), refuse)
        seeks = dict.fromkeys(("os.lseek", "os.pwrite"), refuse)
        seeks |= dict.fromkeys(("builtins.open", "io.open"), opened)
        with monkeypatch.context() as patched:
            for name, double in (renames if lacks == "rename" else seeks).items():
                patched.setattr(name, double)
            with pytest.raises(OSError, match=r"(?s)(?=.*out_dir)(?=.*not supported)") as error:
                fake.wrap()
        assert str(fake.out_dir) in str(error.value)
        assert fake.files() == []

    @pytest.mark.clause("ARG-7d")
    def test_out_dir_is_as_before_after_construction(self, fake: Any) -> None:
        fake.out_dir.mkdir()
        (fake.out_dir / "0.mp4").write_bytes(b"of an earlier run")
        fake.wrap()
        assert fake.files() == ["0.mp4"]
        assert (fake.out_dir / "0.mp4").read_bytes() == b"of an earlier run"


class TestBuild:
    @pytest.mark.clause("BLD-1a")
    def test_build_builds_the_env_once(self, fake: Any) -> None:
        wrapper = fake.wrap(build=False)
        assert wrapper.unwrapped.calls == []
        wrapper.build()
        assert wrapper.unwrapped.calls == ["build"]

    @pytest.mark.clause("BLD-1b")
    def test_the_first_build_leaves_what_was_started(self, fake: Any) -> None:
        wrapper = fake.wrap(build=False, **only_at())
        act(fake, wrapper, START, "build", 8)
        assert_videos(fake, {"0.mp4": range(5)})

    @pytest.mark.clause("BLD-1b", "BLD-1c")
    def test_a_later_build_ends_the_recording_and_the_episode(self, fake: Any) -> None:
        keywords = {"video_length_sec": 1, "record_final_episode": False}
        wrapper = fake.record(3, episode_trigger=lambda e: True, **keywords)
        wrapper.build()
        assert_videos(fake, {"0.mp4": range(3)})
        act(fake, wrapper, 2, "close")
        assert_videos(fake, {"0.mp4": range(3), "3.mp4": range(3, 5)})

    @pytest.mark.clause("BLD-1d")
    def test_build_names_env_idx_when_it_leaves_too_few_envs(self, fake: Any) -> None:
        env = fake.env(num_envs=5)
        env.build = lambda: setattr(env, "num_envs", 3)
        wrapper = fake.wrap(env, env_idx=4, build=False)
        # The number of envs, or the last of them.
        with pytest.raises(Exception, match=r"(?s)(?=.*\benv_idx\b)(?=.*\b4\b)(?=.*\b[23]\b)"):
            wrapper.build()

    @pytest.mark.clause("BLD-2a")
    def test_the_camera_is_the_attribute_of_that_name(self, world: Any) -> None:
        env = world.env()
        env.side_view, env.camera = env.camera, None
        world.record(8, env, camera_attr="side_view")
        assert_videos(world, {"0.mp4": range(5)})

    @table(
        "camera, names",
        case("BLD-2b", None, ["camera"]),
        case("BLD-2b", "missing", ["side_view"]),
        *(case("BLD-2d", camera, ["camera", "render", "read"]) for camera in ("a string", 3)),
    )
    def test_build_names_a_camera_that_gives_no_frames(
        self, fake: Any, camera: Any, names: list[str]
    ) -> None:
        env = fake.env()
        env.camera = camera
        wrapper = fake.wrap(env, camera_attr=names[0], build=False)
        with pytest.raises(Exception) as error:
            wrapper.build()
        missing = [n for n in ("FakeEnv", *names) if not re.search(rf"\b{n}\b", str(error.value))]
        assert not missing, f"the error does not name {missing}: {error.value}"

    @pytest.mark.clause("BLD-2c")
    def test_a_camera_that_can_only_be_read_records(self, fake: Any) -> None:
        env = fake.env()
        frames, render = collections.namedtuple("Frames", "rgb"), env.camera.render
        env.camera = SimpleNamespace(
            read=lambda: frames(torch.stack([torch.from_numpy(render()[0])] * env.num_envs))
        )
        fake.record(7, env).close()
        assert_steps(fake.video("0.mp4").steps, range(5))

    @pytest.mark.clause("BLD-4")
    def test_an_env_built_before_is_recorded_without_build(self, world: Any) -> None:
        env = world.env()
        env.build()
        world.record(8, env, build=False)
        assert_videos(world, {"0.mp4": range(5)})

    @pytest.mark.clause("BLD-6")
    def test_an_env_needs_no_more_than_what_is_called(self, fake: Any) -> None:
        env, needed = fake.env(), ("dt", "num_envs", "step", "camera")
        plain = SimpleNamespace(**{name: getattr(env, name) for name in needed})
        wrapper = fake.record(3, plain, step_trigger=None)
        wrapper.close()
        assert wrapper.unwrapped is plain
        assert_videos(fake, {"0.mp4": range(3)})


def timing(clause: str = "") -> Any:
    """Return all rows, judged by a clause, or by the row's own if it is a case of TIME-1."""
    rows = VECTORS["timing"]
    names = [clause or (r["clause"] if "TIME-1" in r["clause"] else "TIME-1a") for r in rows]
    return pytest.mark.parametrize("row", [*map(case, names, rows)], ids=[r["note"] for r in rows])


class TestTime:
    @staticmethod
    def record(fake: Any, row: Any, steps: int) -> Any:
        keywords = {name: row[name] for name in ("dt", "fps", "video_length_sec")}
        fake.record(steps, **keywords, **only_at(0))
        return fake.video("0.mp4")

    @timing()
    def test_the_length_is_the_seconds_in_steps_rounded_up(self, fake: Any, row: Any) -> None:
        keywords = {name: row[name] for name in ("dt", "video_length_sec")}
        assert fake.wrap(fps=1 / row["dt"], **keywords).video_length_steps == row["steps"]

    @timing("TIME-3")
    def test_the_stride_is_the_nearest_whole_number_of_steps(self, fake: Any, row: Any) -> None:
        video = self.record(fake, row, row["steps"] + 2 * row["stride"])
        assert video.count == 1 or video.steps[1] - video.steps[0] == row["stride"]

    @timing("TIME-4a")
    def test_a_video_has_the_frames_of_its_length(self, fake: Any, row: Any) -> None:
        assert self.record(fake, row, row["steps"] + 1).count == row["frames"]

    @pytest.mark.clause("TIME-4a")
    @table("first, length, stride", (0, 1, 1), (0, 2, 1), (3, 5, 1), (0, 10, 3), (4, 10, 3))
    def test_a_video_shows_each_kth_step_from_its_first(
        self, world: Any, first: int, length: int, stride: int
    ) -> None:
        world.record(30, fps=10 / stride, video_length_sec=length / 10, **only_at(first))
        steps = range(first, first + length, stride)
        assert_videos(world, {f"{first}.mp4": steps}, exact=True)

    @pytest.mark.clause("TIME-4a")
    def test_a_stride_holds_for_a_background_recording(self, world: Any) -> None:
        wrapper = world.wrap(fps=3.3, video_length_sec=1.0, **only_at())
        act(world, wrapper, 4, "background", 20, "close")
        assert_videos(world, {"4.mp4": [4, 7, 10, 13]}, exact=True)

    @pytest.mark.clause("TIME-4b")
    @pytest.mark.parametrize("kind", TRIGGERS)
    def test_a_recording_goes_on_when_episodes_end(self, world: Any, kind: str) -> None:
        keywords = {kind: first_only, "record_final_episode": False}
        act(world, world.wrap(terminated_at={1}, **keywords), 3, "reset", 8)
        assert_videos(world, {"0.mp4": range(5)}, exact=True)

    @pytest.mark.clause("TIME-5")
    def test_the_step_that_ends_an_episode_is_shown_after_its_reset(self, fake: Any) -> None:
        env = fake.env(terminated_at={2})

        def reset(terminated: Any, truncated: Any) -> Any:
            env.shown = 555 if terminated[0] else env.shown  # the frame that its own reset leaves
            return terminated, truncated

        env.make_flags = reset
        fake.record(8, env, **only_at(0))
        steps = fake.video("0.mp4").steps
        assert 2 not in steps, f"the state before the reset, 2, is shown: {steps}"
        assert steps[steps.index(555) - 1 :][:3] == [1, 555, 3]

    @pytest.mark.clause("TIME-5", "EPI-1")
    def test_a_trigger_finds_the_env_after_its_own_reset(self, fake: Any) -> None:
        env, resets, seen = fake.env(terminated_at={2, 5}), [], {}

        def reset(terminated: Any, truncated: Any) -> Any:
            resets.extend([0] * bool(terminated[0]))
            return terminated, truncated

        def trigger(episode: int) -> None:
            seen.setdefault(episode, (len(resets), env.steps))

        env.make_flags = reset
        fake.record(8, env, episode_trigger=trigger)
        assert seen == {0: (0, 1), 1: (1, 4), 2: (2, 7)}

    @timing("TIME-6")
    def test_the_rate_is_the_exact_ratio(self, fake: Any, row: Any) -> None:
        video = self.record(fake, row, row["steps"] + 2 * row["stride"])
        # By the stride that it has: which one it should have is TIME-3's.
        stride = video.steps[1] - video.steps[0] if video.count > 1 else row["stride"]
        assert video.rate * stride == Fraction(row["rate"]) * row["stride"]

    @pytest.mark.clause("TIME-6")
    def test_a_second_of_video_is_a_second_of_simulation(self, world: Any) -> None:
        world.record(24, dt=0.05, fps=7, video_length_sec=0.9, **only_at(0))
        assert world.video("0.mp4").rate == Fraction(20, 3)

    @pytest.mark.clause("TIME-6")
    @pytest.mark.parametrize("name", ["policy.mp4", "policy.mkv"])
    def test_a_video_begins_with_its_first_frame(self, fake: Any, name: str) -> None:
        fake.record(8, filename=name)
        start = fake.video(name).start
        assert start == 0, f"the first frame is shown {start} s after the start"

    @pytest.mark.clause("COST-10a")
    def test_nothing_is_rendered_that_is_not_recorded(self, fake: Any) -> None:
        env, rendered = fake.env(), []
        env.camera.make_frame = lambda frame: rendered.append(env.shown) or frame
        fake.record(30, env, fps=5, video_length_sec=0.6, **only_at(3, 20)).close()
        assert rendered == sorted(itertools.chain(*fake.videos().values())) != []


class TestTriggers:
    @pytest.mark.clause("TRIG-1")
    def test_the_default_schedule_of_ten_thousand_episodes(self, fake: Any) -> None:
        steps = 4 * (VECTORS["schedule"]["last_inclusive"] + 1)  # of episodes of four
        # For one step each, so that neither a frame more nor a trigger asked again changes which.
        keywords = {"video_length_sec": 0.1, "record_final_episode": False, "step_trigger": None}
        fake.record(steps, terminated_at=range(3, steps, 4), **keywords)
        recorded = sorted({int(Path(name).stem) // 4 for name in fake.files()})
        assert recorded == VECTORS["schedule"]["episodes"]

    @pytest.mark.of_module
    @pytest.mark.clause("TRIG-1")
    def test_the_default_schedule_is_exact_for_any_number(self, module: Any) -> None:
        trigger = module.capped_cubic_episode_trigger
        for thousands in (2**31, 10**9, 10**15 + 1, 2**64):
            around = range(1000 * thousands - 2, 1000 * thousands + 3)
            assert [n - 1000 * thousands for n in around if trigger(n)] == [0]

    @table(
        "keywords, firsts",
        case("TRIG-2a", {"step_trigger": lambda n: n % 8 == 0}, [0, 8], id="of a step"),
        case("TRIG-2b", SECOND, [7], id="of an episode"),
        case("EPI-1", SECOND | ENV_2, [7], id="of an episode of another env"),
    )
    def test_a_trigger_starts_a_recording(self, world: Any, keywords: Any, firsts: Any) -> None:
        ends = {"terminated_at": {6, 11}, "others_done_at": range(100)}
        world.record(16, record_final_episode=False, **ends, **keywords)
        assert_videos(world, {f"{first}.mp4": range(first, first + 5) for first in firsts})

    @pytest.mark.clause("TRIG-2c")
    @pytest.mark.parametrize("kind", TRIGGERS)
    @pytest.mark.parametrize("true", [np.True_, torch.tensor(True), 1, "yes"])
    def test_an_answer_is_taken_by_its_truth(self, fake: Any, kind: str, true: Any) -> None:
        false = type(true)() if isinstance(true, (int, str)) else ~true
        trigger = {kind: lambda n: true if n == 1 else false}
        fake.record(10, terminated_at={0, 5}, record_final_episode=False, **trigger)
        assert_videos(fake, {"1.mp4": range(1, 6)})

    @pytest.mark.clause("TRIG-2d")
    @pytest.mark.parametrize("kind", TRIGGERS)
    def test_a_trigger_that_is_always_true_cuts_nothing_short(self, world: Any, kind: str) -> None:
        keywords = {kind: lambda n: True, "record_final_episode": False}
        world.record(16, terminated_at=range(100), **keywords).close()
        *whole, _ = sorted(int(Path(name).stem) for name in world.files())  # close() cuts the last
        assert len(whole) >= 2
        for start in whole:
            assert_steps(world.video(f"{start}.mp4").steps, range(start, start + 5))

    @pytest.mark.clause("TRIG-3a")
    def test_a_step_trigger_is_asked_each_step_while_none_is_active(self, world: Any) -> None:
        trigger = Asked(2, 12)
        world.record(24, step_trigger=trigger)
        asked, recorded = {*trigger.numbers}, {3, 4, 5, 13, 14, 15}
        assert trigger.numbers == sorted(asked)
        assert not asked & recorded
        # When exactly a recording is over is TIME-4's.
        assert asked | recorded | {6, 7, 16, 17} == {*range(24)}

    @table(
        "kind, before, asked",
        case("TRIG-3a", "step_trigger", 2, [0, 1, 6, 7]),
        case("TRIG-3b", "episode_trigger", 0, [1]),
    )
    def test_a_trigger_is_not_asked_in_a_recording_by_hand(
        self, fake: Any, kind: str, before: int, asked: list[int]
    ) -> None:
        trigger = Asked()
        wrapper = fake.wrap(terminated_at={2}, **{kind: trigger})
        act(fake, wrapper, before, START, 4, FINISH, 2)
        assert trigger.numbers == asked

    @pytest.mark.parametrize("kind", ASKS)
    def test_a_trigger_is_not_asked_for_a_step_that_fails(self, fake: Any, kind: str) -> None:
        trigger, env = Asked(), fake.env(terminated_at={0})
        wrapper = fake.record(1, env, **{kind: trigger})
        env.step = Mock(side_effect=[KeyError("unstable"), env.step(None)])
        with pytest.raises(KeyError):
            fake.run(wrapper, 1)
        assert trigger.numbers == [0]
        fake.run(wrapper, 1)
        assert trigger.numbers == [0, 1]

    @pytest.mark.parametrize("kind", ASKS)
    def test_a_trigger_is_not_asked_again_after_it_raised(self, fake: Any, kind: str) -> None:
        trigger = MagicMock(side_effect=[False, ZeroDivisionError, *[False] * 6])
        # Episodes of two steps, so that each could be asked for once more.
        wrapper = fake.wrap(terminated_at=range(1, 20, 2), **{kind: trigger})
        for _ in range(8):
            with contextlib.suppress(ZeroDivisionError):
                fake.run(wrapper, 1)
        asked = [call.args[0] for call in trigger.call_args_list]
        assert asked == [*range(8 if kind == "step_trigger" else 4)]

    @pytest.mark.clause("TRIG-3b")
    @pytest.mark.parametrize(
        ("ends", "asked"),
        [({9, 19}, [0, 1, 2]), ({1, 3}, [0, 2]), ((), [0])],
        ids=["each", "but not for one that is over before the video", "one for a long episode"],
    )
    def test_an_episode_trigger_is_asked_once_an_episode(
        self, world: Any, ends: Any, asked: list[int]
    ) -> None:
        trigger = Asked(0)
        world.record(25, terminated_at=ends, episode_trigger=trigger, record_final_episode=False)
        assert trigger.numbers == asked
        assert world.files() == ["0.mp4"]

    @pytest.mark.clause("TRIG-3b")
    def test_an_episode_that_a_video_runs_into_is_recorded_after_it(self, world: Any) -> None:
        trigger = Asked(0, 1)
        keywords = {"episode_trigger": trigger, "record_final_episode": False}
        world.record(20, terminated_at={2, 15}, **keywords)
        _, second = world.files()
        start = int(second.removesuffix(".mp4"))
        assert start in (4, 5, 6)  # when the first is over, which is TIME-4's
        assert_videos(world, {"0.mp4": range(5), second: range(start, start + 5)})
        assert trigger.numbers == [0, 1, 2]

    @pytest.mark.clause("TRIG-3c")
    @table("kind, counted, number", (TRIGGERS[0], 404, 2**53 + 1), (TRIGGERS[1], 101, 2**33))
    def test_numbers_are_exact_after_any_count(
        self, fake: Any, kind: str, counted: int, number: int, leave_to: Any
    ) -> None:
        trigger = Asked(number)
        keywords = {kind: trigger, "record_final_episode": False}
        wrapper = fake.record(404, terminated_at=range(3, 1000, 4), **keywords)
        # Nobody can wait for 2**31 steps, so what has counted 404 steps or 101 episodes goes on
        # from two before the number in question.
        counts = [n for n, v in vars(wrapper).items() if type(v) is int and v == counted]
        if not counts:
            leave_to("it has no attribute that counts")
        for name in counts:
            setattr(wrapper, name, number - 2)
        assert {type(number) for number in trigger.numbers} == {int}
        trigger.numbers.clear()
        fake.run(wrapper, 16)
        assert trigger.episodes[:3] == [number - 2, number - 1, number]
        name, shown = (f"{number}.mp4", 406) if kind == "step_trigger" else ("412.mp4", 412)
        assert_videos(fake, {name: range(shown, shown + 5)})


def four_results(env: Any, convert: Callable) -> list[tuple]:
    """Make an env return observations, rewards, dones and extras. Return the list of results."""
    step, returned = env.step, []

    def step_of_four(actions: Any) -> tuple:
        observations, rewards, terminated, truncated, extras = step(actions)
        returned.append((observations, rewards, convert(terminated | truncated), extras))
        return returned[-1]

    env.step = step_of_four
    return returned


def episodes(fake: Any, steps: int, env: Any = None, **keywords: Any) -> list[int]:
    """Return the episodes that a trigger is asked for in so many steps."""
    asked: list[int] = []
    fake.record(steps, env, episode_trigger=asked.append, **keywords)
    return [*dict.fromkeys(asked)]  # how often it is asked is TRIG-3's


KINDS = {
    "bool": lambda flags: flags,
    "int": lambda flags: flags.long(),
    "device": lambda flags: flags.as_subclass(OnDevice),
    "array": lambda flags: flags.numpy(),
    "list": lambda flags: flags.tolist(),
    "column": lambda flags: flags[:, None],
}
KINDS_OF_ONE = {"bool": bool, "NumPy bool": np.bool_, "array": np.array, "tensor": torch.tensor}
KINDS_OF_ONE |= {"(1, 1)": lambda flag: torch.tensor([[flag]]), "int": int}
KINDS_OF_ONE |= {"None or True": lambda flag: flag or None}
FLOATS = [torch.zeros(3), torch.ones(3), torch.full((3,), 0.3), np.zeros(3), [0.0] * 3]
FLOATS += [torch.zeros(3, 1), torch.ones(3).half().as_subclass(OnDevice)]
NO_FLAGS = [torch.zeros(4) > 0, np.zeros(5, bool), [False], torch.tensor(False)]
NO_FLAGS += [torch.zeros(3, 2) > 0, {"time_out": False}, dict.fromkeys("abc", 0), "100"]
REFUSED_FLAGS = [
    *(case("EPI-7b", 3, flags) for flags in FLOATS),
    *(case("EPI-7b", 1, flag) for flag in (0.0, 1.0, np.float32(0), torch.tensor(0.0))),
    *(case("EPI-7c", 3, flags) for flags in NO_FLAGS),
]
INDICES = [
    None, ..., 0, -3, [2], [-1], [0, 1], [], (), (0, 1), range(2, 3), slice(1, None), slice(0, 2),
    torch.tensor(2), torch.tensor([0, -1]), torch.tensor([], dtype=torch.int64), np.array([2, 1]),
    torch.tensor([True, False, True]).nonzero(), np.argwhere([False, False, True]),
    torch.tensor([False, True, True]).nonzero(as_tuple=True), np.where([True, False, False]),
    torch.tensor([True, False, False]), np.array([False, True, True]), [False, True, True],
    [np.True_, np.False_, np.False_], torch.tensor([2]).as_subclass(OnDevice),
    torch.tensor([True, False, False]).as_subclass(OnDevice),
]  # fmt: skip
INDICES = [case("EPI-4a" if ids is None else "EPI-4c", ids) for ids in INDICES]
OTHER_IDS = [[7], {0, 2}, "all", 0.5, SimpleNamespace(), [[0, 1], [2]], torch.zeros(5) > 0]


def in_a_line(value: Any) -> str:
    return " ".join(repr(value).split())


class TestEpisodes:
    @table("kind", *(case("EPI-2a" if kind == "bool" else "EPI-2c", kind) for kind in KINDS))
    def test_a_flag_of_the_watched_env_ends_the_episode(self, fake: Any, kind: str) -> None:
        ends = {"terminated_at": {1, 3}, "truncated_at": {3, 5}}  # by one flag, both and the other
        env = fake.env(watched=1, others_done_at={0, 2}, **ends)
        env.make_flags = lambda *flags: map(KINDS[kind], flags)
        assert episodes(fake, 7, env, env_idx=1) == [0, 1, 2, 3]

    @pytest.mark.clause("EPI-2b", "DEL-2b")
    @pytest.mark.parametrize("kind", KINDS)
    def test_dones_of_four_results_end_the_episode(self, fake: Any, kind: str) -> None:
        env, trigger = fake.env(watched=1, terminated_at={1, 3}, others_done_at={0, 2}), Asked()
        returned = four_results(env, KINDS[kind])
        results = fake.run(fake.wrap(env, env_idx=1, episode_trigger=trigger), 6)
        assert trigger.episodes == [0, 1, 2]
        assert all(mine is theirs for mine, theirs in zip(results, returned, strict=True))

    @pytest.mark.clause("EPI-2c")
    @pytest.mark.parametrize("kind", ["bool", "device"])
    def test_flags_are_read_where_they_are_now(self, fake: Any, kind: str) -> None:
        env, trigger, memory = fake.env(), Asked(), torch.zeros((2, 3), dtype=torch.bool)
        flags = [KINDS[kind](flag) for flag in memory]
        env.step = lambda actions: (None, None, *flags, {})
        wrapper = fake.record(2, env, episode_trigger=trigger)
        for place in (0, 1, 0):  # written into the tensors of the step before
            memory[place, 0] = True
            fake.run(wrapper, 1)
            memory[place, 0] = False
            fake.run(wrapper, 1)
        flags[1].data = torch.tensor([True, False, False])
        fake.run(wrapper, 2)
        assert trigger.episodes == [0, 1, 2, 3, 4]

    @pytest.mark.clause("EPI-2c")
    def test_flags_that_share_their_memory_are_told_apart(self, fake: Any) -> None:
        memory = torch.tensor([False, True, False, False, False, False])
        views = itertools.cycle([memory[::2], memory[:3]])
        env, truncated = fake.env(), torch.zeros(3, dtype=torch.bool)
        env.step = lambda actions: (None, None, next(views), truncated, {})
        assert episodes(fake, 7, env, env_idx=1) == [0, 1, 2, 3]  # every second step ends one

    @pytest.mark.clause("EPI-2d")
    @table("none, asked", ("0", [0, 1]), ("1", [0, 1]), ("01", [0]), ("dones", [0]))
    def test_flags_may_be_none(self, fake: Any, none: str, asked: list[int]) -> None:
        env = fake.env(terminated_at={1}, truncated_at={1})
        env.make_flags = lambda *flags: [None if str(i) in none else flags[i] for i in (0, 1)]
        if none == "dones":
            four_results(env, lambda dones: None)
        assert episodes(fake, 4, env) == asked

    @pytest.mark.clause("EPI-2e")
    @pytest.mark.parametrize("kind", KINDS_OF_ONE)
    def test_flags_of_a_single_env_may_have_no_dimension(self, fake: Any, kind: str) -> None:
        env = fake.env(num_envs=1, terminated_at={1, 3, 4})
        env.make_flags = lambda *flags: [KINDS_OF_ONE[kind](bool(flag[0])) for flag in flags]
        assert episodes(fake, 7, env) == [0, 1, 2, 3]

    @pytest.mark.clause("EPI-4a")
    def test_a_loop_that_resets_by_hand_counts_episodes(self, world: Any) -> None:
        wrapper = world.wrap(episode_trigger=lambda e: e == 2, record_final_episode=False)
        act(world, wrapper, *[5, "reset"] * 4)
        assert_videos(world, {"10.mp4": range(10, 15)})

    @pytest.mark.parametrize("call", [case("EPI-4b", "reset"), case("BLD-1c", "build")])
    def test_an_episode_without_a_step_does_not_end(self, fake: Any, call: str) -> None:
        trigger = Asked()
        wrapper = fake.wrap(terminated_at={2, 5}, episode_trigger=trigger)
        act(fake, wrapper, call, call, 3, call, 3, call, 1)
        assert trigger.episodes == [0, 1, 2]

    @pytest.mark.parametrize("ids", INDICES, ids=in_a_line)
    @pytest.mark.parametrize("watched", [0, 1, 2])
    def test_a_reset_counts_what_the_ids_select_of_a_tensor(
        self, fake: Any, ids: Any, watched: int
    ) -> None:
        buffer, trigger = torch.ones(3), Asked()
        is_plain = isinstance(ids, (tuple, range)) and all(isinstance(i, int) for i in ids)
        buffer[list(ids) if is_plain else ids] = 0  # envs loop over these, and no tensor takes them
        wrapper = fake.record(1, watched=watched, env_idx=watched, episode_trigger=trigger)
        wrapper.reset(ids)
        fake.run(wrapper, 1)
        assert trigger.episodes == ([0, 1] if buffer[watched] == 0 else [0])

    @pytest.mark.clause("EPI-4d")
    @pytest.mark.parametrize("ids", OTHER_IDS, ids=in_a_line)
    def test_ids_that_only_the_env_takes_raise_nothing(self, fake: Any, ids: Any) -> None:
        env, answer = fake.env(), (object(), {})
        env.reset = lambda env_ids: answer
        assert fake.record(1, env).reset(ids) is answer

    def check_forms(self, error: pytest.ExceptionInfo) -> None:
        words = ["observations", "rewards", "terminated", "truncated", "dones", "extras"]
        missing = [word for word in words if word not in str(error.value)]
        assert not missing, f"the error lacks {missing}: {error.value}"

    @pytest.mark.clause("EPI-7a")
    @pytest.mark.parametrize("number", [3, 6, "a dict", "observations"])
    def test_another_number_of_results_is_refused(self, fake: Any, number: Any) -> None:
        env = fake.env()
        results = (*env.step(None), None)
        others = {"a dict": {"obs": results[0]}, "observations": results[0]}
        env.step = lambda actions: others[number] if number in others else results[:number]
        with pytest.raises(TypeError) as error:
            fake.record(1, env)
        self.check_forms(error)

    @pytest.mark.parametrize(("num_envs", "flags"), REFUSED_FLAGS, ids=in_a_line)
    @pytest.mark.parametrize("place", [0, 1, "dones"])
    def test_what_cannot_be_flags_is_refused(
        self, fake: Any, num_envs: int, flags: Any, place: Any
    ) -> None:
        env = fake.env(num_envs=num_envs)
        if place == "dones":
            four_results(env, lambda dones: flags)
        else:
            env.make_flags = lambda *others: [flags if n == place else others[n] for n in (0, 1)]
        with pytest.raises(ValueError) as error:
            fake.record(1, env, env_idx=num_envs - 1)
        self.check_forms(error)


class TestRecordings:
    @table(
        "calls, videos",
        case("REC-1a", [2, START, 10], {"2.mp4": range(2, 7)}),
        case("REC-1b", [START, 2, START, 10], {"0.mp4": range(2), "2.mp4": range(2, 7)}),
        case("REC-1b", [START, 2, "background", 10], {"0.mp4": range(2)}),
        case("REC-2a", [START, 3, FINISH, 3, "close"], {"0.mp4": range(3)}),
        case("REC-2a", [START, 1, FINISH], {"0.mp4": range(1)}),
        case("REC-2b", ["background", 3, FINISH, 3], {}),
        case("REC-2b", ["background", 3, FINISH, 3, "close"], {"0.mp4": range(3)}),
        case("CLOSE-1a", [START, 3, "close"], {"0.mp4": range(3)}),
        case("REC-2c", [FINISH, 2, FINISH, FINISH], {}),
        ids=str,
    )
    def test_calls_leave_these_videos(self, world: Any, calls: list[Any], videos: Any) -> None:
        act(world, world.wrap(**only_at()), *calls)
        assert_videos(world, videos)

    @pytest.mark.clause("REC-1c")
    @pytest.mark.parametrize("type", ["Active", "", None, 1])
    def test_an_unknown_type_is_refused_and_changes_nothing(self, fake: Any, type: Any) -> None:
        wrapper = fake.record(2, **only_at(0))
        with pytest.raises(ValueError):
            wrapper.start_recording(type)
        fake.run(wrapper, 6)
        assert_videos(fake, {"0.mp4": range(5)})

    @pytest.mark.clause("REC-2d")
    @pytest.mark.parametrize("end", [FINISH, "close", START])
    def test_a_recording_without_a_frame_leaves_no_trace(
        self, fake: Any, end: str, capsys: pytest.CaptureFixture
    ) -> None:
        wrapper = fake.wrap(logging=True, **only_at())
        with warned(count=0):
            act(fake, wrapper, START, end, "close")
        assert fake.files() == []
        assert capsys.readouterr().out == ""


LONG = {"video_length_sec": 2}
THIRDS = {"video_length_sec": 0.8, "fps": 3.3}  # frames at the steps 0, 3 and 6 of eight
POLICY = {"filename": "policy.mp4"}
BY_HAND = [12, START, 3, FINISH]


@pytest.fixture(params=["active", "background"])
def started(request: pytest.FixtureRequest, fake: Any, start_recording: Any) -> Any:
    """A wrapper whose only recording, of either type, starts with the next step."""
    wrapper = fake.wrap(env_idx=2, step_trigger=never, record_final_episode=False)
    start_recording(wrapper, request.param)
    return wrapper


def run(words: str, clauses: str, ends: Any, starts: Any, calls: Any, shown: Any, **kw: Any) -> Any:
    """Return a row: `ends` end episodes, the trigger is true for `starts`, videos show `shown`."""
    trigger = {"terminated_at": ends, "step_trigger": lambda n: n in starts}
    name = kw.get("filename", "{}.mp4")
    videos = {name.format(steps[0]): steps for steps in shown}
    return case(clauses, (trigger | kw, calls, videos), id=words)


def check_run(harness: Any, values: tuple[Any, ...], exact: bool = False) -> None:
    """Check which videos there are after a run and `close()`."""
    keywords, calls, videos = values
    act(harness, harness.wrap(**keywords), *calls, "close")
    assert_videos(harness, videos, exact)


class TestFinalEpisode:
    @table(
        "values",
        run("newest that lasted", "FIN-1a FIN-3a", {7, 15}, (), [19], [range(8, 13)]),
        run("the only episode", "FIN-1a FIN-3b", (), (), [3], [range(3)]),
        run("overwrites a video", "FIN-1a FILE-1b", {7}, [0], [10], [range(5, 8)], **POLICY),
        run("at most N steps", "FIN-2a FIN-2c", {9}, (), [25], [range(10, 15)]),
        run("from a video's end", "FIN-2a", {9}, [8], [16], [range(13, 16)], **POLICY),
        run("none beside a video", "FIN-2c FIN-3c", {9}, [12], [30], [range(12, 17)]),
        run("closed at its end", "FIN-3a", {7, 11}, (), [12], [range(8, 12)]),
        run("newer without a frame", "FIN-3b", (), (), [3, START], [range(3)]),
        run("switched off", "FIN-1b", {3}, (), [8], [], record_final_episode=False),
    )
    def test_close_saves_the_final_episode(self, world: Any, values: Any) -> None:
        check_run(world, values)

    @table(
        "values",
        run("ended by reset", "FIN-1a FIN-3a", (), (), ["reset", 3] * 4, [range(6, 9)]),
        run("up to the next", "FIN-2c", {2}, (), [12], [range(3)], **LONG),
        run("newer but short", "FIN-3b", {29}, (), [39], [range(20)], **LONG),
        run("a second long", "FIN-3a", {29}, (), [40], [range(30, 40)], **LONG),
        run("by steps", "FIN-3a FIN-3b", {9}, (), [18], [range(10, 17, 3)], **THIRDS),
        run("kept", "FIN-3c", {15}, [20], [24], [range(16), range(20, 24)], **LONG),
        run("dropped", "FIN-3c", {15}, [20], [31], [range(20, 31)], **LONG),
        run("dropped by steps", "FIN-3c", {3, 11}, [3], [11], [range(3, 10, 3)], **THIRDS),
        run("never over a newer", "FIN-3d", (), [10], [13], [range(10, 13)], **LONG, **POLICY),
        run("nor one by hand", "FIN-3d", (), (), BY_HAND, [range(12, 15)], **LONG, **POLICY),
    )
    def test_close_chooses_the_final_episode(self, fake: Any, values: Any) -> None:
        check_run(fake, values)

    @table(
        "values",
        run("1000 steps", "FIN-2b", (), (), [1000], [range(640, 660)], **LONG),
        run("before 4N", "FIN-2b", (), (), [89], [range(20)], **LONG),
        run("from 4N on", "FIN-2b", (), (), [90], [range(80, 90)], **LONG),
        run("busy at 4N", "FIN-2b", (), [75], [120], [range(75, 95), range(95, 115)], **LONG),
        # Step 8 of the episode that begins at step 31 is step 39.
        run("next", "FIN-2b", {6, 30}, (), [40], [range(31, 33)], video_length_sec=0.2),
    )
    def test_an_endless_episode_leaves_a_late_video(self, fake: Any, values: Any) -> None:
        check_run(fake, values, exact=True)


@contextlib.contextmanager
def audited(look: Callable[[str, tuple[Any, ...]], None]) -> Iterator[None]:
    """Call `look` before each thing that Python's audit hooks tell of."""
    looks = [look]
    sys.addaudithook(lambda *event: [look(*event) for look in looks])
    try:
        yield
    finally:
        looks.clear()  # a hook cannot be taken away


COLOURS = [(255, 0, 0), (40, 255, 0), (0, 90, 255), (255, 255, 255), (200, 120, 40)]
NAMES_ENV_1 = ["rendered_envs_idx", re.escape("[0, 2]"), r"env_idx\W+1\b", "camera"]
BUFFER = np.zeros((64, 96, 3), np.uint8)


def check_frames(video: Any, env: Any) -> None:
    """Compare a video with what the camera shows again. It may be padded at either side."""
    for step, frame in zip(video.steps, video.frames):
        env.show(step)
        image = np.array(env.camera.render()[0])
        height, width = image.shape[:2]
        corners = np.ndindex(video.height - height + 1, video.width - width + 1)
        nearest = max(psnr(frame[y : y + height, x : x + width], image) for y, x in corners)
        assert nearest > 30, f"the frame of step {step} is not whole: {nearest:.1f} dB"


def reused(frame: np.ndarray) -> np.ndarray:
    """Return the same array for every frame."""
    BUFFER[:] = frame
    return BUFFER


def rgba(frame: np.ndarray) -> np.ndarray:
    return np.dstack([frame, np.full(frame.shape[:2], 90, np.uint8)])


def stack(frame: np.ndarray) -> np.ndarray:
    """Return a frame of each env, where env 2 is watched."""
    return np.stack([255 - frame, 255 - frame, frame])


class TestFiles:
    @table("names", *(case(f"{n['clause']} ARG-5b", n, id=n["name"]) for n in VECTORS["names"]))
    def test_a_video_has_its_name(self, fake: Any, names: Any) -> None:
        start = names["step"]
        fake.record(start + 8, **only_at(start), filename=names["filename"])
        assert_videos(fake, {names["name"]: range(start, start + 5)})

    @pytest.mark.clause("FILE-3a", "FILE-3b")
    def test_a_name_appears_only_with_its_whole_video(self, fake: Any) -> None:
        # Between the two that are saved, others are dropped.
        trigger = {"step_trigger": lambda n: n in (0, 10)}
        wrapper, seen = fake.wrap(terminated_at={6, 8}, **trigger, **POLICY), []
        for _ in range(20):
            fake.run(wrapper, 1)
            seen.append(fake.videos().get("policy.mp4"))
        first, second = seen[6], seen[16]  # when exactly they appear is TIME-4's
        assert_steps(first, range(5))
        assert_steps(second, range(10, 15))
        assert all(steps in (None, first) for steps in seen[:6])
        assert all(steps in (first, second) for steps in seen[6:])

    @pytest.mark.clause("FILE-3b")
    def test_a_video_is_replaced_in_one_move(self, fake: Any) -> None:
        fake.out_dir.mkdir()
        path, old = fake.out_dir / "0.mp4", fake.out_dir.with_name("old.mp4")
        path.write_bytes(b"of an earlier run")
        os.link(path, old)  # has the bytes that are written into the file, if any are
        wrapper, missing = fake.wrap(**only_at(0)), []

        def look(event: str, arguments: tuple[Any, ...]) -> None:
            # A file that is removed shows at the next of these that Python does.
            does = event.partition(".")[0] in ("open", "os", "shutil", "subprocess")
            if does and not path.exists():
                missing.append(event)

        with audited(look):
            fake.run(wrapper, 3)
            assert path.read_bytes() == b"of an earlier run"
            fake.run(wrapper, 5)
        assert not missing, f"0.mp4 is missing at {missing[0]}, while it is replaced"
        assert old.read_bytes() == b"of an earlier run", "0.mp4 is overwritten in place"
        assert_videos(fake, {"0.mp4": range(5)})

    @pytest.mark.clause("FILE-3c")
    def test_only_videos_are_left_in_the_folder(self, world: Any) -> None:
        keywords = {"terminated_at": range(0, 100, 7), "step_trigger": lambda n: n == 16}
        world.record(30, **keywords).close()
        others = [name for name in world.files() if not is_video_name(name)]
        assert not others, f"of its recordings, {others[0]} is left"

    @pytest.mark.clause("FILE-3d")
    def test_wrappers_with_one_filename_leave_a_whole_video(self, fake: Any) -> None:
        one, two = (fake.record(3, **only_at(step), **POLICY) for step in (0, 1))
        fake.run(one, 5)
        assert_videos(fake, {"policy.mp4": range(5)})
        fake.run(two, 5)
        assert_videos(fake, {"policy.mp4": range(1, 6)})

    @pytest.mark.clause("CLOSE-9a")
    def test_a_partial_file_is_visible_and_named_after_its_video(self, fake: Any) -> None:
        fake.record(2, filename="x" * 251 + ".mp4")  # 255 bytes
        wait_until(fake.files)  # ffmpeg creates it
        (part,) = fake.files()
        assert re.fullmatch(r"x{50,}\.[0-9a-f]{8}\.part", part)

    @table(
        "attribute, value",
        case("FILE-5a", "codec", "h264", id="codec"),
        case("FILE-5a", "pix_fmt", "yuv420p", id="pixels"),
        case("FILE-5b", "index_first", True, id="index in front"),
    )
    def test_a_video_plays_in_browsers(self, world: Any, attribute: str, value: Any) -> None:
        world.record(8)
        assert getattr(world.video("0.mp4"), attribute) == value

    @pytest.mark.clause("FILE-7")
    @pytest.mark.parametrize("size", [(257, 65), (97, 64), (96, 63)], ids=str)
    def test_an_odd_size_is_padded_and_not_rescaled(self, fake: Any, size: tuple[int, int]) -> None:
        width, height = size
        wrapper = fake.wrap(size=size)
        y, x = np.mgrid[:height, :width]
        is_code = ((x < 48) & (y < 32))[..., None]  # of the step
        fine = (100 + 50 * ((x + y) % 2)).astype(np.uint8)[..., None]  # does not survive rescaling
        wrapper.unwrapped.camera.make_frame = lambda frame: np.where(is_code, frame, fine)
        fake.run(wrapper, 8)
        video = fake.video("0.mp4")
        assert (video.width, video.height) == (width + width % 2, height + height % 2)
        check_frames(video, wrapper.unwrapped)

    @table(
        "convert",
        case("FILE-8a FILE-11a", lambda frame: frame, id="array"),
        case("FILE-8a", torch.from_numpy, id="tensor"),
        case("FILE-8a", lambda f: torch.from_numpy(f).as_subclass(OnDevice), id="on a device"),
        case("FILE-8a", np.asfortranarray, id="column-major"),
        case("FILE-8a", lambda frame: frame[::-1].copy()[::-1], id="flipped view"),
        case("FILE-8a", lambda frame: np.broadcast_to(frame, frame.shape), id="read-only"),
        case("FILE-8a", reused, id="reused buffer"),
        case("FILE-8b", rgba, id="RGBA"),
        case("FILE-8b", lambda frame: torch.from_numpy(rgba(frame)), id="RGBA tensor"),
        case("FILE-8d", stack, id="array of envs"),
        case("FILE-8d", lambda frame: torch.from_numpy(stack(frame)), id="tensor of envs"),
    )
    def test_a_frame_keeps_its_colours(self, fake: Any, started: Any, convert: Any) -> None:
        def paint(frame: np.ndarray) -> Any:
            frame[32:] = COLOURS[read_step(frame) % 5]  # below the step's code
            return convert(frame)

        started.unwrapped.camera.make_frame = paint
        act(fake, started, 8, "close")
        video = fake.video("0.mp4")
        assert_steps(video.steps, range(5))
        for step, frame in zip(video.steps, video.frames):
            levels = np.abs(frame[40:].astype(int) - COLOURS[step % 5]).mean()
            assert levels < 4, f"the colour of step {step} is {levels:.0f} levels off"

    @pytest.mark.clause("FILE-8c")
    def test_a_camera_may_return_the_frame_alone(self, fake: Any) -> None:
        env = fake.env()
        render = env.camera.render
        env.camera.render = lambda: render()[0]  # nor need it take arguments
        fake.record(8, env)
        assert_videos(fake, {"0.mp4": range(5)})

    @pytest.mark.clause("FILE-8d")
    def test_of_a_frame_for_each_env_the_watched_one_is_taken(self, world: Any) -> None:
        world.record(8, separate=True, **ENV_2)
        assert_videos(world, {"0.mp4": range(2000, 2005)})

    @pytest.mark.clause("FILE-8e")
    @pytest.mark.parametrize("shown", [[0, 2], [0, 1], None], ids=str)
    def test_an_env_that_the_scene_does_not_render_is_named(self, fake: Any, shown: Any) -> None:
        env = fake.env(watched=1, terminated_at=range(4, 40, 5))
        if shown is not None:
            context = SimpleNamespace(rendered_envs_idx=shown)
            env.scene.visualizer = SimpleNamespace(context=context)
        with warned(*NAMES_ENV_1, count=int(shown == [0, 2])):
            fake.record(20, env, env_idx=1).close()

    @pytest.mark.clause("FILE-8e")
    def test_an_env_that_a_real_scene_does_not_render_is_named(self, genesis: Any) -> None:
        with warned(*NAMES_ENV_1):
            genesis.record(8, env_idx=1).close()

    @pytest.mark.clause("FILE-10")
    def test_out_dir_outlasts_chdir(self, fake: Any, tmp_path: Any, monkeypatch: Any) -> None:
        monkeypatch.chdir(tmp_path)
        wrapper = fake.wrap(out_dir="./videos", record_final_episode=False)
        monkeypatch.chdir("videos")
        act(fake, wrapper, 8, "close")
        assert fake.files() == ["0.mp4"]

    @pytest.mark.clause("FILE-11a")
    def test_frames_are_what_the_camera_gives(self, world: Any) -> None:
        wrapper = world.record(8, **only_at(0))
        video = world.video("0.mp4")
        assert_steps(video.steps, range(5))
        check_frames(video, wrapper.unwrapped)

    @pytest.mark.clause("FILE-11b")
    def test_what_moves_is_sharp_and_leaves_no_trail(self, fake: Any, leave_to: Any) -> None:
        pictures = video_reader.moving_clip(40)
        env = fake.env(size=(320, 240))
        env.camera.make_frame = Mock(side_effect=itertools.cycle(pictures))
        fake.record(40, env, video_length_sec=4, record_final_episode=False).close()
        if env.camera.videos:
            leave_to("the fake camera's own recorder encoded it")
        frames = fake.video("0.mp4").frames
        if len(frames) != 40:
            leave_to(f"of 40 steps it shows {len(frames)}: TIME-4")
        luma, trail = video_reader.sharpness(frames, pictures)
        assert luma >= 40, f"luma of {luma:.1f} dB where something moves, expected 40"
        assert trail <= 0.25, f"chroma is {trail:.2f} levels off where something was, expected 0.25"

    @pytest.mark.clause("FILE-12a")
    def test_memory_does_not_grow_with_the_length(self, fake: Any) -> None:
        wrapper = fake.record(20, size=(640, 480), video_length_sec=12.0, **only_at(0))
        tracemalloc.start()
        fake.run(wrapper, 105)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert_videos(fake, {"0.mp4": range(120)})
        limit = 12 * (640 * 480 * 3)
        assert peak < limit, f"the recording takes {peak} bytes, expected twelve frames, {limit}"


class TestClose:
    @pytest.mark.clause("CLOSE-1b")
    def test_close_closes_the_env_after_saving(self, fake: Any) -> None:
        env, seen = fake.env(), []
        env.close = lambda: seen.append([*fake.videos()])
        fake.record(3, env).close()
        assert seen == [["0.mp4"]]

    @pytest.mark.clause("CLOSE-1c")
    def test_close_closes_the_env_if_saving_fails(self, fake: Any, started: Any) -> None:
        fake.run(started, 3)
        shutil.rmtree(fake.out_dir)
        fake.out_dir.write_text("a file where the folder was")
        with warnings.catch_warnings(), contextlib.suppress(Exception):
            warnings.simplefilter("error")  # a warning is an exception here
            started.close()
        assert started.unwrapped.calls[-1] == "close"

    @pytest.mark.clause("CLOSE-1d")
    @pytest.mark.parametrize("trigger", [first_only, never], ids=["active", "background"])
    def test_a_second_close_saves_nothing_new(self, world: Any, trigger: Callable) -> None:
        wrapper = world.record(3, step_trigger=trigger, **POLICY)
        wrapper.close()
        (world.out_dir / "policy.mp4").unlink()
        wrapper.close()
        assert world.files() == []

    @pytest.mark.clause("CLOSE-4a")
    def test_close_saves_without_threads(self, fake: Any, started: Any, monkeypatch: Any) -> None:
        fake.run(started, 3)
        refuse_threads(monkeypatch)
        started.close()
        assert_videos(fake, {"0.mp4": range(3)})

    @pytest.mark.clause("CLOSE-14b")
    @pytest.mark.parametrize("calls", [[3], [3, "close"]], ids=["recording", "closed"])
    def test_a_signal_keeps_the_handler_of_the_program(self, fake: Any, calls: Any) -> None:
        before = {number: signal.getsignal(number) for number in signal.valid_signals()}
        act(fake, fake.wrap(), *calls)
        taken = [number for number in before if signal.getsignal(number) != before[number]]
        assert not taken, f"the wrapper sets a handler of its own for {taken}"

    @pytest.mark.parametrize("is_in_cycle", [False, True], ids=["", "in a cycle"])
    @table(
        "calls, shown",
        case("CLOSE-10a", [START, 2, "close"], range(2), id="closed"),
        case("CLOSE-10b", [START, 2], range(2), id="active"),
        case("CLOSE-10b", [2], range(2), id="running background"),
        case("CLOSE-10b", [5], range(3), id="finished background"),
    )
    def test_a_wrapper_that_nobody_holds_is_saved_and_freed(
        self, fake: Any, calls: Any, shown: range, is_in_cycle: bool
    ) -> None:
        env = fake.env()
        wrapper = fake.wrap(env, video_length_sec=0.3, step_trigger=never)
        act(fake, wrapper, *calls)
        if is_in_cycle:
            env.wrapper = wrapper
        freed = weakref.ref(wrapper)
        fake.forget()
        del wrapper, env
        gc.collect()
        fake.run(fake.wrap(**only_at(0), filename="other.mp4"), 1)  # at the latest now
        assert freed() is None
        assert_videos(fake, {"0.mp4": shown})


def check_failure(
    fake: Any, keywords: Any, convert: Any, bad: Any, words: Any, videos: Any, exact: bool = False
) -> None:
    """Check that converted frames at the bad steps give one warning, and which videos there are."""
    wrapper = fake.wrap(**keywords)
    env = wrapper.unwrapped
    env.camera.make_frame = lambda frame: convert(frame) if env.shown in bad else frame
    with warned(*words):
        act(fake, wrapper, 17, "close")
    assert_videos(fake, videos, exact)


COPIES = "it copies frames in another way than the test double refuses"


class TestFaults:
    @needs_proc
    @pytest.mark.clause("FAIL-1a", "FAIL-1b", "FAIL-1c", "FAIL-1d")
    @pytest.mark.parametrize("calls", [[20], [FINISH, 20]], ids=["early", "late"])
    def test_a_dead_encoder_costs_its_video_and_warns_once(self, fake: Any, calls: Any) -> None:
        wrapper = fake.record(2, **only_at(0, 8))
        signal_encoders(signal.SIGKILL)
        with warned(r"\b0\.mp4", "-9|kill|pipe"):
            act(fake, wrapper, *calls)
        assert fake.files() == ["8.mp4"]
        assert_videos(fake, {"8.mp4": range(8, 13)})

    @needs_proc
    @pytest.mark.clause("FAIL-1d", "FAIL-1e")
    def test_a_warning_that_is_an_error_costs_no_later_video(self, fake: Any) -> None:
        wrapper = fake.record(2, **only_at(0, 8))
        signal_encoders(signal.SIGKILL)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(Warning, match=r"\b0\.mp4"):
                fake.run(wrapper, 4)
            fake.run(wrapper, 14)
        assert_videos(fake, {"8.mp4": range(8, 13)})

    @pytest.mark.clause("FAIL-1a", "FAIL-1b", "FAIL-1d")
    @pytest.mark.parametrize("call", [4, FINISH, START, "close"])
    def test_a_folder_that_went_away_gives_one_warning(self, fake: Any, call: Any) -> None:
        wrapper = fake.record(2, **only_at(0, 8))
        shutil.rmtree(fake.out_dir)
        with saved_or_warned(fake, "0.mp4", [*range(5 if call == 4 else 2)]):
            act(fake, wrapper, call)
        if call == "close":
            wrapper.close()  # does not take the failed recording up again
        else:
            fake.run(wrapper, 16)
            assert_steps(fake.video("8.mp4").steps, range(8, 13))

    @pytest.mark.clause("FAIL-1b", "FAIL-1f")
    def test_a_folder_that_stays_away_gives_a_warning_a_video(self, fake: Any) -> None:
        wrapper = fake.wrap(**only_at(2, 8))
        shutil.rmtree(fake.out_dir)
        fake.out_dir.write_text("a file where the folder was")
        with warned("exists|not a directory", count=2) as said:
            assert len(fake.run(wrapper, 20)) == 20
        assert re.search(r"\b2\.mp4", said[0])
        assert re.search(r"\b8\.mp4", said[1])

    @pytest.mark.clause("FAIL-1b", "FAIL-1g")
    def test_a_folder_of_the_same_name_gives_one_warning(self, fake: Any, started: Any) -> None:
        fake.run(started, 3)
        (fake.out_dir / "0.mp4").mkdir()
        with warned(r"\b0\.mp4", "directory") as said:
            started.close()
        (kept,) = {*fake.files()} - {"0.mp4"}
        assert kept in said[0], f"the warning does not say that the video is in {kept}: {said[0]}"
        assert_steps(fake.video(kept).steps, range(3))
        assert (fake.out_dir / "0.mp4").is_dir()

    @pytest.mark.clause("FILE-3b", "FAIL-1b")
    def test_a_failed_recording_leaves_an_older_video(self, fake: Any, started: Any) -> None:
        (fake.out_dir / "0.mp4").write_bytes(b"of an earlier run")
        started.unwrapped.camera.make_frame = lambda frame: None
        with warned(r"\b0\.mp4"):
            act(fake, started, 8, "close")
        assert (fake.out_dir / "0.mp4").read_bytes() == b"of an earlier run"

    @table(
        "ends, starts, bad, shown",
        case("FIN-3c FAIL-1c", (), {8}, range(8, 13), range(5), id="active"),
        case("FAIL-1b FAIL-1d", {7}, (), range(8), range(8, 13), id="background"),
    )
    def test_a_failed_recording_costs_no_other(
        self, fake: Any, ends: Any, starts: Any, bad: Any, shown: Any
    ) -> None:
        keywords = {"terminated_at": ends, "step_trigger": lambda n: n in starts, **POLICY}
        videos = {"policy.mp4": shown}
        check_failure(fake, keywords, lambda frame: None, bad, [r"\bpolicy\.mp4"], videos)

    @pytest.mark.clause("FAIL-1f")
    @pytest.mark.parametrize("names", [["policy.mp4"], ["a.mp4", "b.mp4"]], ids=" ".join)
    def test_python_shows_the_warning_of_each_failure(self, fake: Any, names: list[str]) -> None:
        wrappers = [fake.wrap(**only_at(0, 8), filename=name) for name in names]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")  # which shows the same words of a line once
            for wrapper in wrappers:
                wrapper.unwrapped.camera.make_frame = lambda frame: None
                fake.run(wrapper, 16)
        said = [str(warning.message) for warning in caught]
        wanted = [name for name in names for _ in range(2)]  # recordings
        assert len(said) == len(wanted), f"Python shows {said} of {len(wanted)} failed recordings"
        assert all(name in text for name, text in zip(wanted, said)), said

    @pytest.mark.clause("FAIL-3a", "FAIL-3b")
    @pytest.mark.parametrize("part", ["camera", "env"])
    def test_an_error_costs_no_other_frame(self, fake: Any, part: str, monkeypatch: Any) -> None:
        wrapper, error = fake.record(2, **only_at(0)), RuntimeError("simulation")
        env = wrapper.unwrapped
        owner, name = (env.camera, "render") if part == "camera" else (env, "step")
        with monkeypatch.context() as patched, pytest.raises(RuntimeError) as caught:
            patched.setattr(owner, name, Mock(side_effect=error))
            fake.run(wrapper, 1)
        assert caught.value is error
        act(fake, wrapper, 1, "close")
        assert fake.videos() == {"0.mp4": [0, 1, 3] if part == "camera" else [0, 1, 2]}

    @pytest.mark.clause("FAIL-3a", "FIN-3a")
    @pytest.mark.parametrize(("kind", "count"), [("step_trigger", 6), ("episode_trigger", 3)])
    def test_an_error_of_a_trigger_costs_no_earlier_episode(
        self, fake: Any, kind: str, count: int
    ) -> None:
        trigger = Mock(side_effect=[*[False] * count, ZeroDivisionError("trigger")])
        wrapper = fake.wrap(terminated_at={1, 3, 5}, **{kind: trigger})
        with pytest.raises(ZeroDivisionError, match="^trigger$"):
            fake.run(wrapper, 7)
        wrapper.close()
        assert_videos(fake, {"4.mp4": range(4, 6)})

    @pytest.mark.clause("FAIL-5a", "FAIL-5b")
    def test_an_interrupt_while_saving_costs_nothing(self, fake: Any, monkeypatch: Any) -> None:
        wrapper = fake.record(3, **only_at(0, 8), logging=True)
        with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
            patched.setattr("builtins.print", Mock(side_effect=KeyboardInterrupt))
            wrapper.finish_recording()
        with warned(count=0):
            act(fake, wrapper, 8, "close")
        assert_videos(fake, {"0.mp4": range(3), "8.mp4": range(8, 11)}, exact=True)

    @pytest.mark.clause("FAIL-5a", "FAIL-5c")
    @pytest.mark.parametrize("where", ["camera", "copy"])
    def test_an_interrupt_costs_only_the_frame_being_taken(
        self, fake: Any, started: Any, where: str, leave_to: Any, monkeypatch: Any
    ) -> None:
        threads, processes = {*threading.enumerate()}, encoders()
        monkeypatch.setattr(Interrupts, "has_raised", False)
        interrupt = Interrupts.of if where == "copy" else Mock(side_effect=KeyboardInterrupt)
        for step in range(4):
            started.unwrapped.camera.make_frame = interrupt if step == 2 else (lambda frame: frame)
            with contextlib.suppress(KeyboardInterrupt):
                fake.run(started, 1)
        started.close()
        if where == "copy" and not Interrupts.has_raised:
            leave_to(COPIES)
        assert fake.videos() == {"0.mp4": [0, 1, 3]}
        assert fake.files() == ["0.mp4"]
        assert not {*threading.enumerate()} - threads
        assert not encoders() - processes

    @pytest.mark.clause("FAIL-6a", "FAIL-6d", "FAIL-1d")
    @table(
        "convert, words",
        (lambda frame: None, ["None"]),
        (lambda frame: frame.astype(np.float32) / 255, ["float32", "64, 96, 3"]),
        (lambda frame: torch.from_numpy(frame).float(), ["float32", "64, 96, 3"]),
        (lambda frame: frame[..., 0], ["uint8", "64, 96"]),
        (lambda frame: frame[..., :2], ["uint8", "64, 96, 2"]),
        (lambda frame: frame[None, None], ["uint8", "(1, 1, 64, 96, 3)"]),
        (lambda frame: "picture", ["str"]),
        ids=["None", "float", "float tensor", "grey", "two channels", "5-d", "str"],
    )
    def test_a_wrong_frame_is_named_once(self, fake: Any, convert: Any, words: Any) -> None:
        words = [r"\b0\.mp4", *map(re.escape, words)]
        check_failure(fake, only_at(0, 8), convert, range(5), words, {"8.mp4": range(8, 13)})

    @pytest.mark.clause("FAIL-6a", "FAIL-6d")
    def test_a_stack_without_the_watched_env_is_named_once(self, fake: Any) -> None:
        keywords = {"separate": True, **ENV_2, **only_at(0)}
        words = [r"\b0\.mp4", r"env.*\b2\b|\(2, 64, 96, 3\)"]
        check_failure(fake, keywords, lambda frames: frames[:2], range(5), words, {})

    @pytest.mark.clause("FAIL-6a", "FAIL-6c", "FAIL-6d")
    def test_a_frame_of_another_size_costs_none_before_it(self, fake: Any) -> None:
        words, videos = [r"\b0\.mp4", r"\(32, 96, 3\)", "uint8"], {"0.mp4": range(2)}
        check_failure(fake, only_at(0), lambda f: f[:32], range(2, 5), words, videos, exact=True)

    @pytest.mark.clause("FAIL-6b", "FAIL-6c", "FAIL-6d")
    def test_memory_that_runs_out_costs_no_frame_before(
        self, fake: Any, started: Any, leave_to: Any, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(Large, "has_raised", False)
        fake.run(started, 2)
        started.unwrapped.camera.make_frame = Large.of
        with warned(r"\b0\.mp4", "64, 96, 3", "uint8"):
            act(fake, started, 3, "close")
            if not Large.has_raised:
                leave_to(COPIES)
        assert_videos(fake, {"0.mp4": range(2)}, exact=True)


class TestLogging:
    @pytest.mark.clause("LOG-1a")
    def test_each_saved_video_prints_a_line_with_its_path(self, fake: Any, capsys: Any) -> None:
        fake.record(19, terminated_at={7}, logging=True).close()
        lines = capsys.readouterr().out.splitlines()
        for name in fake.files():
            named = [line for line in lines if str(fake.out_dir / name) in line]
            assert len(named) == 1, f"expected one line with the path of {name}, got {lines}"

    @pytest.mark.clause("LOG-1b")
    def test_the_line_gives_frames_seconds_and_rate(self, fake: Any, capsys: Any) -> None:
        fake.record(20, fps=3.3, video_length_sec=1.2, step_trigger=first_only, logging=True)
        line = capsys.readouterr().out.splitlines()[0]
        count = fake.video("0.mp4").count
        words = line.replace(str(fake.out_dir / "0.mp4"), "")  # which has numbers of its own
        numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", words)]
        wanted = {"frames": count, "seconds": 0.3 * count, "frames per second": 1 / 0.3}
        for unit, value in wanted.items():  # in any order, and rounded
            near = [number for number in numbers if abs(number - value) < 0.01 * value]
            assert near, f"the line does not give the {unit}, {value:.4g}: {line!r}"

    @pytest.mark.clause("LOG-3")
    def test_nothing_is_printed_without_logging(self, fake: Any, capfd: Any) -> None:
        calls = [30, START, 2, FINISH, "reset", 8, "close"]
        keywords = {"terminated_at": {20}, "step_trigger": lambda n: n in (0, 8)}
        act(fake, fake.wrap(logging=False, **keywords), *calls)
        assert capfd.readouterr() == ("", "")

    @pytest.mark.clause("LOG-1d")
    def test_a_broken_terminal_raises_nothing(self, fake: Any, monkeypatch: Any) -> None:
        wrapper = fake.wrap(**only_at(0, 6), logging=True)
        fail = Mock(side_effect=OSError("the terminal is gone"))
        with monkeypatch.context() as patched:
            patched.setattr("builtins.print", fail)
            patched.setattr(sys, "stdout", SimpleNamespace(write=fail, flush=fail))
            act(fake, wrapper, 8, "close")
        assert_videos(fake, {"0.mp4": range(5), "6.mp4": range(6, 8)})


def nested(fake: Any) -> tuple[Any, Any]:
    """Return an env and the outer of two wrappers around it."""
    env = fake.env()
    inner = fake.wrap(env, build=False, **only_at())
    return env, fake.wrap(inner, build=False, **only_at())


class TestDelegation:
    @pytest.mark.clause("DEL-1a")
    @pytest.mark.parametrize(
        "name", [p.name for p in PROPERTIES if p.name not in ("video_length_steps", "unwrapped")]
    )
    def test_a_property_is_read_from_the_env_at_each_access(self, fake: Any, name: str) -> None:
        env = fake.env()
        wrapper = fake.wrap(env)
        before = getattr(env, name)
        for value in (before, object(), object(), before):
            setattr(env, name, value)
            assert getattr(wrapper, name) is value, f"{name} is not read from the env each time"

    @pytest.mark.clause("DEL-2a", "DEL-2b")
    def test_step_passes_actions_and_results_through(self, fake: Any) -> None:
        env, actions = fake.env(), object()
        results = env.step(None)
        env.step = Mock(return_value=results)
        assert fake.wrap(env).step(actions) is results
        env.step.assert_called_once_with(actions)

    @pytest.mark.clause("DEL-2c")
    def test_reset_and_get_observations_pass_through(self, fake: Any) -> None:
        env, answers = fake.env(), {None: (object(), {}), (0, 2): (object(), {})}
        env.reset = Mock(side_effect=lambda env_ids=None: answers[env_ids])
        env.get_observations = Mock(return_value=object())
        wrapper = fake.wrap(env)
        assert wrapper.reset() is answers[None]
        assert wrapper.reset((0, 2)) is wrapper.reset(env_ids=(0, 2)) is answers[0, 2]
        assert env.reset.call_count == 3
        assert wrapper.get_observations() is env.get_observations.return_value

    @pytest.mark.clause("DEL-2d")
    def test_an_env_whose_reset_takes_no_envs_can_be_reset(self, fake: Any) -> None:
        env, answer = fake.env(), (object(), {})
        env.reset = lambda: answer
        assert fake.wrap(env).reset() is answer

    @pytest.mark.clause("DEL-1b")
    def test_wrappers_nest(self, world: Any) -> None:
        env = world.env()
        inner = world.wrap(env, build=False, **only_at())
        outer = world.record(8, inner, **only_at(0))
        assert outer.env is inner
        assert outer.unwrapped is env
        assert "0.mp4" in world.videos()

    @pytest.mark.clause("DEL-5a")
    def test_an_attribute_is_read_from_the_env(self, fake: Any) -> None:
        env, wrapper = nested(fake)
        for env.cfg in (object(), object(), None):
            assert wrapper.cfg is env.cfg
        with pytest.raises(AttributeError, match="no_such_name"):
            wrapper.no_such_name  # noqa: B018

    @pytest.mark.clause("DEL-5b")
    def test_an_attribute_is_assigned_to_the_env_that_has_it(self, fake: Any) -> None:
        env, wrapper = nested(fake)
        env.episode_length_buf = torch.zeros(3, dtype=torch.int64)
        wrapper.episode_length_buf = buffer = torch.randint(0, 9, (3,))
        assert env.episode_length_buf is buffer
        wrapper.episode_length_buf += 1  # in place, as some runners do
        assert env.episode_length_buf is buffer

    @pytest.mark.clause("DEL-5c")
    def test_an_attribute_that_the_env_lacks_stays(self, fake: Any) -> None:
        env, wrapper = nested(fake)
        wrapper.notes = value = object()
        assert wrapper.notes is value
        assert not hasattr(env, "notes")
        del wrapper.notes
        assert not hasattr(wrapper, "notes")
        env.start_recording = env.video_length_steps = "theirs"
        assert callable(wrapper.start_recording)
        assert wrapper.video_length_steps == 5

    @pytest.mark.clause("DEL-5d")
    def test_private_names_are_not_passed_on(self, fake: Any) -> None:
        env, wrapper = nested(fake)
        env._secret = theirs = object()
        with pytest.raises(AttributeError, match="_secret"):
            wrapper._secret  # noqa: B018
        wrapper._secret = mine = object()
        assert wrapper._secret is mine
        assert env._secret is theirs


def log_reads(env: Any) -> list[str]:
    """Return a list that tells how the flags of an env are read."""
    log: list[str] = []

    def counted(*flags: torch.Tensor) -> list[Flags]:
        counting = [flag.as_subclass(Flags) for flag in flags]
        for flag in counting:
            flag.log = log
        return counting

    env.make_flags = counted
    return log


class TestCost:
    @pytest.mark.clause("COST-1a", "COST-1b")
    @pytest.mark.parametrize("results", [4, 5])
    def test_a_step_reads_each_flag_once_and_waits_once(self, fake: Any, results: int) -> None:
        env = fake.env()
        if results == 4:
            four_results(env, lambda dones: dones)
        log = log_reads(env)
        wrapper = fake.wrap(env, episode_trigger=never, record_final_episode=False)
        fake.run(wrapper, 1)  # whose results are looked at (EPI-7)
        log.clear()
        fake.run(wrapper, 10)
        # Each flag once at most, and one wait for all, in any order.
        assert log.count("read") <= 2 * 10, f"ten steps read the flags {log.count('read')} times"
        assert log.count("wait") <= 10, f"ten steps wait {log.count('wait')} times"

    @pytest.mark.clause("COST-1c")
    @pytest.mark.parametrize("results", [3, 5])
    def test_a_step_reads_nothing_where_no_episode_is_counted(
        self, fake: Any, results: int
    ) -> None:
        env = fake.env()
        log, step = log_reads(env), env.step
        env.step = lambda actions: step(actions)[:results]
        fake.record(10, env, **only_at(2))
        assert log == []
        assert_videos(fake, {"2.mp4": range(2, 7)})

    @pytest.mark.clause("COST-2a")
    def test_a_recording_takes_one_process(self, fake: Any) -> None:
        before, started, counts = encoders(), [], []

        def look(event: str, arguments: tuple[Any, ...]) -> None:
            if event in ("subprocess.Popen", "os.system", "os.fork", "os.posix_spawn", "os.spawn"):
                started.append(event)

        wrapper = fake.wrap(**only_at(3, 20))
        # Only now: in old releases, imageio-ffmpeg finds ffmpeg by starting it for a moment.
        with audited(look):
            for _ in range(30):
                fake.run(wrapper, 1)
                counts.append((len(started), len(encoders() - before)))
        # Up to two steps more, because the length of a recording is TIME-4's.
        assert counts[:3] == [(0, 0)] * 3
        assert all(begun <= 1 and alive <= 1 for begun, alive in counts[3:20])
        assert all(begun <= 2 and alive <= 1 for begun, alive in counts[20:])
        assert all(alive == 0 for _, alive in [*counts[9:20], *counts[26:]])

    @needs_proc
    @pytest.mark.clause("COST-2a")
    def test_close_leaves_no_process(self, fake: Any) -> None:
        before = encoders()
        # One is dropped, one waits for close(), one has a step, and the last is active.
        fake.record(9, terminated_at={2, 5}, step_trigger=lambda n: n == 7).close()
        assert not encoders() - before

    @needs_proc
    @pytest.mark.clause("COST-2b")
    def test_a_step_waits_for_an_encoder_that_stands_still(self, fake: Any) -> None:
        wrapper = fake.record(1, size=(640, 480), video_length_sec=5.0, step_trigger=first_only)
        signal_encoders(signal.SIGSTOP)
        training = threading.Thread(target=fake.run, args=(wrapper, 20))
        training.start()
        training.join(1.0)
        taken = wrapper.unwrapped.camera.renders
        signal_encoders(signal.SIGCONT)
        training.join()
        # The first, one that is being written, those that wait, and one whose step does.
        assert taken <= 1 + 1 + 4 + 1
