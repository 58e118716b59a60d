"""The conformance tests, in the order of the clauses of spec/README.md that they name.

They judge from outside: they decode the videos and read which steps they show. `world.wrap` makes an
env with dt = 0.1 s and wraps it for videos of 0.5 s at 10 fps, so that a recording of five steps is
five frames, unless the test says otherwise. See conftest.py.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import math
import os
import re
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

VECTORS = json.loads((Path(__file__).parent / "spec" / "vectors.json").read_text())
STUB = ast.parse((Path(__file__).parent / "spec" / "video_wrapper.pyi").read_text())


def stub_functions(decorated: bool) -> list[ast.FunctionDef]:
    """The methods (or, decorated, the properties) that the stub gives `VideoWrapper`."""
    classes = [node for node in STUB.body if isinstance(node, ast.ClassDef)]
    members = {m.name: m for c in classes for m in c.body if isinstance(m, ast.FunctionDef)}
    return [m for m in members.values() if bool(m.decorator_list) == decorated]


METHODS = stub_functions(decorated=False)
PROPERTIES = stub_functions(decorated=True)


def by_name(function: ast.FunctionDef) -> str:
    return function.name


def parameters(signature: ast.FunctionDef) -> dict[str, tuple[Any, str | None]]:
    """Name: (default, annotation as written), without `self`."""
    arguments = signature.args.args
    defaults = [inspect.Parameter.empty] * (len(arguments) - len(signature.args.defaults))
    defaults += [ast.literal_eval(default) for default in signature.args.defaults]
    return {
        a.arg: (d, a.annotation and ast.unparse(a.annotation))
        for a, d in zip(arguments[1:], defaults[1:])
    }


def spelling(annotation: Any) -> str:
    """An annotation as written in a source, less what is spelled in more than one way."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return ast.unparse(ast.parse(text)).replace("typing.", "").replace("collections.abc.", "")


class TestApi:
    @pytest.mark.clause("API-1")
    def test_the_constructor_takes_the_documented_parameters(self, implementation: type) -> None:
        (stub,) = [m for m in METHODS if m.name == "__init__"]
        actual = inspect.signature(implementation).parameters
        assert {n: p.default for n, p in actual.items()} == {
            n: default for n, (default, _) in parameters(stub).items()
        }
        assert list(actual) == list(parameters(stub))

    @pytest.mark.clause("API-2")
    @pytest.mark.parametrize("method", METHODS, ids=by_name)
    def test_a_method_takes_the_documented_parameters(
        self, implementation: type, method: ast.FunctionDef
    ) -> None:
        actual = list(inspect.signature(getattr(implementation, method.name)).parameters.values())
        assert {p.name: p.default for p in actual[1:]} == {
            n: default for n, (default, _) in parameters(method).items()
        }

    @pytest.mark.clause("API-3")
    @pytest.mark.parametrize("name", [p.name for p in PROPERTIES])
    def test_a_property_is_a_read_only_property(self, implementation: type, name: str) -> None:
        member = getattr(implementation, name)
        assert isinstance(member, property)
        assert member.fset is None

    @pytest.mark.clause("API-4")
    def test_env_is_the_wrapped_env_and_the_wrapper_can_be_wrapped(self, fake: Any) -> None:
        env = fake.env()
        wrapper = fake.wrap(env)
        assert wrapper.env is env
        assert wrapper.can_be_wrapped is True

    @pytest.mark.clause("API-5")
    @pytest.mark.parametrize("method", METHODS, ids=by_name)
    def test_annotations_are_the_documented_ones(
        self, implementation: type, method: ast.FunctionDef
    ) -> None:
        signature = inspect.signature(getattr(implementation, method.name))
        for name, (_, annotation) in parameters(method).items():
            if annotation is not None:
                assert spelling(signature.parameters[name].annotation) == annotation
        if method.returns is not None:
            assert spelling(signature.return_annotation) == ast.unparse(method.returns)

    @pytest.mark.clause("API-5")
    @pytest.mark.parametrize("stub", PROPERTIES, ids=by_name)
    def test_a_property_has_the_documented_type(
        self, implementation: type, stub: ast.FunctionDef
    ) -> None:
        getter = getattr(implementation, stub.name).fget
        assert spelling(inspect.signature(getter).return_annotation) == ast.unparse(stub.returns)

    @pytest.mark.clause("API-6")
    def test_importing_imports_neither_genesis_nor_torch(self, module: Any, python: Any) -> None:
        modules = python("import sys, video_wrapper; print(*sys.modules)").stdout.split()
        assert "video_wrapper" in modules
        assert not {"genesis", "torch", "genesis_forge"}.intersection(modules)

    @pytest.mark.clause("API-7")
    def test_the_file_works_alone_under_another_name_in_a_package(
        self, module: Any, fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = tmp_path / "their_project" / "tools"
        package.mkdir(parents=True)
        shutil.copy(module.__file__, package / "recording.py")
        monkeypatch.syspath_prepend(tmp_path)
        copy = importlib.import_module("their_project.tools.recording")
        assert copy.__name__ == "their_project.tools.recording"
        wrapper = fake.wrap(implementation=copy.VideoWrapper)
        fake.run(wrapper, 5)
        wrapper.close()
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("API-8")
    def test_the_module_carries_its_versions_and_licence(
        self, module: Any, spec_version: str
    ) -> None:
        assert re.fullmatch(r"\d+\.\d+\.\d+", module.__version__)
        assert module.__spec_version__ == spec_version
        assert "SPDX-License-Identifier: MIT" in module.__doc__

    @pytest.mark.clause("API-9")
    def test_it_is_a_wrapper_of_genesis_forge_where_that_is_loaded(
        self, implementation: type, fake: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class ForgeWrapper:
            """Stands for genesis_forge.wrappers.wrapper.Wrapper."""

            def step(self, actions: Any) -> Any:
                raise AssertionError("the wrapper's own step goes first")

        for name in ("genesis_forge", "genesis_forge.wrappers", "genesis_forge.wrappers.wrapper"):
            monkeypatch.setitem(sys.modules, name, type(sys)(name))
        sys.modules["genesis_forge.wrappers.wrapper"].Wrapper = ForgeWrapper
        wrapper = fake.wrap()
        assert isinstance(wrapper, ForgeWrapper)
        assert isinstance(wrapper, implementation)
        fake.run(wrapper, 5)
        wrapper.close()
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}


NOT_POSITIVE = [0, -1, math.nan, math.inf, "60", None]


class TestArguments:
    @pytest.mark.clause("ARG-1")
    def test_both_triggers_are_refused(self, world: Any) -> None:
        with pytest.raises(ValueError, match=r"(?s)(?=.*episode_trigger)(?=.*step_trigger)"):
            world.wrap(episode_trigger=lambda e: True, step_trigger=lambda n: True)

    @pytest.mark.clause("ARG-2")
    @pytest.mark.parametrize("name", ["episode_trigger", "step_trigger"])
    @pytest.mark.parametrize("value", [5, True, "1500", [0, 1]])
    def test_a_trigger_that_is_not_callable_is_refused(
        self, fake: Any, name: str, value: Any
    ) -> None:
        with pytest.raises(TypeError, match=f"{name}.*{re.escape(repr(value))}"):
            fake.wrap(**{name: value})

    @pytest.mark.clause("ARG-3")
    @pytest.mark.parametrize("name", ["fps", "video_length_sec"])
    @pytest.mark.parametrize("value", NOT_POSITIVE)
    def test_a_number_that_makes_no_video_is_refused(
        self, fake: Any, name: str, value: Any
    ) -> None:
        with pytest.raises(ValueError, match=f"{name}.*{re.escape(repr(value))}"):
            fake.wrap(**{name: value})

    @pytest.mark.clause("ARG-3")
    @pytest.mark.parametrize("value", NOT_POSITIVE)
    def test_an_env_without_a_time_step_is_refused(self, fake: Any, value: Any) -> None:
        env = fake.env()
        env.dt = value
        with pytest.raises(ValueError, match=f"dt.*{re.escape(repr(value))}"):
            fake.wrap(env, fps=10)

    @pytest.mark.clause("ARG-4")
    @pytest.mark.parametrize("value", [-1, 3, 1.0, "0", None])
    def test_an_env_idx_out_of_range_is_refused(self, fake: Any, value: Any) -> None:
        with pytest.raises(ValueError, match=f"env_idx.*{re.escape(repr(value))}"):
            fake.wrap(num_envs=3, env_idx=value)

    @pytest.mark.clause("ARG-4")
    @pytest.mark.parametrize("value", [0, 2, np.int64(2), torch.tensor(2)])
    def test_an_env_idx_in_range_is_taken(self, fake: Any, value: Any) -> None:
        wrapper = fake.wrap(num_envs=3, watched=int(value), env_idx=value)
        fake.run(wrapper, 5)
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("ARG-5")
    @pytest.mark.parametrize("name", VECTORS["refused_names"]["filenames"] + ["x" * 252 + ".mp4"])
    def test_a_filename_that_is_no_video_name_is_refused(self, fake: Any, name: Any) -> None:
        with pytest.raises(ValueError, match=f"filename.*{re.escape(repr(name))}"):
            fake.wrap(filename=name)

    @pytest.mark.clause("ARG-6")
    def test_an_env_that_cannot_be_wrapped_is_refused(self, fake: Any) -> None:
        env = fake.env()
        env.can_be_wrapped = False
        with pytest.raises(ValueError, match="can_be_wrapped"):
            fake.wrap(env)

    @pytest.mark.clause("ARG-7")
    def test_out_dir_is_created_with_its_parents_at_construction(self, world: Any) -> None:
        world.out_dir = world.out_dir / "of" / "monday"
        world.wrap(build=False)
        assert world.out_dir.is_dir()

    @pytest.mark.clause("ARG-8")
    def test_an_out_dir_that_cannot_be_a_folder_is_refused(self, fake: Any, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        fake.out_dir = tmp_path / "file"
        with pytest.raises(OSError, match="out_dir.*file"):
            fake.wrap()
        fake.out_dir = tmp_path / "file" / "videos"
        with pytest.raises(OSError, match="out_dir.*file"):
            fake.wrap()

    @pytest.mark.clause("ARG-8")
    def test_an_out_dir_that_cannot_be_written_to_is_refused(self, fake: Any) -> None:
        fake.out_dir = Path("/proc/self")  # the one folder that not even root can write to
        if not fake.out_dir.is_dir():
            pytest.skip("needs Linux: elsewhere no folder is closed to every user")
        with pytest.raises(OSError, match="out_dir.*/proc/self"):
            fake.wrap()


class TestBuild:
    @pytest.mark.clause("BLD-1")
    def test_build_builds_the_env_once(self, fake: Any) -> None:
        wrapper = fake.wrap(build=False)
        assert wrapper.unwrapped.calls == []
        wrapper.build()
        assert wrapper.unwrapped.calls == ["build"]

    @pytest.mark.clause("BLD-2")
    def test_the_camera_is_the_attribute_of_that_name(self, world: Any) -> None:
        env = world.env()
        env.side_view, env.camera = env.camera, None
        wrapper = world.wrap(env, camera_attr="side_view")
        world.run(wrapper, 5)
        assert world.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("BLD-3")
    def test_build_names_a_camera_that_is_missing(self, world: Any) -> None:
        env = world.env()
        with pytest.raises(Exception, match=rf"(?s)(?=.*{type(env).__name__})(?=.*side_view)"):
            world.wrap(env, camera_attr="side_view")

    @pytest.mark.clause("BLD-3")
    def test_build_names_a_camera_that_is_none(self, world: Any) -> None:
        env = world.env()
        env.camera = None
        with pytest.raises(Exception, match=rf"(?s)(?=.*{type(env).__name__})(?=.*camera)"):
            world.wrap(env)

    @pytest.mark.clause("BLD-4")
    def test_an_env_built_before_is_recorded_without_build(self, world: Any) -> None:
        env = world.env()
        env.build()
        wrapper = world.wrap(env, build=False)
        world.run(wrapper, 5)
        assert world.videos() == {"0.mp4": [0, 1, 2, 3, 4]}


def timing(*clauses: str) -> Any:
    rows = [row for row in VECTORS["timing"] if not clauses or row["clause"] in clauses]
    return pytest.mark.parametrize("row", rows, ids=[row["note"] for row in rows])


def first_only(n: int) -> bool:
    return n == 0


class TestTime:
    @pytest.mark.clause("TIME-1")
    @timing("TIME-1", "TIME-3", "TIME-6")
    def test_the_length_is_the_seconds_in_steps_rounded_up(self, fake: Any, row: Any) -> None:
        wrapper = fake.wrap(dt=row["dt"], fps=row["fps"], video_length_sec=row["video_length_sec"])
        assert wrapper.video_length_steps == row["steps"]

    @pytest.mark.clause("TIME-2")
    @timing("TIME-2")
    def test_float_noise_adds_no_step_and_takes_none(self, fake: Any, row: Any) -> None:
        wrapper = fake.wrap(dt=row["dt"], fps=row["fps"], video_length_sec=row["video_length_sec"])
        assert wrapper.video_length_steps == row["steps"]

    @pytest.mark.clause("TIME-3", "TIME-6")
    @timing()
    def test_stride_frames_and_rate(self, fake: Any, row: Any) -> None:
        wrapper = fake.wrap(
            dt=row["dt"],
            fps=row["fps"],
            video_length_sec=row["video_length_sec"],
            step_trigger=first_only,
            record_final_episode=False,
        )
        fake.run(wrapper, row["steps"])
        video = fake.video("0.mp4")
        # Only what the clauses settle: how many frames there are is TIME-4's.
        assert video.steps[1:2] in ([row["stride"]], [])
        assert video.rate == Fraction(row["rate"])

    @pytest.mark.clause("TIME-4")
    @timing()
    def test_a_video_has_the_frames_of_its_length(self, fake: Any, row: Any) -> None:
        wrapper = fake.wrap(
            dt=row["dt"],
            fps=row["fps"],
            video_length_sec=row["video_length_sec"],
            step_trigger=first_only,
            record_final_episode=False,
        )
        fake.run(wrapper, row["steps"] + 1)
        assert fake.video("0.mp4").count == row["frames"]

    @pytest.mark.clause("TIME-4")
    def test_a_video_shows_its_steps_from_the_first(self, world: Any) -> None:
        wrapper = world.wrap(step_trigger=lambda n: n == 3, record_final_episode=False)
        world.run(wrapper, 20)
        assert world.videos() == {"3.mp4": [3, 4, 5, 6, 7]}

    @pytest.mark.clause("TIME-4")
    @pytest.mark.parametrize(("start", "steps"), [(0, [0, 3, 6, 9]), (4, [4, 7, 10, 13])])
    def test_a_stride_counts_from_the_first_step(
        self, world: Any, start: int, steps: list[int]
    ) -> None:
        wrapper = world.wrap(
            fps=3.3,
            video_length_sec=1.0,
            step_trigger=lambda n: n == start,
            record_final_episode=False,
        )
        world.run(wrapper, 30)
        assert world.videos() == {f"{start}.mp4": steps}

    @pytest.mark.clause("TIME-4")
    @pytest.mark.parametrize("length", range(1, 8))
    def test_a_video_of_any_length_has_that_many_frames(self, fake: Any, length: int) -> None:
        wrapper = fake.wrap(
            video_length_sec=length / 10, step_trigger=first_only, record_final_episode=False
        )
        fake.run(wrapper, 10)
        assert fake.videos() == {"0.mp4": list(range(length))}

    @pytest.mark.clause("TIME-5")
    def test_the_step_that_ends_an_episode_is_shown_after_its_reset(self, fake: Any) -> None:
        env = fake.env(terminated_at={2})
        inner_step = env.step

        def step(actions: Any) -> Any:
            result = inner_step(actions)
            if bool(result[2][0]):
                env.shown = 555  # the picture that the env's own reset leaves
            return result

        env.step = step
        wrapper = fake.wrap(env, step_trigger=first_only, record_final_episode=False)
        fake.run(wrapper, 5)
        assert fake.videos() == {"0.mp4": [0, 1, 555, 3, 4]}

    @pytest.mark.clause("TIME-6")
    def test_a_second_of_video_is_a_second_of_simulation(self, world: Any) -> None:
        wrapper = world.wrap(dt=0.05, fps=7, video_length_sec=0.9, step_trigger=first_only)
        world.run(wrapper, 18)
        video = world.video("0.mp4")
        assert video.steps == [0, 3, 6, 9, 12, 15]
        assert video.rate == Fraction(20, 3)
        assert video.duration == pytest.approx(0.9, abs=0.002)

    @pytest.mark.clause("TIME-7")
    def test_nothing_is_rendered_that_is_not_recorded(self, fake: Any) -> None:
        wrapper = fake.wrap(
            fps=5,
            step_trigger=lambda n: n in (3, 20),
            video_length_sec=0.6,
            record_final_episode=False,
        )
        camera = wrapper.unwrapped.camera
        renders = []
        for _ in range(30):
            fake.run(wrapper, 1)
            renders.append(camera.renders)
        wrapper.close()
        assert fake.videos() == {"20.mp4": [20, 22, 24], "3.mp4": [3, 5, 7]}
        rendered = [n for n, (a, b) in enumerate(zip([0, *renders], renders)) if b > a]
        assert rendered == [3, 5, 7, 20, 22, 24]
        assert camera.renders == 6


class Asked:
    """A trigger that remembers what it was asked, and is true for the numbers given."""

    def __init__(self, *true_for: int) -> None:
        self.true_for = true_for
        self.numbers: list[int] = []

    def __call__(self, number: int) -> bool:
        assert type(number) is int
        self.numbers.append(number)
        return number in self.true_for


class TestTriggers:
    @pytest.mark.clause("TRIG-1")
    def test_the_default_schedule_on_a_short_run(self, world: Any) -> None:
        # Episodes of three steps; videos of two, so that each is done before the next can start.
        wrapper = world.wrap(
            terminated_at=range(2, 100, 3), video_length_sec=0.2, record_final_episode=False
        )
        world.run(wrapper, 30)
        assert world.videos() == {"0.mp4": [0, 1], "24.mp4": [24, 25], "3.mp4": [3, 4]}

    @pytest.mark.clause("TRIG-1")
    def test_the_default_schedule_of_ten_thousand_episodes(self, fake: Any) -> None:
        schedule = VECTORS["schedule"]
        wrapper = fake.wrap(
            terminated_at=range(10_001), video_length_sec=0.1, record_final_episode=False
        )
        fake.run(wrapper, schedule["last_inclusive"] + 1)
        recorded = sorted(int(Path(name).stem) for name in fake.files())
        assert recorded == schedule["episodes"]

    @pytest.mark.clause("TRIG-2")
    def test_a_step_trigger_starts_at_its_step(self, world: Any) -> None:
        wrapper = world.wrap(step_trigger=lambda n: n % 8 == 0, record_final_episode=False)
        world.run(wrapper, 16)
        assert world.videos() == {"0.mp4": [0, 1, 2, 3, 4], "8.mp4": [8, 9, 10, 11, 12]}

    @pytest.mark.clause("TRIG-3")
    def test_a_step_trigger_is_asked_once_a_step_while_none_is_active(self, world: Any) -> None:
        trigger = Asked(2, 9)
        wrapper = world.wrap(step_trigger=trigger)
        world.run(wrapper, 16)
        assert trigger.numbers == [0, 1, 2, 7, 8, 9, 14, 15]

    @pytest.mark.clause("TRIG-3")
    def test_a_step_trigger_is_not_asked_during_a_recording_started_by_hand(
        self, fake: Any
    ) -> None:
        trigger = Asked()
        wrapper = fake.wrap(step_trigger=trigger)
        fake.run(wrapper, 2)
        wrapper.start_recording()
        fake.run(wrapper, 6)
        assert trigger.numbers == [0, 1, 7]

    @pytest.mark.clause("TRIG-4")
    def test_an_episode_trigger_records_its_episode(self, world: Any) -> None:
        wrapper = world.wrap(
            terminated_at={6, 13},
            episode_trigger=lambda e: e == 1,
            record_final_episode=False,
        )
        world.run(wrapper, 21)
        assert world.videos() == {"7.mp4": [7, 8, 9, 10, 11]}

    @pytest.mark.clause("TRIG-5")
    def test_an_episode_trigger_is_asked_once_an_episode(self, world: Any) -> None:
        trigger = Asked(0)
        wrapper = world.wrap(terminated_at={9, 19}, episode_trigger=trigger)
        world.run(wrapper, 25)
        assert trigger.numbers == [0, 1, 2]

    @pytest.mark.clause("TRIG-5")
    def test_an_episode_that_a_video_runs_into_is_recorded_after_it(self, world: Any) -> None:
        trigger = Asked(0, 1)
        wrapper = world.wrap(
            terminated_at={2, 15}, episode_trigger=trigger, record_final_episode=False
        )
        world.run(wrapper, 20)
        assert world.videos() == {"0.mp4": [0, 1, 2, 3, 4], "5.mp4": [5, 6, 7, 8, 9]}
        assert trigger.numbers == [0, 1, 2]

    @pytest.mark.clause("TRIG-5")
    def test_an_episode_that_is_over_before_the_video_is_not_asked_for(self, fake: Any) -> None:
        trigger = Asked(0)
        wrapper = fake.wrap(terminated_at={1, 3}, episode_trigger=trigger)
        fake.run(wrapper, 8)
        assert trigger.numbers == [0, 2]

    @pytest.mark.clause("TRIG-5")
    def test_a_long_episode_is_one_video(self, world: Any) -> None:
        wrapper = world.wrap(episode_trigger=lambda e: True, record_final_episode=False)
        world.run(wrapper, 20)
        assert world.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("TRIG-6")
    @pytest.mark.parametrize("kind", ["step_trigger", "episode_trigger"])
    def test_a_trigger_that_is_always_true_cuts_nothing_short(self, world: Any, kind: str) -> None:
        wrapper = world.wrap(
            terminated_at=range(100), record_final_episode=False, **{kind: lambda n: True}
        )
        world.run(wrapper, 10)
        assert world.videos() == {"0.mp4": [0, 1, 2, 3, 4], "5.mp4": [5, 6, 7, 8, 9]}

    @pytest.mark.clause("TRIG-7")
    @pytest.mark.parametrize("kind", ["step_trigger", "episode_trigger"])
    @pytest.mark.parametrize("true", [np.True_, torch.tensor(True), 1, "yes"])
    def test_an_answer_is_taken_by_its_truth(self, fake: Any, kind: str, true: Any) -> None:
        false: Any = type(true)() if isinstance(true, (int, str)) else ~true
        wrapper = fake.wrap(
            terminated_at=range(100),
            record_final_episode=False,
            **{kind: lambda n: true if n == 1 else false},
        )
        fake.run(wrapper, 10)
        assert fake.videos() == {"1.mp4": [1, 2, 3, 4, 5]}


class TestEpisodes:
    @pytest.mark.clause("EPI-1")
    def test_only_the_watched_env_is_counted(self, world: Any) -> None:
        wrapper = world.wrap(
            watched=2,
            env_idx=2,
            terminated_at={6},
            others_done_at=range(100),
            episode_trigger=lambda e: e == 1,
            record_final_episode=False,
        )
        world.run(wrapper, 12)
        assert world.videos() == {"7.mp4": [7, 8, 9, 10, 11]}

    @pytest.mark.clause("EPI-2")
    @pytest.mark.parametrize(
        "ends",
        [
            {"terminated_at": {1, 3}},
            {"truncated_at": {1, 3}},
            {"terminated_at": {1}, "truncated_at": {3}},
            {"terminated_at": {1, 3}, "truncated_at": {1, 3}},
        ],
        ids=["terminated", "truncated", "either", "both"],
    )
    def test_termination_and_truncation_end_an_episode(self, fake: Any, ends: Any) -> None:
        trigger = Asked()
        wrapper = fake.wrap(episode_trigger=trigger, **ends)
        fake.run(wrapper, 6)
        assert trigger.numbers == [0, 1, 2]

    @pytest.mark.clause("EPI-2")
    @pytest.mark.parametrize(
        "convert",
        [
            lambda flags: flags.float(),
            lambda flags: flags.numpy(),
            lambda flags: flags.tolist(),
            lambda flags: flags[:, None],
        ],
        ids=["float tensor", "array", "list", "column"],
    )
    def test_flags_are_taken_by_their_truth(self, fake: Any, convert: Callable) -> None:
        env = fake.env(terminated_at={1, 3})
        inner_step = env.step

        def step(actions: Any) -> Any:
            obs, rewards, terminated, truncated, extras = inner_step(actions)
            return obs, rewards, convert(terminated), convert(truncated), extras

        env.step = step
        trigger = Asked()
        wrapper = fake.wrap(env, episode_trigger=trigger)
        fake.run(wrapper, 6)
        assert trigger.numbers == [0, 1, 2]

    @pytest.mark.clause("EPI-3")
    @pytest.mark.parametrize("none", [{"terminated"}, {"truncated"}, {"terminated", "truncated"}])
    def test_flags_may_be_none(self, fake: Any, none: set[str]) -> None:
        env = fake.env(terminated_at={1}, truncated_at={1})
        inner_step = env.step

        def step(actions: Any) -> Any:
            obs, rewards, terminated, truncated, extras = inner_step(actions)
            terminated = None if "terminated" in none else terminated
            truncated = None if "truncated" in none else truncated
            return obs, rewards, terminated, truncated, extras

        env.step = step
        trigger = Asked()
        wrapper = fake.wrap(env, episode_trigger=trigger)
        fake.run(wrapper, 4)
        assert trigger.numbers == ([0] if len(none) == 2 else [0, 1])

    @pytest.mark.clause("EPI-4")
    def test_a_loop_that_resets_by_hand_counts_episodes(self, world: Any) -> None:
        wrapper = world.wrap(episode_trigger=lambda e: e == 2, record_final_episode=False)
        for _ in range(4):
            wrapper.reset()
            world.run(wrapper, 6)
        assert world.videos() == {"12.mp4": [12, 13, 14, 15, 16]}

    @pytest.mark.clause("EPI-4")
    def test_a_reset_after_a_done_or_before_a_step_counts_nothing(self, fake: Any) -> None:
        trigger = Asked()
        wrapper = fake.wrap(terminated_at={2, 5}, episode_trigger=trigger)
        wrapper.reset()
        wrapper.reset()
        fake.run(wrapper, 3)
        wrapper.reset()
        fake.run(wrapper, 3)
        wrapper.reset()
        fake.run(wrapper, 1)
        assert trigger.numbers == [0, 1, 2]

    @pytest.mark.clause("EPI-4")
    @pytest.mark.parametrize(
        ("env_ids", "included"),
        [
            (None, True),
            ([1], True),
            ([0, 2], False),
            ([], False),
            ((0, 1), True),
            (range(2, 3), False),
            (torch.tensor([1, 2]), True),
            (torch.tensor([0, 2]), False),
            (torch.tensor([], dtype=torch.int64), False),
            (torch.tensor(1), True),
            (torch.tensor(0), False),
            (torch.tensor([False, True, False]), True),
            (torch.tensor([True, False, True]), False),
            (np.array([0, 1]), True),
            (np.array([True, False, False]), False),
            ([False, True, False], True),
            ([True, False, True], False),
        ],
        ids=str,
    )
    def test_a_reset_counts_if_it_includes_the_watched_env(
        self, fake: Any, env_ids: Any, included: bool
    ) -> None:
        trigger = Asked()
        wrapper = fake.wrap(watched=1, env_idx=1, episode_trigger=trigger)
        fake.run(wrapper, 2)
        wrapper.reset(env_ids)
        fake.run(wrapper, 1)
        assert trigger.numbers == ([0, 1] if included else [0])

    @pytest.mark.clause("EPI-5")
    def test_a_recording_goes_on_across_the_end_of_an_episode(self, world: Any) -> None:
        wrapper = world.wrap(
            terminated_at={1, 3},
            step_trigger=first_only,
            record_final_episode=False,
        )
        world.run(wrapper, 10)
        assert world.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("EPI-5")
    def test_a_recording_goes_on_across_a_reset_by_hand(self, world: Any) -> None:
        wrapper = world.wrap(step_trigger=first_only, record_final_episode=False)
        world.run(wrapper, 2)
        wrapper.reset()
        world.run(wrapper, 8)
        assert world.videos() == {"0.mp4": [0, 1, 2, 3, 4]}


def never(number: int) -> bool:
    return False


class TestRecordings:
    @pytest.mark.clause("REC-1")
    def test_a_recording_started_by_hand_begins_with_the_next_step(self, world: Any) -> None:
        wrapper = world.wrap(step_trigger=never, record_final_episode=False)
        world.run(wrapper, 2)
        wrapper.start_recording()
        world.run(wrapper, 10)
        assert world.videos() == {"2.mp4": [2, 3, 4, 5, 6]}

    @pytest.mark.clause("REC-2")
    def test_finish_recording_saves_the_frames_so_far_at_once(self, world: Any) -> None:
        wrapper = world.wrap(step_trigger=never, record_final_episode=False)
        wrapper.start_recording("active")
        world.run(wrapper, 3)
        wrapper.finish_recording()
        assert world.videos() == {"0.mp4": [0, 1, 2]}
        world.run(wrapper, 3)
        wrapper.close()
        assert world.videos() == {"0.mp4": [0, 1, 2]}

    @pytest.mark.clause("REC-2")
    def test_a_video_can_have_a_single_frame(self, world: Any) -> None:
        wrapper = world.wrap(step_trigger=never, record_final_episode=False)
        wrapper.start_recording()
        world.run(wrapper, 1)
        wrapper.finish_recording()
        assert world.videos() == {"0.mp4": [0]}

    @pytest.mark.clause("REC-3")
    def test_starting_anew_saves_the_active_recording_first(self, world: Any) -> None:
        wrapper = world.wrap(step_trigger=never, record_final_episode=False)
        wrapper.start_recording()
        world.run(wrapper, 2)
        wrapper.start_recording()
        world.run(wrapper, 2)
        wrapper.start_recording("background")
        world.run(wrapper, 10)
        assert world.videos() == {"0.mp4": [0, 1], "2.mp4": [2, 3]}

    @pytest.mark.clause("REC-4")
    def test_finishing_a_background_recording_leaves_it_to_close(self, world: Any) -> None:
        wrapper = world.wrap(step_trigger=never, record_final_episode=False)
        wrapper.start_recording("background")
        world.run(wrapper, 3)
        wrapper.finish_recording()
        assert world.videos() == {}
        world.run(wrapper, 3)
        assert world.videos() == {}
        wrapper.close()
        assert world.videos() == {"0.mp4": [0, 1, 2]}

    @pytest.mark.clause("REC-5")
    def test_finishing_nothing_does_nothing(self, fake: Any) -> None:
        wrapper = fake.wrap(step_trigger=never, record_final_episode=False)
        wrapper.finish_recording()
        fake.run(wrapper, 2)
        wrapper.finish_recording()
        wrapper.finish_recording()
        assert fake.files() == []

    @pytest.mark.clause("REC-6")
    @pytest.mark.parametrize("end", ["finish_recording", "close", "start_recording"])
    def test_a_recording_without_a_frame_leaves_no_trace(
        self, fake: Any, end: str, capsys: pytest.CaptureFixture, recwarn: Any
    ) -> None:
        wrapper = fake.wrap(step_trigger=never, record_final_episode=False, logging=True)
        wrapper.start_recording()
        getattr(wrapper, end)()
        wrapper.close()
        assert fake.files() == []
        assert capsys.readouterr().out == ""
        assert [str(w.message) for w in recwarn if issubclass(w.category, RuntimeWarning)] == []

    @pytest.mark.clause("REC-7")
    @pytest.mark.parametrize("type", ["Active", "", None, 1])
    def test_an_unknown_type_is_refused_and_changes_nothing(self, fake: Any, type: Any) -> None:
        wrapper = fake.wrap(step_trigger=first_only, record_final_episode=False)
        fake.run(wrapper, 2)
        with pytest.raises(ValueError, match=f"type.*{re.escape(repr(type))}"):
            wrapper.start_recording(type)
        fake.run(wrapper, 3)
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}


class TestFinalEpisode:
    @pytest.mark.clause("FIN-1", "FIN-2")
    def test_close_saves_the_last_episode(self, world: Any) -> None:
        wrapper = world.wrap(terminated_at={7, 15}, step_trigger=never)
        world.run(wrapper, 19)
        assert world.videos() == {}
        wrapper.close()
        assert world.videos() == {"16.mp4": [16, 17, 18]}

    @pytest.mark.clause("FIN-1")
    def test_the_only_episode_is_the_last(self, world: Any) -> None:
        wrapper = world.wrap(step_trigger=never)
        world.run(wrapper, 3)
        wrapper.close()
        assert world.videos() == {"0.mp4": [0, 1, 2]}

    @pytest.mark.clause("FIN-1")
    def test_the_last_of_many_episodes_counted_by_reset_is_saved(self, fake: Any) -> None:
        wrapper = fake.wrap(step_trigger=never)
        for _ in range(4):
            wrapper.reset()
            fake.run(wrapper, 3)
        wrapper.close()
        assert fake.videos() == {"9.mp4": [9, 10, 11]}

    @pytest.mark.clause("FIN-2")
    def test_a_background_recording_covers_the_first_steps_of_its_episode(self, world: Any) -> None:
        wrapper = world.wrap(terminated_at={9}, step_trigger=never)
        world.run(wrapper, 25)
        wrapper.close()
        assert world.videos() == {"10.mp4": [10, 11, 12, 13, 14]}

    @pytest.mark.clause("FIN-2")
    def test_an_active_recording_at_the_start_of_an_episode_takes_its_place(
        self, world: Any
    ) -> None:
        wrapper = world.wrap(terminated_at={9}, step_trigger=lambda n: n == 8)
        world.run(wrapper, 16)
        wrapper.close()
        assert world.videos() == {"8.mp4": [8, 9, 10, 11, 12]}

    @pytest.mark.clause("FIN-2", "FIN-3")
    def test_a_triggered_recording_ends_the_background_one(self, world: Any) -> None:
        wrapper = world.wrap(terminated_at={9}, step_trigger=lambda n: n == 12)
        world.run(wrapper, 30)
        wrapper.close()
        assert world.videos() == {"12.mp4": [12, 13, 14, 15, 16]}

    @pytest.mark.clause("FIN-3")
    def test_closing_at_the_end_of_an_episode_saves_that_episode(self, world: Any) -> None:
        wrapper = world.wrap(terminated_at={7, 11}, step_trigger=never)
        world.run(wrapper, 12)
        wrapper.close()
        assert world.videos() == {"8.mp4": [8, 9, 10, 11]}

    @pytest.mark.clause("FIN-3")
    def test_a_recording_that_gets_no_frame_drops_nothing(self, world: Any) -> None:
        wrapper = world.wrap(step_trigger=never)
        world.run(wrapper, 3)
        wrapper.start_recording()
        wrapper.close()
        assert world.videos() == {"0.mp4": [0, 1, 2]}

    @pytest.mark.clause("FIN-4")
    def test_without_record_final_episode_close_saves_none(self, world: Any) -> None:
        wrapper = world.wrap(terminated_at={3}, step_trigger=never, record_final_episode=False)
        world.run(wrapper, 8)
        wrapper.close()
        assert world.files() == []
        if world.kind == "fake":
            assert wrapper.unwrapped.camera.renders == 0


class Stage:
    """A real scene in which bodies fall, collide and are thrown about, and an env around it.

    Args:
        scene: Keyword arguments of the scene's VisOptions.
        camera: Keyword arguments of the camera.
        n_envs: 0 builds the scene without a batch dimension.
        setup: Called with the stage once it is built.
        on_step: Called with the stage after each step of the scene.
        add: Called with the stage before it is built, to add what else is to be there.
    """

    dt = 0.02
    can_be_wrapped = True

    def __init__(
        self,
        scene: dict[str, Any] | None = None,
        camera: dict[str, Any] | None = None,
        n_envs: int = 2,
        setup: Callable[[Stage], Any] = lambda stage: None,
        on_step: Callable[[Stage], Any] = lambda stage: None,
        add: Callable[[Stage], Any] = lambda stage: None,
    ) -> None:
        import genesis as gs

        self.num_envs = max(n_envs, 1)
        self.batch = (n_envs,) if n_envs else ()
        self.on_step = on_step
        self.t = 0
        np.random.seed(0)  # Genesis draws collision geometry in random colours
        self.scene = gs.Scene(
            sim_options=gs.options.SimOptions(dt=self.dt),
            vis_options=gs.options.VisOptions(**(scene or {})),
            show_viewer=False,
        )
        self.scene.add_entity(gs.morphs.Plane())
        self.boxes = [
            self.scene.add_entity(
                gs.morphs.Box(size=(0.2, 0.2, 0.2), pos=(0.02 * i, 0.015 * i, 0.15 + 0.22 * i))
            )
            for i in range(3)
        ]
        self.fixed = self.scene.add_entity(
            gs.morphs.Box(
                size=(0.1, 0.3, 0.1), pos=(0.5, 0.0, 0.3), fixed=True, batch_fixed_verts=True
            )
        )
        add(self)
        look = {"res": (160, 120), "pos": (2.0, -2.0, 1.2), "lookat": (0.0, 0.0, 0.3)}
        self.camera = self.scene.add_camera(**{**look, **(camera or {})})
        self.side_camera = self.scene.add_camera(res=(64, 48), pos=(1.0, 2.0, 1.0))
        self.scene.build(n_envs=n_envs, **({"env_spacing": (1.5, 1.5)} if n_envs else {}))
        throw = np.random.default_rng(0).normal(size=(self.num_envs, 6)) * [2, 2, 1, 6, 6, 6]
        self.boxes[0].set_dofs_velocity(self.each(throw))
        setup(self)

    @property
    def unwrapped(self) -> Stage:
        return self

    def each(self, values: Any) -> torch.Tensor:
        """Values for every env: of one, or of each."""
        tensor = torch.as_tensor(np.asarray(values), dtype=torch.float32)
        return tensor.expand(*self.batch, tensor.shape[-1]) if self.batch else tensor.reshape(-1)

    def state(self) -> list[torch.Tensor]:
        solver = self.scene.rigid_solver
        return [solver.get_qpos().clone(), solver.get_dofs_velocity().clone()]

    def build(self) -> None:
        pass

    def step(self, actions: Any = None) -> Any:
        self.t += 1
        angle = 0.15 * self.t
        self.fixed.set_pos(self.each([0.5 * math.cos(angle), 0.5 * math.sin(angle), 0.3]))
        self.fixed.set_quat(self.each([math.cos(angle), 0, 0, math.sin(angle)]))
        if self.t % 7 == 3:
            self.boxes[1].control_dofs_force(self.each([4, -3, 30, 1, 1, 0]))
        self.scene.step()
        self.on_step(self)
        return None, None, None, None, {}

    def close(self) -> None:
        pass


def follow(**options: Any) -> Callable[[Stage], None]:
    return lambda stage: stage.camera.follow_entity(stage.boxes[0], **options)


def attach(stage: Stage) -> None:
    offset = np.eye(4)
    offset[:3, :3] = [[0, 0, -1], [-1, 0, 0], [0, 1, 0]]
    offset[:3, 3] = [-1.5, 0, 0.8]
    stage.camera.attach(stage.boxes[1].base_link, offset)


def orbit(stage: Stage) -> None:
    angle = 0.1 * stage.t
    stage.camera.set_pose(pos=(2 * math.cos(angle), 2 * math.sin(angle), 1), lookat=(0, 0, 0.3))


def reset_now_and_then(stage: Stage) -> None:
    if stage.t % 5 == 0:
        stage.boxes[2].set_qpos(stage.each([0.1, 0.1, 0.5, 1, 0, 0, 0]))


def render_and_reset(stage: Stage) -> None:
    if stage.t % 2:
        (stage.camera if stage.t % 3 else stage.side_camera).render()
    reset_now_and_then(stage)


def draw_sphere(stage: Stage) -> None:
    stage.scene.draw_debug_sphere((0, 0, 0.1 * stage.t), radius=0.1, color=(1, 0, 0, 1))


def draw_sphere_late(stage: Stage) -> None:
    if stage.t == 7:
        stage.scene.draw_debug_sphere((0, 0, 0.5), radius=0.3, color=(1, 0, 0, 1))


def collision_box(stage: Stage) -> None:
    import genesis as gs

    surface = gs.surfaces.Default(vis_mode="collision")
    stage.scene.add_entity(gs.morphs.Box(size=(0.2,) * 3, pos=(0, 0.4, 0.6)), surface=surface)


def kinematic_box(stage: Stage) -> None:
    import genesis as gs

    material = gs.materials.Kinematic()
    morph = gs.morphs.Box(size=(0.1,) * 3, pos=(-0.5, 0, 0.3))
    stage.ghost = stage.scene.add_entity(morph, material=material)


def move_ghost(stage: Stage) -> None:
    stage.ghost.set_pos(stage.each([-0.5, 0.1 * stage.t, 0.3]))


def soft_box(stage: Stage) -> None:
    import genesis as gs

    morph = gs.morphs.Box(size=(0.1,) * 3, pos=(0.5, 0.5, 0.5))
    stage.scene.add_entity(morph, material=gs.materials.MPM.Elastic())


STAGES: dict[str, dict[str, Any]] = {
    "static camera": {},
    "no batch dimension": {"n_envs": 0},
    "set_pose in the env's step": {"on_step": orbit},
    "following camera": {"setup": follow()},
    "following camera, smoothing": {"setup": follow(smoothing=0.8)},
    "following camera, smoothing, fixed orientation": {
        "setup": follow(smoothing=0.8, fix_orientation=True)
    },
    "attached camera": {"setup": attach},
    "camera of an env": {"n_envs": 3, "camera": {"env_idx": 2}},
    "rendered_envs_idx": {
        "n_envs": 4,
        "scene": {"rendered_envs_idx": [1, 3]},
        "camera": {"env_idx": 3},
        "setup": follow(smoothing=0.5),
    },
    "a picture of each env": {
        "n_envs": 3,
        "scene": {"rendered_envs_idx": [0, 2], "split_envs": True},
        "setup": follow(smoothing=0.5),
    },
    "env that resets in step": {"on_step": reset_now_and_then},
    "user who renders too": {"on_step": render_and_reset, "setup": follow(smoothing=0.8)},
    "collision geometry": {"add": collision_box},
    "kinematic entity": {"add": kinematic_box, "on_step": move_ghost},
    "debug drawings": {"on_step": draw_sphere, "camera": {"debug": True}},
    "debug drawings in mid-recording": {"on_step": draw_sphere_late, "camera": {"debug": True}},
}
# Which cannot be rendered later, or not all of it.
DRAWN = ("debug drawings", "debug drawings in mid-recording")


def record_stage(implementation: type, out_dir: Path, type: str, stage: Stage) -> Path:
    """Records 12 steps, a frame every second one, and closes. Returns the video."""
    wrapper = implementation(
        stage,
        out_dir=str(out_dir),
        video_length_sec=0.24,
        fps=25,
        step_trigger=never,
        record_final_episode=False,
        logging=False,
    )
    wrapper.start_recording(type)
    for _ in range(12):
        wrapper.step(None)
    wrapper.close()
    return out_dir / "0.mp4"


class TestKeptForLater:
    @pytest.mark.clause("FIN-5")
    @pytest.mark.parametrize("name", STAGES)
    def test_a_background_recording_shows_what_an_active_one_shows(
        self, genesis: Any, implementation: type, read_video: Any, tmp_path: Path, name: str
    ) -> None:
        seen, kept = Stage(**STAGES[name]), Stage(**STAGES[name])
        wanted = read_video(record_stage(implementation, tmp_path / "a", "active", seen))
        video = read_video(record_stage(implementation, tmp_path / "b", "background", kept))
        assert video.count == wanted.count == 6
        # The encoder gives the same for the same, so that one pixel's difference would show.
        assert all(np.array_equal(a, b) for a, b in zip(video.frames, wanted.frames))
        assert psnr(wanted.frames[0], wanted.frames[-1]) < 40  # the bodies do move
        for _ in range(100):
            seen.step()
            kept.step()
            assert all(torch.equal(a, b) for a, b in zip(seen.state(), kept.state()))
        assert np.array_equal(np.array(seen.camera.render()[0]), np.array(kept.camera.render()[0]))

    @pytest.mark.clause("FIN-5")
    def test_what_cannot_be_rendered_later_is_recorded_all_the_same(
        self, genesis: Any, implementation: type, read_video: Any, tmp_path: Path
    ) -> None:
        stages = [Stage(n_envs=1, add=soft_box) for _ in range(2)]
        paths = [tmp_path / "a", tmp_path / "b"]
        wanted, video = (
            read_video(record_stage(implementation, path, type, stage))
            for path, type, stage in zip(paths, ["active", "background"], stages)
        )
        assert video.count == wanted.count == 6
        assert all(np.array_equal(a, b) for a, b in zip(video.frames, wanted.frames))

    @pytest.mark.clause("FIN-6")
    @pytest.mark.parametrize(
        "name", [name for name in STAGES if name not in (*DRAWN, "user who renders too")]
    )
    def test_nothing_is_rendered_until_it_is_saved(
        self, genesis: Any, implementation: type, tmp_path: Path, name: str
    ) -> None:
        stage = Stage(**STAGES[name])
        renders = count_renders(stage)
        wrapper = implementation(
            stage, out_dir=str(tmp_path / "videos"), video_length_sec=0.24, fps=25,
            step_trigger=never, logging=False,
        )  # fmt: skip
        for _ in range(20):
            wrapper.step(None)
        assert renders == []
        wrapper.close()
        assert len(renders) == 6

    @pytest.mark.clause("FIN-7")
    def test_close_says_how_far_it_is(
        self, genesis: Any, implementation: type, tmp_path: Path, capsys: pytest.CaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        stage = Stage()
        renders = count_renders(stage, seconds=1.5)
        wrapper = implementation(
            stage, out_dir=str(tmp_path / "videos"), video_length_sec=0.24, fps=25,
            step_trigger=never, logging=True,
        )  # fmt: skip
        for _ in range(12):
            wrapper.step(None)
        wrapper.close()
        assert len(renders) == 6
        progress, saved = capsys.readouterr().out.splitlines()
        assert re.search(r"0\.mp4.*\b[1-5]\b.*\b6\b", progress)
        assert "Saved" in saved

    @pytest.mark.clause("CLOSE-2", "FILE-4")
    def test_ctrl_c_while_the_final_episode_renders_closes_the_env(
        self, genesis: Any, implementation: type, tmp_path: Path
    ) -> None:
        stage = Stage()
        closed = []
        stage.close = lambda: closed.append(True)
        renders = count_renders(stage, interrupt_at=3)
        wrapper = implementation(
            stage, out_dir=str(tmp_path / "videos"), video_length_sec=0.24, fps=25,
            step_trigger=never, logging=False,
        )  # fmt: skip
        for _ in range(12):
            wrapper.step(None)
        state = stage.state()
        with pytest.raises(KeyboardInterrupt):
            wrapper.close()
        assert len(renders) == 3
        assert closed == [True]
        assert list((tmp_path / "videos").iterdir()) == []
        assert all(torch.equal(a, b) for a, b in zip(state, stage.state()))


def count_renders(stage: Stage, seconds: float = 0, interrupt_at: int = -1) -> list[float]:
    """A list that gets an entry for each picture that the stage's camera renders.

    Each takes `seconds` more than else; at number `interrupt_at`, Ctrl-C comes.
    """
    renders: list[float] = []
    render = stage.camera.render

    def count(*args: Any, **options: Any) -> Any:
        renders.append(time.monotonic())
        time.sleep(seconds)
        if len(renders) == interrupt_at:
            raise KeyboardInterrupt
        return render(*args, **options)

    stage.camera.render = count
    return renders


def mp4_codec(video: Any) -> tuple[str, str]:
    return video.codec, video.pix_fmt


class TestFiles:
    @pytest.mark.clause("FILE-1", "FILE-2")
    @pytest.mark.parametrize("row", VECTORS["names"], ids=lambda row: row["name"])
    def test_names(self, fake: Any, row: Any) -> None:
        start = row["step"]
        wrapper = fake.wrap(
            step_trigger=lambda n: n == start,
            record_final_episode=False,
            filename=row["filename"],
        )
        fake.run(wrapper, start + 5)
        assert fake.files() == [row["name"]]
        assert fake.video(row["name"]).steps == list(range(start, start + 5))

    @pytest.mark.clause("FILE-2")
    def test_with_a_filename_each_video_overwrites_the_last(self, world: Any) -> None:
        wrapper = world.wrap(
            step_trigger=lambda n: n in (0, 6), filename="policy.mp4", record_final_episode=False
        )
        world.run(wrapper, 5)
        assert world.videos() == {"policy.mp4": [0, 1, 2, 3, 4]}
        world.run(wrapper, 6)
        assert world.videos() == {"policy.mp4": [6, 7, 8, 9, 10]}

    @pytest.mark.clause("FILE-2")
    def test_the_final_episode_overwrites_too(self, world: Any) -> None:
        wrapper = world.wrap(terminated_at={7}, step_trigger=first_only, filename="policy.mp4")
        world.run(wrapper, 10)
        assert world.videos() == {"policy.mp4": [0, 1, 2, 3, 4]}
        wrapper.close()
        assert world.videos() == {"policy.mp4": [8, 9]}

    @pytest.mark.clause("FILE-3")
    def test_a_name_appears_only_with_its_whole_video(self, fake: Any) -> None:
        wrapper = fake.wrap(
            step_trigger=lambda n: n in (0, 6), filename="policy.mp4", record_final_episode=False
        )
        seen = []
        for _ in range(11):
            fake.run(wrapper, 1)
            seen.append(fake.videos().get("policy.mp4"))
        first, second = [0, 1, 2, 3, 4], [6, 7, 8, 9, 10]
        assert seen == [None] * 4 + [first] * 6 + [second]

    @pytest.mark.clause("FILE-3")
    def test_a_file_of_an_earlier_run_stays_whole_until_it_is_replaced(self, fake: Any) -> None:
        fake.out_dir.mkdir()
        (fake.out_dir / "0.mp4").write_bytes(b"of an earlier run")
        wrapper = fake.wrap(step_trigger=first_only, record_final_episode=False)
        fake.run(wrapper, 4)
        assert (fake.out_dir / "0.mp4").read_bytes() == b"of an earlier run"
        fake.run(wrapper, 1)
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("FILE-4")
    def test_only_videos_are_left_in_the_folder(self, world: Any) -> None:
        wrapper = world.wrap(terminated_at=range(0, 100, 7), step_trigger=lambda n: n == 16)
        world.run(wrapper, 30)
        wrapper.close()
        assert world.files() == ["16.mp4", "29.mp4"]

    @pytest.mark.clause("FILE-5")
    def test_a_video_is_h264_with_yuv420p(self, world: Any) -> None:
        wrapper = world.wrap()
        world.run(wrapper, 5)
        assert mp4_codec(world.video("0.mp4")) == ("h264", "yuv420p")

    @pytest.mark.clause("FILE-6")
    def test_the_index_is_at_the_front(self, world: Any) -> None:
        wrapper = world.wrap()
        world.run(wrapper, 5)
        assert world.video("0.mp4").index_first

    @pytest.mark.clause("FILE-7")
    @pytest.mark.parametrize("size", [(257, 65), (97, 64), (96, 63), (320, 240)])
    def test_an_odd_size_is_padded_and_not_rescaled(self, fake: Any, size: tuple[int, int]) -> None:
        width, height = size
        wrapper = fake.wrap(size=size)
        wanted = []
        inner_render = wrapper.unwrapped.camera.render
        wrapper.unwrapped.camera.make_frame = lambda frame: wanted.append(frame.copy()) or frame
        assert inner_render is not None
        fake.run(wrapper, 5)
        video = fake.video("0.mp4")
        assert video.steps == [0, 1, 2, 3, 4]
        assert (video.width, video.height) == (width + width % 2, height + height % 2)
        for frame, picture in zip(video.frames, wanted):
            assert psnr(frame[:height, :width], picture) > 30

    @pytest.mark.clause("FILE-8")
    @pytest.mark.parametrize(
        "convert",
        [
            torch.from_numpy,
            np.asfortranarray,
            lambda frame: np.dstack([frame, np.full(frame.shape[:2], 7, np.uint8)]),
            lambda frame: torch.from_numpy(np.dstack([frame, frame[..., :1]])),
            lambda frame: frame[::-1].copy()[::-1],
            lambda frame: np.frombuffer(frame.tobytes(), np.uint8).reshape(frame.shape),
        ],
        ids=["tensor", "column-major", "RGBA", "RGBA tensor", "flipped view", "read-only"],
    )
    def test_kinds_of_frames(self, fake: Any, convert: Callable) -> None:
        wrapper = fake.wrap()
        wrapper.unwrapped.camera.make_frame = convert
        fake.run(wrapper, 5)
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("FILE-8")
    def test_a_frame_buffer_that_the_camera_reuses_is_copied(self, fake: Any) -> None:
        wrapper = fake.wrap()
        buffer = np.zeros((64, 96, 3), np.uint8)

        def reuse(frame: np.ndarray) -> np.ndarray:
            buffer[:] = frame
            return buffer

        wrapper.unwrapped.camera.make_frame = reuse
        fake.run(wrapper, 5)
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("FILE-9")
    @pytest.mark.parametrize("watched", [0, 2])
    def test_of_one_picture_for_each_env_the_watched_one_is_taken(
        self, world: Any, watched: int
    ) -> None:
        wrapper = world.wrap(separate=True, watched=watched, env_idx=watched)
        world.run(wrapper, 5)
        assert world.videos() == {"0.mp4": [1000 * watched + n for n in range(5)]}

    @pytest.mark.clause("FILE-10")
    def test_a_relative_out_dir_is_meant_from_where_it_was_given(
        self, fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        wrapper = fake.wrap(out_dir="./videos", terminated_at={6})
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        fake.run(wrapper, 5)
        wrapper.close()
        assert list(elsewhere.iterdir()) == []
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("FILE-11")
    def test_the_frames_are_what_the_camera_gives(self, world: Any) -> None:
        wrapper = world.wrap(step_trigger=first_only, record_final_episode=False)
        wanted = []
        for _ in range(5):
            world.run(wrapper, 1)
            wanted.append(np.array(wrapper.unwrapped.camera.render()[0]))
        frames = world.video("0.mp4").frames
        assert len(frames) == 5
        for frame, picture in zip(frames, wanted):
            assert psnr(frame, picture) > 30

    @pytest.mark.clause("FILE-11")
    def test_colours_survive(self, fake: Any) -> None:
        wrapper = fake.wrap(step_trigger=first_only, record_final_episode=False)
        colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (200, 120, 40)]
        pictures = [np.full((64, 96, 3), colour, np.uint8) for colour in colours]
        remaining = iter(pictures)
        wrapper.unwrapped.camera.make_frame = lambda frame: next(remaining)
        fake.run(wrapper, 5)
        for frame, picture in zip(fake.video("0.mp4").frames, pictures):
            assert np.abs(frame.astype(int) - picture).mean() < 4

    @pytest.mark.clause("FILE-12")
    def test_memory_does_not_grow_with_the_length(self, fake: Any) -> None:
        import tracemalloc

        wrapper = fake.wrap(
            size=(640, 480), video_length_sec=12.0, step_trigger=first_only,
            record_final_episode=False,
        )  # fmt: skip
        frame = 640 * 480 * 3
        fake.run(wrapper, 20)
        tracemalloc.start()
        fake.run(wrapper, 100)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert fake.video("0.mp4").count == 120
        assert peak < 12 * frame


def psnr(frame: np.ndarray, picture: np.ndarray) -> float:
    """Decibels; 30 and more look alike."""
    assert frame.shape == picture.shape
    error = np.mean((frame.astype(float) - picture) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


ENDINGS = {
    "end of script": "",
    "sys.exit": "sys.exit(3)",
    "uncaught exception": "raise RuntimeError('training went wrong')",
    "Ctrl-C": "os.kill(os.getpid(), signal.SIGINT); time.sleep(10)",
}


class TestClose:
    @pytest.mark.clause("CLOSE-1")
    def test_close_saves_the_active_recording(self, world: Any) -> None:
        wrapper = world.wrap(step_trigger=lambda n: n == 2, record_final_episode=False)
        world.run(wrapper, 5)
        wrapper.close()
        assert world.videos() == {"2.mp4": [2, 3, 4]}

    @pytest.mark.clause("CLOSE-2")
    def test_close_closes_the_env_after_saving(self, fake: Any) -> None:
        env = fake.env()
        seen = []
        env.close = lambda: seen.append(fake.videos())
        wrapper = fake.wrap(env)
        fake.run(wrapper, 3)
        wrapper.close()
        assert seen == [{"0.mp4": [0, 1, 2]}]

    @pytest.mark.clause("CLOSE-2")
    def test_close_closes_the_env_if_saving_fails(self, fake: Any) -> None:
        wrapper = fake.wrap()
        fake.run(wrapper, 3)
        shutil.rmtree(fake.out_dir)
        fake.out_dir.write_text("a file where the folder was")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the warning itself is an exception here
            try:
                wrapper.close()
            except RuntimeWarning:
                pass
        assert wrapper.unwrapped.calls[-1] == "close"
        wrapper.close()  # the failed recording is not taken up again

    @pytest.mark.clause("CLOSE-2")
    def test_what_the_env_raises_on_close_is_passed_on_after_saving(self, fake: Any) -> None:
        env = fake.env()

        def close() -> None:
            raise RuntimeError("no display")

        env.close = close
        wrapper = fake.wrap(env)
        fake.run(wrapper, 3)
        with pytest.raises(RuntimeError, match="no display"):
            wrapper.close()
        assert fake.videos() == {"0.mp4": [0, 1, 2]}

    @pytest.mark.clause("CLOSE-3")
    def test_a_second_close_saves_nothing_new(self, world: Any) -> None:
        wrapper = world.wrap(filename="policy.mp4")
        world.run(wrapper, 3)
        wrapper.close()
        (world.out_dir / "policy.mp4").unlink()
        wrapper.close()
        assert world.files() == []

    @pytest.mark.clause("CLOSE-4")
    @pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
    def test_an_end_without_close_saves_the_final_episode(self, script: Any, ending: str) -> None:
        result = script(f"""
            wrapper = world.wrap(terminated_at={{3}}, step_trigger=never)
            world.run(wrapper, 7)
            {ending}
        """)
        assert result.world.videos() == {"4.mp4": [4, 5, 6]}, result.stderr
        assert result.world.files() == ["4.mp4"]

    @pytest.mark.clause("CLOSE-4")
    @pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
    def test_an_end_without_close_saves_the_active_recording(
        self, script: Any, ending: str
    ) -> None:
        result = script(f"""
            wrapper = world.wrap(record_final_episode=False, step_trigger=lambda n: n == 2)
            world.run(wrapper, 5)
            {ending}
        """)
        assert result.world.videos() == {"2.mp4": [2, 3, 4]}, result.stderr
        assert result.world.files() == ["2.mp4"]

    @pytest.mark.clause("CLOSE-5")
    def test_a_forked_child_leaves_the_recording_alone(self, script: Any) -> None:
        result = script("""
            wrapper = world.wrap()
            world.run(wrapper, 2)
            child = os.fork()
            if child == 0:
                sys.exit()  # runs the exit handlers, as a child of multiprocessing does not
            assert os.waitpid(child, 0)[1] == 0
            assert world.videos() == {}
            world.run(wrapper, 3)
            assert world.videos() == {"0.mp4": [0, 1, 2, 3, 4]}
        """)
        assert result.returncode == 0, result.stderr
        assert result.world.files() == ["0.mp4"]

    @pytest.mark.clause("CLOSE-5")
    def test_saving_does_not_wait_for_a_forked_child(self, script: Any) -> None:
        result = script("""
            wrapper = world.wrap()
            world.run(wrapper, 2)
            child = os.fork()
            if child == 0:
                time.sleep(30)  # a data loader's worker, which lives on
                os._exit(0)
            world.run(wrapper, 3)
            assert world.videos() == {"0.mp4": [0, 1, 2, 3, 4]}
            assert os.waitpid(child, os.WNOHANG) == (0, 0)  # it lives still
            os.kill(child, signal.SIGKILL)
        """)
        assert result.returncode == 0, result.stderr

    @pytest.mark.clause("CLOSE-5")
    def test_a_forked_child_can_record_on_its_own(self, script: Any) -> None:
        result = script("""
            wrapper = world.wrap(step_trigger=lambda n: n in (0, 7))
            world.run(wrapper, 2)
            child = os.fork()
            world.run(wrapper, 10 if child == 0 else 3)
            if child == 0:
                sys.exit()
            assert os.waitpid(child, 0)[1] == 0
        """)
        assert result.returncode == 0, result.stderr
        assert result.world.videos() == {"0.mp4": [0, 1, 2, 3, 4], "7.mp4": [7, 8, 9, 10, 11]}

    @pytest.mark.clause("CLOSE-6")
    def test_ctrl_c_in_the_terminal_costs_no_frame(self, script: Any) -> None:
        # A terminal sends it to the whole process group, of which ffmpeg must be no part.
        result = script(
            """
            wrapper = world.wrap(size=(640, 480), video_length_sec=4, step_trigger=first_only)
            world.run(wrapper, 20)
            try:
                os.killpg(0, signal.SIGINT)
                time.sleep(10)
            except KeyboardInterrupt:
                pass
            time.sleep(0.3)
            world.run(wrapper, 10)
            wrapper.close()
            """,
            start_new_session=True,
        )
        assert result.returncode == 0, result.stderr
        assert result.world.videos() == {"0.mp4": list(range(30))}


def encoders() -> set[int]:
    """The ffmpeg processes that this process has started and not yet waited for."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = stat.read_text().rsplit(")", 1)
        except OSError:
            continue
        if "ffmpeg" in name and int(fields.split()[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="finds ffmpeg in /proc"
)


class TestFaults:
    @needs_proc
    @pytest.mark.clause("FAIL-1", "FAIL-2")
    def test_a_dead_encoder_gives_one_warning_and_the_next_recording_works(self, fake: Any) -> None:
        wrapper = fake.wrap(step_trigger=lambda n: n in (0, 8), record_final_episode=False)
        fake.run(wrapper, 2)
        for pid in encoders():
            os.kill(pid, signal.SIGKILL)
        with pytest.warns(RuntimeWarning, match=r"0\.mp4") as caught:
            assert len(fake.run(wrapper, 20)) == 20
        assert len(caught) == 1
        assert fake.files() == ["8.mp4"]
        assert fake.videos() == {"8.mp4": [8, 9, 10, 11, 12]}

    @needs_proc
    @pytest.mark.clause("FAIL-1")
    def test_an_encoder_that_dies_after_the_last_frame_leaves_no_broken_video(
        self, fake: Any
    ) -> None:
        wrapper = fake.wrap(step_trigger=first_only, record_final_episode=False)
        fake.run(wrapper, 2)
        for pid in encoders():
            os.kill(pid, signal.SIGKILL)
        with pytest.warns(RuntimeWarning, match=r"0\.mp4") as caught:
            wrapper.finish_recording()
        assert len(caught) == 1
        assert fake.files() == []

    @pytest.mark.clause("FAIL-1", "FAIL-2")
    def test_a_folder_that_went_away_gives_one_warning(self, fake: Any) -> None:
        wrapper = fake.wrap(step_trigger=lambda n: n in (0, 8), record_final_episode=False)
        fake.run(wrapper, 2)
        shutil.rmtree(fake.out_dir)
        with pytest.warns(RuntimeWarning, match=r"0\.mp4") as caught:
            fake.run(wrapper, 4)
        assert len(caught) == 1
        fake.run(wrapper, 16)
        assert fake.videos() == {"8.mp4": [8, 9, 10, 11, 12]}

    @pytest.mark.clause("FAIL-1")
    def test_a_folder_that_cannot_be_had_back_gives_a_warning_for_each_video(
        self, fake: Any
    ) -> None:
        wrapper = fake.wrap(step_trigger=lambda n: n in (2, 8), record_final_episode=False)
        shutil.rmtree(fake.out_dir)
        fake.out_dir.write_text("a file where the folder was")
        with pytest.warns(RuntimeWarning) as caught:
            assert len(fake.run(wrapper, 20)) == 20
        assert [("2.mp4" in str(w.message), "8.mp4" in str(w.message)) for w in caught] == [
            (True, False),
            (False, True),
        ]

    @pytest.mark.clause("FAIL-1")
    @pytest.mark.parametrize("call", ["finish_recording", "close", "start_recording"])
    def test_a_failure_at_the_end_raises_nothing(self, fake: Any, call: str) -> None:
        wrapper = fake.wrap(step_trigger=first_only, record_final_episode=False)
        fake.run(wrapper, 2)
        shutil.rmtree(fake.out_dir)
        with pytest.warns(RuntimeWarning, match=r"0\.mp4") as caught:
            getattr(wrapper, call)()
        assert len(caught) == 1

    @pytest.mark.clause("FAIL-3")
    def test_what_the_camera_raises_is_passed_on_and_the_frames_kept(self, fake: Any) -> None:
        wrapper = fake.wrap(step_trigger=first_only, record_final_episode=False)
        wrapper.unwrapped.camera.fails_at = {2}
        fake.run(wrapper, 2)
        with pytest.raises(RuntimeError, match="^camera$"):
            fake.run(wrapper, 1)
        fake.run(wrapper, 1)
        wrapper.close()
        assert fake.videos() == {"0.mp4": [0, 1, 3]}

    @pytest.mark.clause("FAIL-3")
    def test_what_the_env_raises_is_passed_on_and_the_step_not_counted(self, fake: Any) -> None:
        wrapper = fake.wrap(step_trigger=first_only, record_final_episode=False)
        fake.run(wrapper, 2)
        inner_step = wrapper.unwrapped.step

        def step(actions: Any) -> Any:
            raise KeyError("unstable")

        wrapper.unwrapped.step = step
        with pytest.raises(KeyError, match="unstable"):
            fake.run(wrapper, 1)
        wrapper.unwrapped.step = inner_step
        fake.run(wrapper, 3)
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("FAIL-3")
    @pytest.mark.parametrize("kind", ["step_trigger", "episode_trigger"])
    def test_what_a_trigger_raises_is_passed_on_and_the_frames_kept(
        self, fake: Any, kind: str
    ) -> None:
        def trigger(number: int) -> bool:
            if number == 3:
                raise ZeroDivisionError("trigger")
            return False

        wrapper = fake.wrap(terminated_at={0, 1, 2}, **{kind: trigger})
        with pytest.raises(ZeroDivisionError, match="trigger"):
            fake.run(wrapper, 4)
        wrapper.close()
        assert fake.videos() == {"2.mp4": [2]}

    @pytest.mark.clause("FAIL-4")
    @pytest.mark.parametrize(
        ("convert", "words"),
        [
            (lambda frame: None, "None"),
            (lambda frame: frame.astype(np.float32) / 255, r"float32.*\(64, 96, 3\)"),
            (lambda frame: torch.from_numpy(frame).float(), r"float32.*\(64, 96, 3\)"),
            (lambda frame: frame.astype(np.int64), r"int64.*\(64, 96, 3\)"),
            (lambda frame: frame[..., 0], r"uint8.*\(64, 96\)"),
            (lambda frame: frame[..., :2], r"uint8.*\(64, 96, 2\)"),
            (lambda frame: frame[None, None], r"uint8.*\(1, 1, 64, 96, 3\)"),
            (lambda frame: "picture", "str"),
        ],
        ids=["None", "float", "float tensor", "int64", "grey", "two channels", "5-d", "str"],
    )
    def test_a_frame_that_cannot_be_recorded_gives_one_warning_that_names_it(
        self, fake: Any, convert: Callable, words: str
    ) -> None:
        wrapper = fake.wrap(step_trigger=lambda n: n in (0, 8), record_final_episode=False)
        wrapper.unwrapped.camera.make_frame = convert
        with pytest.warns(RuntimeWarning, match=rf"(?s)0\.mp4.*{words}") as caught:
            fake.run(wrapper, 5)
        assert len(caught) == 1
        wrapper.unwrapped.camera.make_frame = lambda frame: frame
        fake.run(wrapper, 10)
        assert fake.videos() == {"8.mp4": [8, 9, 10, 11, 12]}

    @pytest.mark.clause("FAIL-4")
    def test_a_stack_without_the_watched_env_gives_one_warning(self, fake: Any) -> None:
        wrapper = fake.wrap(separate=True, watched=2, env_idx=2, record_final_episode=False)
        wrapper.unwrapped.camera.make_frame = lambda frames: frames[:2]
        with pytest.warns(RuntimeWarning, match=r"0\.mp4.*env_idx=2") as caught:
            fake.run(wrapper, 5)
        assert len(caught) == 1
        assert fake.files() == []

    @pytest.mark.clause("FAIL-4")
    def test_frames_of_another_size_give_one_warning_that_names_it(self, fake: Any) -> None:
        wrapper = fake.wrap(step_trigger=lambda n: n in (0, 8), record_final_episode=False)
        fake.run(wrapper, 2)
        wrapper.unwrapped.camera.make_frame = lambda frame: frame[:32]
        with pytest.warns(RuntimeWarning, match=r"0\.mp4.*\(32, 96, 3\)") as caught:
            fake.run(wrapper, 3)
        assert len(caught) == 1
        wrapper.unwrapped.camera.make_frame = lambda frame: frame
        fake.run(wrapper, 10)
        assert fake.videos() == {"8.mp4": [8, 9, 10, 11, 12]}


class TestLogging:
    @pytest.mark.clause("LOG-1")
    def test_each_saved_video_prints_a_line_with_its_path(
        self, fake: Any, capsys: pytest.CaptureFixture
    ) -> None:
        wrapper = fake.wrap(terminated_at={7}, step_trigger=first_only, logging=True)
        fake.run(wrapper, 10)
        wrapper.close()
        first, second = capsys.readouterr().out.splitlines()
        assert str(fake.out_dir / "0.mp4") in first
        assert str(fake.out_dir / "8.mp4") in second

    @pytest.mark.clause("LOG-2")
    def test_the_line_gives_frames_seconds_and_rate(
        self, fake: Any, capsys: pytest.CaptureFixture
    ) -> None:
        wrapper = fake.wrap(fps=3.3, video_length_sec=1.2, step_trigger=first_only, logging=True)
        fake.run(wrapper, 12)
        line = capsys.readouterr().out.splitlines()[0]
        assert re.search(r"\b4 frames.*\b1\.2 s.*\b3\.333 fps", line)
        assert "earlier" not in line

    @pytest.mark.clause("LOG-2")
    def test_the_line_says_when_a_file_of_an_earlier_run_is_replaced(
        self, fake: Any, capsys: pytest.CaptureFixture
    ) -> None:
        fake.out_dir.mkdir()
        old = fake.out_dir / "policy.mp4"
        old.write_bytes(b"of an earlier run")
        os.utime(old, (time.time() - 60,) * 2)
        wrapper = fake.wrap(
            filename="policy.mp4",
            step_trigger=lambda n: n in (0, 6),
            record_final_episode=False,
            logging=True,
        )
        fake.run(wrapper, 12)
        first, second = capsys.readouterr().out.splitlines()
        assert "earlier run" in first
        assert "earlier run" not in second  # it replaced this run's own

    @pytest.mark.clause("LOG-3")
    def test_without_logging_nothing_is_printed(
        self, fake: Any, capfd: pytest.CaptureFixture
    ) -> None:
        wrapper = fake.wrap(terminated_at={7}, step_trigger=first_only, logging=False)
        fake.run(wrapper, 10)
        wrapper.close()
        assert len(fake.files()) == 2
        assert capfd.readouterr() == ("", "")


class TestDelegation:
    @pytest.mark.clause("DEL-1")
    @pytest.mark.parametrize(
        "name",
        [p.name for p in PROPERTIES if p.name not in ("video_length_steps", "unwrapped")],
    )
    def test_a_property_is_read_from_the_env_at_each_access(self, fake: Any, name: str) -> None:
        env = fake.env()
        wrapper = fake.wrap(env)
        assert getattr(wrapper, name) is getattr(env, name)
        for value in (object(), object()):
            changed = type("Changed", (), {name: value})()
            wrapper.env = changed
            assert getattr(wrapper, name) is value
        wrapper.env = env

    @pytest.mark.clause("DEL-2")
    def test_step_passes_actions_and_results_through(self, world: Any) -> None:
        env = world.env()
        inner_step = env.step
        seen = []

        def step(actions: Any) -> Any:
            result = inner_step(actions)
            seen.append((actions, result))
            return result

        env.step = step
        wrapper = world.wrap(env)
        actions = torch.zeros(env.num_envs, env.num_actions)
        result = wrapper.step(actions)
        assert len(seen) == 1
        assert seen[0][0] is actions
        assert len(result) == 5
        assert all(mine is theirs for mine, theirs in zip(result, seen[0][1]))

    @pytest.mark.clause("DEL-3")
    def test_reset_and_get_observations_pass_through(self, fake: Any) -> None:
        env = fake.env()
        answers = {None: (object(), {}), (0, 2): (object(), {})}
        asked = []

        def reset(env_ids: Any = None) -> Any:
            asked.append(env_ids)
            return answers[env_ids]

        observations = object()
        env.reset = reset
        env.get_observations = lambda: observations
        wrapper = fake.wrap(env)
        assert wrapper.reset() is answers[None]
        assert wrapper.reset((0, 2)) is answers[0, 2]
        assert wrapper.reset(env_ids=(0, 2)) is answers[0, 2]
        assert asked == [None, (0, 2), (0, 2)]
        assert wrapper.get_observations() is observations

    @pytest.mark.clause("DEL-4")
    def test_wrappers_nest(self, world: Any) -> None:
        env = world.env()
        inner = world.wrap(env, build=False, step_trigger=never, record_final_episode=False)
        outer = world.wrap(inner, step_trigger=first_only, record_final_episode=False)
        assert outer.env is inner
        assert outer.unwrapped is env
        world.run(outer, 5)
        assert world.videos() == {"0.mp4": [0, 1, 2, 3, 4]}


class TestSelfTest:
    @pytest.mark.clause("MAIN-1")
    def test_it_records_two_videos(
        self, module: Any, python: Any, tmp_path: Path, read_video: Any
    ) -> None:
        out_dir = tmp_path / "two videos"
        arguments = ["--out-dir", str(out_dir), "--steps", "12", "--res", "96x64"]
        result = python(module.__file__, *arguments)
        assert result.returncode == 0, result.stderr
        videos = {path.name: read_video(path) for path in sorted(out_dir.iterdir())}
        assert len(videos) == 2
        for name, video in videos.items():
            assert str(out_dir / name) in result.stdout
            assert f"{video.count} frames, {video.duration:.4g} s" in result.stdout
            assert (video.width, video.height) == (96, 64)
            assert psnr(video.frames[0], video.frames[-1]) < 50  # something moves

    @pytest.mark.clause("MAIN-2")
    @pytest.mark.parametrize("missing", ["genesis", "imageio_ffmpeg"])
    def test_it_says_in_a_line_what_is_missing(
        self, module: Any, python: Any, tmp_path: Path, missing: str
    ) -> None:
        (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules[{missing!r}] = None")
        result = python(module.__file__, "--out-dir", str(tmp_path), PYTHONPATH=str(tmp_path))
        assert result.returncode not in (0, None)
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert "pip install" in line

    @pytest.mark.clause("MAIN-2")
    def test_it_says_what_to_install_for_opengl(
        self, module: Any, python: Any, tmp_path: Path
    ) -> None:
        (tmp_path / "genesis.py").write_text(
            "raise ImportError('libGL.so.1: cannot open shared object file')"
        )
        result = python(module.__file__, "--out-dir", str(tmp_path), PYTHONPATH=str(tmp_path))
        assert result.returncode not in (0, None)
        (line,) = result.stderr.splitlines()
        assert "libGL.so.1" in line
        assert "libgl1 libegl1 libxrender1" in line
