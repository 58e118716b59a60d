"""The conformance tests, in the order of the clauses of spec/README.md that they name.

They judge from outside: they decode the videos and read which steps they show. `world.wrap` makes an
env with dt = 0.1 s and wraps it for videos of 0.5 s at 10 fps, so that a recording of five steps is
five frames, unless the test says otherwise. See spec/suite. What takes a process of its own, or more
of a scene than `world` has, is in spec/tests.
"""

from __future__ import annotations

import ast
import collections
import contextlib
import copy
import errno
import gc
import importlib.util
import inspect
import io
import itertools
import json
import math
import os
import pickle
import re
import shutil
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_origin

import numpy as np
import pytest
import torch

from spec.suite.doubles import Asked, Flags, Interrupts, Large, OnDevice, first_only, never, only_at
from spec.suite.genesis_scenes import count_renders, wrap_stage
from spec.suite.harness import saved_or_warned, warned
from spec.suite.processes import encoders, needs_proc, refuse_threads, wait_until
from spec.suite.video_reader import moving_clip, psnr, read_step, sharpness

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


def spellings(annotation: Any, function: Any) -> set[str]:
    """The ways to write a function's annotation, of which the documented one may be any."""
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


def check_parameters(actual: list[inspect.Parameter], wanted: dict[str, Any]) -> None:
    names = [parameter.name for parameter in actual]
    lacks = ", ".join(name for name in wanted if name not in names) or "none"
    assert names == [*wanted], (
        f"of the parameters it lacks {lacks}, and it takes {', '.join(names)}"
    )
    for parameter in actual:
        default = wanted[parameter.name][0]
        words = f"{parameter.name} is {parameter.default!r} by default, and not {default!r}"
        assert parameter.default == default, words


def without_deferred_renderer(source: str) -> str:
    """Remove `_DeferredRenderer`, and make the one method that calls it return False."""
    lines, tree = source.splitlines(keepends=True), ast.parse(source)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    renderer = classes["_DeferredRenderer"]
    methods = [m for m in classes["VideoWrapper"].body if isinstance(m, ast.FunctionDef)]
    (defer,) = [m for m in methods if m.name == "_defer"]
    assert defer.end_lineno < renderer.lineno
    del lines[renderer.lineno - 1 : renderer.end_lineno]
    lines[defer.body[0].lineno - 1 : defer.end_lineno] = ["        return False\n"]
    return "".join(lines)


class TestApi:
    @pytest.mark.clause("API-1a")
    def test_the_constructor_takes_the_documented_parameters(self, implementation: type) -> None:
        (stub,) = [m for m in METHODS if m.name == "__init__"]
        actual = list(inspect.signature(implementation).parameters.values())
        check_parameters(actual, parameters(stub))

    @pytest.mark.clause("API-1b")
    @pytest.mark.parametrize("method", METHODS, ids=by_name)
    def test_a_method_takes_the_documented_parameters(
        self, implementation: type, method: ast.FunctionDef
    ) -> None:
        actual = list(inspect.signature(getattr(implementation, method.name)).parameters.values())
        check_parameters(actual[1:], parameters(method))

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
        for name, (_, annotation) in parameters(method).items():
            if annotation is not None:
                assert annotation in spellings(signature.parameters[name].annotation, function)
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

    @pytest.mark.parametrize(
        "cut",
        [
            pytest.param("nothing", marks=pytest.mark.clause("API-7a")),
            pytest.param("deferred renderer", marks=pytest.mark.clause("API-7b")),
        ],
    )
    def test_file_works_alone_under_another_name(
        self, module: Any, fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
    ) -> None:
        project = f"their_project_{cut.replace(' ', '_')}"
        package = tmp_path / project / "tools"
        package.mkdir(parents=True)
        source = Path(module.__file__).read_text(encoding="utf-8")
        if cut == "deferred renderer":
            source = without_deferred_renderer(source)
        (package / "recording.py").write_text(source, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        copied = importlib.import_module(f"{project}.tools.recording")
        wrapper = fake.wrap(implementation=copied.VideoWrapper, video_length_sec=0.5)
        fake.run(wrapper, 8)
        wrapper.start_recording("background")
        fake.run(wrapper, 3)
        wrapper.close()
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4], "8.mp4": [8, 9, 10]}

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
            """Stands for genesis_forge.wrappers.wrapper.Wrapper."""

            def step(self, actions: Any) -> Any:
                raise AssertionError("the wrapper's own step goes first")

        for name in ("genesis_forge", "genesis_forge.wrappers", "genesis_forge.wrappers.wrapper"):
            monkeypatch.setitem(sys.modules, name, type(sys)(name))
        sys.modules["genesis_forge.wrappers.wrapper"].Wrapper = ForgeWrapper
        wrapper = fake.wrap()
        assert isinstance(wrapper, ForgeWrapper)
        assert isinstance(wrapper, implementation)
        fake.run(wrapper, 8)
        wrapper.close()
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4], "5.mp4": [5, 6, 7]}

    @pytest.mark.clause("API-10")
    @pytest.mark.parametrize("when", ["before", "in", "after"])
    @pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
    def test_a_copy_is_refused_at_any_time(
        self, fake: Any, when: str, copied: Callable[[Any], Any]
    ) -> None:
        wrapper = fake.wrap()
        fake.run(wrapper, {"before": 0, "in": 2, "after": 9}[when])
        # Its own words, and not those of pickle for some part of it.
        with pytest.raises(TypeError, match=r"(?i)\bcop(y|ied|ies)\b|\bpickl(ed|ing)\b"):
            copied(wrapper)
        fake.run(wrapper, 9)
        wrapper.close()
        assert fake.videos()["0.mp4"] == [0, 1, 2, 3, 4]


LONG_NAMES = ["x" * 252 + ".mp4", "ü" * 126 + ".mp4"]
REFUSED_NAMES = [
    *((name, row["clause"]) for row in VECTORS["refused_names"] for name in row["filenames"]),
    *((name, "ARG-5c") for name in LONG_NAMES),
]
NOT_POSITIVE = [0, -1, math.nan, math.inf, "60", None]


def case(clause: str, *values: Any) -> Any:
    """Return a parameter that is judged by one case of a clause."""
    return pytest.param(*values, marks=pytest.mark.clause(clause))


class TestArguments:
    @pytest.mark.clause("ARG-1a")
    def test_both_triggers_are_refused(self, world: Any) -> None:
        # Of whatever kind: which one is ARG-9's.
        with pytest.raises(Exception):  # noqa: B017
            world.wrap(episode_trigger=lambda e: True, step_trigger=lambda n: True)

    @pytest.mark.clause("ARG-1c")
    @pytest.mark.parametrize("name", ["episode_trigger", "step_trigger"])
    @pytest.mark.parametrize("value", [5, True, "1500", [0, 1]])
    def test_a_trigger_that_is_not_callable_is_refused(
        self, fake: Any, name: str, value: Any
    ) -> None:
        with pytest.raises(TypeError):
            fake.wrap(**{name: value})

    @pytest.mark.parametrize("name", [case("ARG-3a", "fps"), case("ARG-3b", "video_length_sec")])
    @pytest.mark.parametrize("value", NOT_POSITIVE)
    def test_a_number_that_makes_no_video_is_refused(
        self, fake: Any, name: str, value: Any
    ) -> None:
        with pytest.raises(ValueError):
            fake.wrap(**{name: value})

    @pytest.mark.clause("ARG-3c")
    @pytest.mark.parametrize("value", NOT_POSITIVE)
    def test_an_env_without_a_time_step_is_refused(self, fake: Any, value: Any) -> None:
        env = fake.env()
        env.dt = value
        with pytest.raises(ValueError):
            fake.wrap(env, fps=10)

    @pytest.mark.clause("ARG-4")
    @pytest.mark.parametrize("value", [-1, 3, 1.0, "0", None])
    def test_an_env_idx_out_of_range_is_refused(self, fake: Any, value: Any) -> None:
        with pytest.raises(ValueError):
            fake.wrap(num_envs=3, env_idx=value)

    @pytest.mark.clause("ARG-4")
    @pytest.mark.parametrize("value", [0, 2, np.int64(2), torch.tensor(2)])
    def test_an_env_idx_in_range_is_taken(self, fake: Any, value: Any) -> None:
        wrapper = fake.wrap(num_envs=3, watched=int(value), env_idx=value)
        fake.run(wrapper, 8)
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.parametrize("name", [case(clause, name) for name, clause in REFUSED_NAMES])
    def test_a_filename_that_is_no_video_name_is_refused(self, fake: Any, name: Any) -> None:
        with pytest.raises(ValueError):
            fake.wrap(filename=name)

    @pytest.mark.clause("ARG-5c")
    @pytest.mark.parametrize(
        "name", ["x" * 251 + ".mp4", "ü" * 125 + ".mp4"], ids=["ascii", "utf-8"]
    )
    def test_the_longest_filename_is_taken(self, fake: Any, name: str) -> None:
        wrapper = fake.wrap(filename=name)
        fake.run(wrapper, 8)
        assert fake.videos() == {name: [0, 1, 2, 3, 4]}

    @pytest.mark.clause("ARG-6a")
    def test_an_env_that_cannot_be_wrapped_is_refused(self, fake: Any) -> None:
        env = fake.env()
        env.can_be_wrapped = False
        with pytest.raises(ValueError):
            fake.wrap(env)

    @pytest.mark.clause("ARG-7a")
    def test_out_dir_is_created_with_its_parents_at_construction(self, world: Any) -> None:
        world.out_dir = world.out_dir / "of" / "monday"
        world.wrap(build=False)
        assert world.out_dir.is_dir()

    @pytest.mark.clause("ARG-7a")
    def test_out_dir_may_be_a_path(self, fake: Any) -> None:
        wrapper = fake.wrap(out_dir=fake.out_dir)
        fake.run(wrapper, 6)
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("ARG-7c", "ARG-7d")
    @pytest.mark.parametrize("lacks", ["rename", "seek"])
    def test_out_dir_is_refused_if_files_cannot_be_rewritten_or_renamed(
        self, fake: Any, monkeypatch: pytest.MonkeyPatch, lacks: str
    ) -> None:
        def refuse(*arguments: Any, **options: Any) -> None:
            raise OSError(errno.ENOTSUP, "Operation not supported")

        names = {"rename": ("link", "rename", "replace"), "seek": ("lseek", "pwrite")}[lacks]
        with monkeypatch.context() as patched:
            for name in names:
                patched.setattr(os, name, refuse)
            if lacks == "seek":
                refuse_seeks(patched)
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

    @pytest.mark.clause("ARG-7b")
    def test_an_out_dir_that_cannot_be_a_folder_is_refused(self, fake: Any, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        fake.out_dir = tmp_path / "file"
        with pytest.raises(OSError):
            fake.wrap()
        fake.out_dir = tmp_path / "file" / "videos"
        with pytest.raises(OSError):
            fake.wrap()

    @pytest.mark.clause("ARG-7b")
    def test_an_out_dir_that_cannot_be_written_to_is_refused(self, fake: Any) -> None:
        fake.out_dir = Path("/proc/self")  # the one folder that not even root can write to
        if not fake.out_dir.is_dir():
            pytest.skip("needs Linux: elsewhere no folder is closed to every user")
        with pytest.raises(OSError):
            fake.wrap()

    @pytest.mark.clause("ARG-1b")
    def test_that_both_triggers_are_refused_with_a_value_error(self, fake: Any) -> None:
        with pytest.raises(ValueError, match=r"(?s)(?=.*episode_trigger)(?=.*step_trigger)"):
            fake.wrap(episode_trigger=never, step_trigger=never)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *[case("ARG-1c", n, v) for n in ("episode_trigger", "step_trigger") for v in (5, "9")],
            *[case("ARG-3a", "fps", v) for v in NOT_POSITIVE],
            *[case("ARG-3b", "video_length_sec", v) for v in NOT_POSITIVE],
            *[case("ARG-3c", "dt", v) for v in NOT_POSITIVE],
            *[case("ARG-4", "env_idx", v) for v in (-1, 3, 1.0, "0")],
            *[case(clause, "filename", name) for name, clause in REFUSED_NAMES],
            case("ARG-6a", "can_be_wrapped", False),
            case("ARG-7b", "out_dir", "/dev/null/videos"),
        ],
    )
    def test_an_error_names_the_argument_and_the_value(
        self, fake: Any, name: str, value: Any
    ) -> None:
        env = fake.env()
        is_of_env = name in ("dt", "can_be_wrapped")
        if is_of_env:
            setattr(env, name, value)
        with pytest.raises((ValueError, TypeError, OSError)) as caught:
            fake.wrap(env, **({"fps": 10} | ({} if is_of_env else {name: value})))
        words = str(caught.value)
        if name == "can_be_wrapped":  # the argument is the env
            assert "env" in words or name in words, f"the error does not name the env: {words!r}"
            return
        assert re.search(rf"\b{name}\b", words), f"the error does not name {name}: {words!r}"
        given = repr(value)[:100]  # a long value may be shortened
        assert given in words, f"the error does not give the value {value!r}: {words!r}"

    @pytest.mark.clause("ARG-5d")
    @pytest.mark.parametrize("value", ["./videos", "", None, 3, "my camera"])
    def test_a_camera_attr_that_is_no_name_is_refused(self, fake: Any, value: Any) -> None:
        with pytest.raises(ValueError, match="camera_attr"):
            fake.wrap(camera_attr=value)

    @pytest.mark.clause("ARG-7e")
    @pytest.mark.parametrize("value", [None, ""])
    def test_an_out_dir_that_is_no_folder_name_is_refused(self, fake: Any, value: Any) -> None:
        with pytest.raises(ValueError, match="out_dir"):
            fake.wrap(out_dir=value)

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

    @pytest.mark.clause("ARG-6c")
    @pytest.mark.parametrize("number", [None, "2", 0, -1])
    def test_an_env_without_a_number_of_envs_is_refused(self, fake: Any, number: Any) -> None:
        env = fake.env()
        env.num_envs = number
        with pytest.raises((TypeError, ValueError)):
            fake.wrap(env)

    @pytest.mark.clause("ARG-3d")
    @pytest.mark.parametrize(
        ("name", "value"),
        [("video_length_sec", 1e308), ("fps", 1e-7), ("fps", 1e-320)],
    )
    def test_a_number_that_makes_no_length_or_rate_is_refused(
        self, fake: Any, name: str, value: float
    ) -> None:
        env = fake.env(dt=0.01)
        with pytest.raises(ValueError, match=name):
            fake.wrap(env, **{name: value})

    @pytest.mark.clause("ARG-3d")
    def test_a_time_step_that_makes_no_rate_is_refused(self, fake: Any) -> None:
        with pytest.raises(ValueError, match="fps"):
            fake.wrap(fake.env(dt=1e-10), fps=1e10)


def refuse_seeks(patched: pytest.MonkeyPatch) -> None:
    """Let no file that is opened from now on be rewritten at its start."""
    real = io.open

    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    def opened(*arguments: Any, **options: Any) -> Any:
        file = real(*arguments, **options)
        proxy = type("Unseekable", (), {"__getattr__": lambda self, name: getattr(file, name)})
        proxy.seek = refuse
        proxy.__enter__ = lambda self: self
        proxy.__exit__ = lambda self, *error: file.close()
        return proxy()

    patched.setattr("builtins.open", opened)
    patched.setattr("io.open", opened)


class TestBuild:
    @pytest.mark.clause("BLD-1a")
    def test_build_builds_the_env_once(self, fake: Any) -> None:
        wrapper = fake.wrap(build=False)
        assert wrapper.unwrapped.calls == []
        wrapper.build()
        assert wrapper.unwrapped.calls == ["build"]

    @pytest.mark.clause("BLD-2a")
    def test_the_camera_is_the_attribute_of_that_name(self, world: Any) -> None:
        env = world.env()
        env.side_view, env.camera = env.camera, None
        wrapper = world.wrap(env, camera_attr="side_view")
        world.run(wrapper, 8)
        assert world.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("BLD-2b")
    def test_build_names_a_camera_that_is_missing(self, world: Any) -> None:
        env = world.env()
        with pytest.raises(Exception, match=rf"(?s)(?=.*{type(env).__name__})(?=.*side_view)"):
            world.wrap(env, camera_attr="side_view")

    @pytest.mark.clause("BLD-2b")
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
        world.run(wrapper, 8)
        assert world.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("BLD-2d")
    @pytest.mark.parametrize("camera", ["camera", 3, object()])
    def test_build_refuses_what_cannot_give_pictures(self, fake: Any, camera: Any) -> None:
        env = fake.env()
        env.camera = camera
        wrapper = fake.wrap(env, build=False)
        with pytest.raises(Exception) as error:
            wrapper.build()
        names = ("FakeEnv", r"\bcamera\b", "render", "read")
        unnamed = [name for name in names if not re.search(name, str(error.value))]
        assert not unnamed, f"an error that names {unnamed} was wanted, and it is {error.value}"

    @pytest.mark.clause("BLD-2c")
    def test_a_camera_that_can_only_be_read_records(self, fake: Any) -> None:
        env = fake.env()
        pictures = collections.namedtuple("Pictures", "rgb")
        render = env.camera.render
        env.camera = SimpleNamespace(
            read=lambda: pictures(torch.stack([torch.from_numpy(render()[0])] * env.num_envs))
        )
        wrapper = fake.wrap(env)
        fake.run(wrapper, 7)
        wrapper.close()
        assert fake.videos()["0.mp4"] == [0, 1, 2, 3, 4]

    @pytest.mark.clause("BLD-6")
    def test_an_env_may_lack_build_and_close(self, implementation: type, fake: Any) -> None:
        whole = fake.env()
        env = SimpleNamespace(
            dt=whole.dt, num_envs=whole.num_envs, step=whole.step, camera=whole.camera
        )
        wrapper = implementation(
            env, out_dir=str(fake.out_dir), video_length_sec=0.3, fps=10, logging=False
        )
        wrapper.build()
        for _ in range(3):
            wrapper.step(None)
        wrapper.close()
        assert fake.videos() == {"0.mp4": [0, 1, 2]}

    @pytest.mark.clause("BLD-1b", "BLD-1c")
    def test_building_again_finishes_what_runs_and_ends_the_episode(self, fake: Any) -> None:
        keywords = {"video_length_sec": 1, "record_final_episode": False}
        wrapper = fake.wrap(episode_trigger=lambda e: True, **keywords)
        fake.run(wrapper, 3)
        wrapper.build()
        assert fake.videos() == {"0.mp4": [0, 1, 2]}
        fake.run(wrapper, 2)
        wrapper.close()
        assert fake.videos() == {"0.mp4": [0, 1, 2], "3.mp4": [3, 4]}

    @pytest.mark.clause("BLD-1c")
    def test_building_again_counts_no_episode_in_which_no_step_was_taken(self, fake: Any) -> None:
        trigger = Asked()
        wrapper = fake.wrap(terminated_at={2}, episode_trigger=trigger)
        fake.run(wrapper, 3)
        wrapper.build()
        wrapper.build()
        fake.run(wrapper, 1)
        assert trigger.episodes == [0, 1]

    @pytest.mark.clause("BLD-1d")
    def test_build_names_env_idx_when_it_leaves_too_few_envs(self, fake: Any) -> None:
        env = fake.env(num_envs=5)
        env.build = lambda: setattr(env, "num_envs", 3)
        wrapper = fake.wrap(env, env_idx=4, build=False)
        # The number of envs, or the last of them.
        with pytest.raises(Exception, match=r"(?s)(?=.*\benv_idx\b)(?=.*\b4\b)(?=.*\b[23]\b)"):
            wrapper.build()

    @pytest.mark.clause("BLD-1b")
    def test_what_is_started_before_the_first_build_goes_on(self, fake: Any) -> None:
        wrapper = fake.wrap(build=False, step_trigger=never, record_final_episode=False)
        wrapper.start_recording()
        wrapper.build()
        fake.run(wrapper, 8)
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}


def timing(*clauses: str) -> Any:
    rows = [row for row in VECTORS["timing"] if not clauses or row["clause"] in clauses]
    return pytest.mark.parametrize("row", rows, ids=[row["note"] for row in rows])


def plain(videos: dict[str, list[int]]) -> dict[str, list[int]]:
    """For TIME-4, which takes no step for another."""
    return {name: [*steps] for name, steps in videos.items()}


class TestTime:
    @staticmethod
    def record(fake: Any, row: Any, steps: int) -> Any:
        wrapper = fake.wrap(
            dt=row["dt"], fps=row["fps"], video_length_sec=row["video_length_sec"], **only_at(0)
        )
        fake.run(wrapper, steps)
        return fake.video("0.mp4")

    @pytest.mark.clause("TIME-1a")
    @timing("TIME-1a", "TIME-3", "TIME-6")
    def test_the_length_is_the_seconds_in_steps_rounded_up(self, fake: Any, row: Any) -> None:
        wrapper = fake.wrap(
            dt=row["dt"], fps=1 / row["dt"], video_length_sec=row["video_length_sec"]
        )
        assert wrapper.video_length_steps == row["steps"]

    @pytest.mark.clause("TIME-1b", "TIME-1c")
    @timing("TIME-1b", "TIME-1c")
    def test_float_noise_adds_no_step_and_takes_none(self, fake: Any, row: Any) -> None:
        wrapper = fake.wrap(
            dt=row["dt"], fps=1 / row["dt"], video_length_sec=row["video_length_sec"]
        )
        assert wrapper.video_length_steps == row["steps"]

    @pytest.mark.clause("TIME-3")
    @timing()
    def test_the_stride_is_the_nearest_whole_number_of_steps(self, fake: Any, row: Any) -> None:
        video = self.record(fake, row, row["steps"] + 2 * row["stride"])
        assert video.count == 1 or video.steps[1] - video.steps[0] == row["stride"]

    @pytest.mark.clause("TIME-4a")
    @timing()
    def test_a_video_has_the_frames_of_its_length(self, fake: Any, row: Any) -> None:
        assert self.record(fake, row, row["steps"] + 1).count == row["frames"]

    @pytest.mark.clause("TIME-4a")
    def test_a_video_shows_its_steps_from_the_first(self, world: Any) -> None:
        wrapper = world.wrap(**only_at(3))
        world.run(wrapper, 20)
        assert plain(world.videos()) == {"3.mp4": [3, 4, 5, 6, 7]}

    @pytest.mark.clause("TIME-4a")
    @pytest.mark.parametrize(("start", "steps"), [(0, [0, 3, 6, 9]), (4, [4, 7, 10, 13])])
    def test_a_stride_counts_from_the_first_step(
        self, world: Any, start: int, steps: list[int]
    ) -> None:
        wrapper = world.wrap(fps=3.3, video_length_sec=1.0, **only_at(start))
        world.run(wrapper, 30)
        assert plain(world.videos()) == {f"{start}.mp4": steps}

    @pytest.mark.clause("TIME-4a")
    def test_a_stride_holds_for_a_background_recording(self, world: Any) -> None:
        wrapper = world.wrap(
            fps=3.3, video_length_sec=1.0, step_trigger=never, record_final_episode=False
        )
        world.run(wrapper, 4)
        wrapper.start_recording("background")
        world.run(wrapper, 20)
        wrapper.close()
        assert plain(world.videos()) == {"4.mp4": [4, 7, 10, 13]}

    @pytest.mark.clause("TIME-4a")
    @pytest.mark.parametrize("length", range(1, 8))
    def test_a_video_of_any_length_has_that_many_frames(self, fake: Any, length: int) -> None:
        wrapper = fake.wrap(video_length_sec=length / 10, **only_at(0))
        fake.run(wrapper, 10)
        assert plain(fake.videos()) == {"0.mp4": list(range(length))}

    @pytest.mark.clause("TIME-5")
    def test_the_step_that_ends_an_episode_is_shown_after_its_reset(self, fake: Any) -> None:
        env = fake.env(terminated_at={2})

        def reset(terminated: Any, truncated: Any) -> Any:
            if bool(terminated[0]):
                env.shown = 555  # the picture that the env's own reset leaves
            return terminated, truncated

        env.make_flags = reset
        wrapper = fake.wrap(env, **only_at(0))
        fake.run(wrapper, 8)
        steps = fake.video("0.mp4").steps
        assert 2 not in steps, f"the state before the reset, 2, is shown: {steps}"
        assert steps[steps.index(555) - 1 :][:3] == [1, 555, 3]

    @pytest.mark.clause("TIME-5", "EPI-1")
    def test_episode_is_counted_after_an_env_that_resets_in_step(self, fake: Any) -> None:
        env, seen = fake.env(terminated_at={2, 5}), []
        resets = []

        def reset(terminated: Any, truncated: Any) -> Any:
            resets.extend([0] * bool(terminated[0]))
            return terminated, truncated

        env.make_flags = reset
        # The trigger reads the env after a first step: it has reset itself once for each episode.
        wrapper = fake.wrap(env, episode_trigger=lambda e: seen.append((e, len(resets), env.steps)))
        fake.run(wrapper, 8)
        assert seen == [(0, 0, 1), (1, 1, 4), (2, 2, 7)]

    @pytest.mark.clause("TIME-6")
    @timing()
    def test_the_rate_is_the_exact_ratio(self, fake: Any, row: Any) -> None:
        video = self.record(fake, row, row["steps"] + 2 * row["stride"])
        # Of the stride that it has: which one it should have is TIME-3's.
        stride = video.steps[1] - video.steps[0] if video.count > 1 else row["stride"]
        assert video.rate * stride == Fraction(row["rate"]) * row["stride"]

    @pytest.mark.clause("TIME-6")
    def test_a_second_of_video_is_a_second_of_simulation(self, world: Any) -> None:
        wrapper = world.wrap(dt=0.05, fps=7, video_length_sec=0.9, step_trigger=first_only)
        world.run(wrapper, 24)
        video = world.video("0.mp4")
        assert video.steps[1] - video.steps[0] == 3
        assert video.rate == Fraction(20, 3)
        assert video.duration == pytest.approx(video.count * 3 * 0.05, abs=0.002)

    @pytest.mark.clause("TIME-6")
    @pytest.mark.parametrize("name", ["policy.mp4", "policy.mkv"])
    def test_a_video_begins_with_its_first_frame(self, fake: Any, name: str) -> None:
        wrapper = fake.wrap(filename=name)
        fake.run(wrapper, 8)
        start = fake.video(name).start
        assert start == 0, f"the first frame is shown {start} s after the start"

    @pytest.mark.clause("COST-10a")
    def test_nothing_is_rendered_that_is_not_recorded(self, fake: Any) -> None:
        wrapper = fake.wrap(fps=5, **only_at(3, 20), video_length_sec=0.6)
        camera = wrapper.unwrapped.camera
        renders = []
        for _ in range(30):
            fake.run(wrapper, 1)
            renders.append(camera.renders)
        wrapper.close()
        rendered = [n for n, (a, b) in enumerate(zip([0, *renders], renders)) if b > a]
        shown = sorted(step for steps in fake.videos().values() for step in steps)
        assert shown
        assert rendered == shown
        assert camera.renders == len(shown)


class TestTriggers:
    @pytest.mark.clause("TRIG-1")
    def test_the_default_schedule_on_a_short_run(self, world: Any) -> None:
        # Episodes of three steps; videos of two, so that each is done before the next can start.
        wrapper = world.wrap(
            terminated_at=range(2, 100, 3),
            video_length_sec=0.2,
            record_final_episode=False,
            step_trigger=None,
        )
        world.run(wrapper, 30)
        assert world.videos() == {"0.mp4": [0, 1], "24.mp4": [24, 25], "3.mp4": [3, 4]}

    @pytest.mark.clause("TRIG-1")
    def test_the_default_schedule_of_ten_thousand_episodes(self, fake: Any) -> None:
        schedule = VECTORS["schedule"]
        # Of four steps each, so that a video of one is over before the next episode begins.
        wrapper = fake.wrap(
            terminated_at=range(3, 50_000, 4),
            video_length_sec=0.1,
            record_final_episode=False,
            step_trigger=None,
        )
        fake.run(wrapper, 4 * (schedule["last_inclusive"] + 1))
        recorded = {int(Path(name).stem) // 4 for name in fake.files()}
        assert sorted(recorded) == schedule["episodes"]

    @pytest.mark.clause("TRIG-2a")
    def test_a_step_trigger_starts_at_its_step(self, world: Any) -> None:
        wrapper = world.wrap(step_trigger=lambda n: n % 8 == 0, record_final_episode=False)
        world.run(wrapper, 16)
        assert world.videos() == {"0.mp4": [0, 1, 2, 3, 4], "8.mp4": [8, 9, 10, 11, 12]}

    @pytest.mark.clause("TRIG-3a")
    def test_a_step_trigger_is_asked_once_a_step_while_none_is_active(self, world: Any) -> None:
        trigger = Asked(2, 12)
        wrapper = world.wrap(step_trigger=trigger)
        world.run(wrapper, 24)
        # When exactly a recording is over is TIME-4's.
        not_asked = [n for n in range(24) if n not in trigger.numbers]
        assert trigger.numbers == [n for n in range(24) if n not in not_asked]
        assert not_asked[:4] == [3, 4, 5, 6]
        assert not_asked[-4:] in ([13, 14, 15, 16], [14, 15, 16, 17])

    @pytest.mark.clause("TRIG-3a")
    def test_a_step_trigger_is_not_asked_during_a_recording_started_by_hand(
        self, fake: Any
    ) -> None:
        trigger = Asked()
        wrapper = fake.wrap(step_trigger=trigger)
        fake.run(wrapper, 2)
        wrapper.start_recording()
        fake.run(wrapper, 4)
        wrapper.finish_recording()
        fake.run(wrapper, 2)
        assert trigger.numbers == [0, 1, 6, 7]

    @pytest.mark.clause("TRIG-3a", "TRIG-3b", "FAIL-3a")
    @pytest.mark.parametrize("kind", ["step_trigger", "episode_trigger"])
    def test_a_trigger_is_not_asked_for_a_step_that_the_env_does_not_complete(
        self, fake: Any, kind: str
    ) -> None:
        def fail(actions: Any) -> Any:
            raise KeyError("unstable")

        trigger, env = Asked(), fake.env(terminated_at={0})
        wrapper = fake.wrap(env, **{kind: trigger})
        fake.run(wrapper, 1)
        step, env.step = env.step, fail
        with pytest.raises(KeyError):
            fake.run(wrapper, 1)
        assert trigger.numbers == [0]
        env.step = step
        fake.run(wrapper, 1)
        assert trigger.numbers == [0, 1]

    @pytest.mark.clause("TRIG-2b")
    def test_an_episode_trigger_records_its_episode(self, world: Any) -> None:
        wrapper = world.wrap(
            terminated_at={6, 11},
            episode_trigger=lambda e: e == 1,
            record_final_episode=False,
        )
        world.run(wrapper, 21)
        assert world.videos() == {"7.mp4": [7, 8, 9, 10, 11]}

    @pytest.mark.clause("TRIG-3b")
    def test_an_episode_trigger_is_asked_once_an_episode(self, world: Any) -> None:
        trigger = Asked(0)
        wrapper = world.wrap(terminated_at={9, 19}, episode_trigger=trigger)
        world.run(wrapper, 25)
        assert trigger.numbers == [0, 1, 2]

    @pytest.mark.clause("TRIG-3b")
    def test_an_episode_that_a_video_runs_into_is_recorded_after_it(self, world: Any) -> None:
        trigger = Asked(0, 1)
        wrapper = world.wrap(
            terminated_at={2, 15}, episode_trigger=trigger, record_final_episode=False
        )
        world.run(wrapper, 20)
        (first, second) = sorted(world.videos().items())
        assert first == ("0.mp4", [0, 1, 2, 3, 4])
        start = int(second[0].removesuffix(".mp4"))
        assert start in (5, 6)  # when the first is over, which is TIME-4's
        assert second[1] == [*range(start, start + 5)]
        assert trigger.numbers == [0, 1, 2]

    @pytest.mark.clause("TRIG-3b")
    def test_an_episode_that_is_over_before_the_video_is_not_asked_for(self, fake: Any) -> None:
        trigger = Asked(0)
        wrapper = fake.wrap(terminated_at={1, 3}, episode_trigger=trigger)
        fake.run(wrapper, 8)
        assert trigger.numbers == [0, 2]

    @pytest.mark.clause("TRIG-3b")
    def test_the_first_episode_that_is_asked_for_may_be_a_later_one(self, fake: Any) -> None:
        trigger = Asked(1)
        wrapper = fake.wrap(terminated_at={2}, episode_trigger=trigger)
        wrapper.start_recording()
        fake.run(wrapper, 8)
        assert trigger.numbers == [1]

    @pytest.mark.clause("TRIG-3b")
    def test_a_long_episode_is_one_video(self, world: Any) -> None:
        wrapper = world.wrap(episode_trigger=lambda e: True, record_final_episode=False)
        world.run(wrapper, 20)
        assert world.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("TRIG-2d")
    @pytest.mark.parametrize("kind", ["step_trigger", "episode_trigger"])
    def test_a_trigger_that_is_always_true_cuts_nothing_short(self, world: Any, kind: str) -> None:
        wrapper = world.wrap(
            terminated_at=range(100), record_final_episode=False, **{kind: lambda n: True}
        )
        world.run(wrapper, 16)
        wrapper.close()
        starts = sorted(int(Path(name).stem) for name in world.files())
        assert len(starts) >= 3
        for start in starts[:-1]:  # the last is cut short by close()
            assert world.video(f"{start}.mp4").steps == [*range(start, start + 5)]

    @pytest.mark.clause("TRIG-2c")
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

    @pytest.mark.clause("TRIG-3a", "TRIG-3b")
    @pytest.mark.parametrize("kind", ["step_trigger", "episode_trigger"])
    def test_trigger_is_not_asked_again_after_it_raised(self, fake: Any, kind: str) -> None:
        asked: list[int] = []

        def trigger(number: int) -> bool:
            asked.append(number)
            if number == 1:
                raise ZeroDivisionError("trigger")
            return False

        # Episodes of two steps, so that each could be asked for once more.
        wrapper = fake.wrap(terminated_at=range(1, 20, 2), **{kind: trigger})
        for _ in range(8):
            with contextlib.suppress(ZeroDivisionError):
                fake.run(wrapper, 1)
        assert asked == [*range(8 if kind == "step_trigger" else 4)]


def four_results(env: Any, convert: Callable) -> list[tuple]:
    """Make an env return observations, rewards, dones and extras. Return the list of results."""
    step, returned = env.step, []

    def step_of_four(actions: Any) -> tuple:
        observations, rewards, terminated, truncated, extras = step(actions)
        returned.append((observations, rewards, convert(terminated | truncated), extras))
        return returned[-1]

    env.step = step_of_four
    return returned


class TestEpisodes:
    @pytest.mark.clause("EPI-1")
    def test_only_the_watched_env_is_counted(self, world: Any) -> None:
        wrapper = world.wrap(
            watched=2,
            env_idx=2,
            terminated_at={6, 11},
            others_done_at=range(100),
            episode_trigger=lambda e: e == 1,
            record_final_episode=False,
        )
        world.run(wrapper, 15)
        assert world.videos() == {"7.mp4": [7, 8, 9, 10, 11]}

    @pytest.mark.clause("EPI-1", "EPI-2a", "EPI-2c")
    @pytest.mark.parametrize("ends", ["terminated_at", "truncated_at", "both"])
    @pytest.mark.parametrize("again", [False, True], ids=["new flags", "the same flags"])
    @pytest.mark.parametrize("kind", [OnDevice, torch.Tensor], ids=["device", "host"])
    def test_the_watched_env_is_counted_wherever_its_flags_are(
        self, fake: Any, kind: type, again: bool, ends: str
    ) -> None:
        names = ("terminated_at", "truncated_at") if ends == "both" else (ends,)
        env = fake.env(watched=2, others_done_at=range(100), **{name: {6, 11} for name in names})
        memory = [torch.zeros(3, dtype=torch.bool) for _ in range(2)]
        seen = [flags.as_subclass(kind) for flags in memory]

        def make_flags(*flags: torch.Tensor) -> list[torch.Tensor]:
            if again:  # as envs do that write into the tensors of the step before
                for mine, now in zip(memory, flags):
                    mine[:] = now
                return seen
            return [flag.as_subclass(kind) for flag in flags]

        env.make_flags = make_flags
        trigger = Asked(1)
        wrapper = fake.wrap(env, env_idx=2, episode_trigger=trigger, record_final_episode=False)
        fake.run(wrapper, 15)
        assert trigger.episodes == [0, 1, 2]
        assert fake.videos() == {"7.mp4": [7, 8, 9, 10, 11]}

    @pytest.mark.clause("EPI-2a")
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
        assert trigger.episodes == [0, 1, 2]

    @pytest.mark.clause("EPI-2c")
    @pytest.mark.parametrize(
        "convert",
        [
            lambda flags: flags.long(),
            lambda flags: flags.numpy(),
            lambda flags: flags.tolist(),
            lambda flags: flags[:, None],
        ],
        ids=["int tensor", "array", "list", "column"],
    )
    def test_flags_may_be_of_any_documented_kind(self, fake: Any, convert: Callable) -> None:
        env = fake.env(terminated_at={1, 3})
        env.make_flags = lambda *flags: map(convert, flags)
        trigger = Asked()
        wrapper = fake.wrap(env, episode_trigger=trigger)
        fake.run(wrapper, 6)
        assert trigger.episodes == [0, 1, 2]

    @pytest.mark.clause("EPI-2c")
    def test_flags_are_read_where_their_tensor_is_now(self, fake: Any) -> None:
        env, trigger, flags = fake.env(), Asked(), torch.zeros(3, dtype=torch.bool)
        truncated = torch.zeros(3, dtype=torch.bool)
        env.step = lambda actions: (None, None, flags, truncated, {})
        wrapper = fake.wrap(env, episode_trigger=trigger)
        fake.run(wrapper, 2)
        flags[0] = True
        fake.run(wrapper, 2)
        flags.data = torch.zeros(3, dtype=torch.bool)
        fake.run(wrapper, 2)
        flags.data[0] = True
        fake.run(wrapper, 1)
        assert trigger.episodes == [0, 1, 2]
        flags[0] = False
        fake.run(wrapper, 2)
        truncated[0] = True
        fake.run(wrapper, 2)
        assert trigger.episodes == [0, 1, 2, 3, 4]

    @pytest.mark.clause("EPI-2c")
    def test_flags_that_share_their_memory_are_told_apart(self, fake: Any) -> None:
        trigger, memory = Asked(), torch.tensor([False, True, False, False, False, False])
        views = itertools.cycle([memory[::2], memory[:3]])
        env, truncated = fake.env(), torch.zeros(3, dtype=torch.bool)
        env.step = lambda actions: (None, None, next(views), truncated, {})
        wrapper = fake.wrap(env, env_idx=1, episode_trigger=trigger)
        fake.run(wrapper, 7)  # of which every second ends an episode
        assert trigger.episodes == [0, 1, 2, 3]

    @pytest.mark.clause("EPI-2b", "DEL-2b")
    @pytest.mark.parametrize(
        "convert",
        [
            lambda dones: dones,
            lambda dones: dones.long(),
            lambda dones: dones.as_subclass(OnDevice),
            lambda dones: dones.numpy(),
            lambda dones: dones.tolist(),
            lambda dones: dones[:, None],
        ],
        ids=["bool", "int64", "device", "array", "list", "column"],
    )
    def test_dones_of_four_results_end_an_episode(self, fake: Any, convert: Callable) -> None:
        env, trigger = fake.env(watched=1, terminated_at={1, 3}, others_done_at={0, 2}), Asked()
        returned = four_results(env, convert)
        wrapper = fake.wrap(env, env_idx=1, episode_trigger=trigger)
        results = fake.run(wrapper, 6)
        assert trigger.episodes == [0, 1, 2]
        assert all(mine is theirs for mine, theirs in zip(results, returned, strict=True))

    @pytest.mark.clause("EPI-2b", "EPI-2d")
    def test_dones_may_be_none(self, fake: Any) -> None:
        env, trigger = fake.env(terminated_at={1}), Asked()
        four_results(env, lambda dones: None)
        wrapper = fake.wrap(env, episode_trigger=trigger)
        fake.run(wrapper, 6)
        assert trigger.episodes == [0]

    @pytest.mark.clause("EPI-2d")
    @pytest.mark.parametrize("none", [{"terminated"}, {"truncated"}, {"terminated", "truncated"}])
    def test_flags_may_be_none(self, fake: Any, none: set[str]) -> None:
        env = fake.env(terminated_at={1}, truncated_at={1})
        env.make_flags = lambda terminated, truncated: (
            None if "terminated" in none else terminated,
            None if "truncated" in none else truncated,
        )
        trigger = Asked()
        wrapper = fake.wrap(env, episode_trigger=trigger)
        fake.run(wrapper, 4)
        assert trigger.episodes == ([0] if len(none) == 2 else [0, 1])

    @pytest.mark.clause("EPI-4a")
    def test_a_loop_that_resets_by_hand_counts_episodes(self, world: Any) -> None:
        wrapper = world.wrap(episode_trigger=lambda e: e == 2, record_final_episode=False)
        for _ in range(4):
            wrapper.reset()
            world.run(wrapper, 6)
        assert world.videos() == {"12.mp4": [12, 13, 14, 15, 16]}

    @pytest.mark.clause("EPI-4b")
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
        assert trigger.episodes == [0, 1, 2]

    @pytest.mark.clause("EPI-4a", "EPI-4c")
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
        assert trigger.episodes == ([0, 1] if included else [0])

    @pytest.mark.clause("EPI-4c")
    @pytest.mark.parametrize("ids", [[1], [False, True, False]], ids=["indices", "mask"])
    def test_a_reset_counts_by_a_tensor_on_a_device(self, fake: Any, ids: Any) -> None:
        trigger = Asked()
        wrapper = fake.wrap(watched=1, env_idx=1, episode_trigger=trigger)
        fake.run(wrapper, 2)
        wrapper.reset(torch.tensor(ids).as_subclass(OnDevice))
        fake.run(wrapper, 1)
        assert trigger.episodes == [0, 1]

    @pytest.mark.clause("TIME-4b")
    def test_a_recording_goes_on_across_the_end_of_an_episode(self, world: Any) -> None:
        wrapper = world.wrap(terminated_at={1, 3}, **only_at(0))
        world.run(wrapper, 10)
        assert world.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("TIME-4b")
    def test_a_recording_goes_on_across_a_reset_by_hand(self, world: Any) -> None:
        wrapper = world.wrap(**only_at(0))
        world.run(wrapper, 2)
        wrapper.reset()
        world.run(wrapper, 8)
        assert world.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("TRIG-3c")
    def test_steps_and_episodes_are_exact_after_any_number(self, fake: Any) -> None:
        steps, episodes = 2**53 + 1, 2**33
        for kind, offset in (("step_trigger", 2), ("episode_trigger", 8)):
            number = steps if kind == "step_trigger" else episodes
            trigger = Asked(number)
            wrapper = fake.wrap(
                terminated_at=range(3, 1000, 4), record_final_episode=False, **{kind: trigger}
            )
            fake.run(wrapper, 404)
            # Nobody can wait for 2**31 steps. So what has counted 404 steps or 101 episodes goes
            # on from two before the numbers in question.
            for name, value in vars(wrapper).items():
                if type(value) is int and value in (404, 101):
                    setattr(wrapper, name, {404: steps, 101: episodes}[value] - 2)
            trigger.numbers.clear()
            fake.run(wrapper, 16)
            assert trigger.numbers[:3] == [number - 2, number - 1, number]
            shown = 404 + offset
            assert fake.video(f"{steps - 2 + offset}.mp4").steps == [*range(shown, shown + 5)]

    @pytest.mark.of_module
    @pytest.mark.clause("TRIG-1")
    def test_the_default_schedule_is_exact_for_any_number(self, module: Any) -> None:
        trigger = module.capped_cubic_episode_trigger
        for thousands in (2**31, 10**9, 10**15 + 1, 2**64):
            around = range(1000 * thousands - 2, 1000 * thousands + 3)
            assert [n - 1000 * thousands for n in around if trigger(n)] == [0]

    # Both forms that are expected.
    FORMS = r"(?is)(?=.*obs.*reward.*terminated.*truncated.*(extras|info))(?=.*rewards?, dones?\b)"

    @pytest.mark.clause("EPI-7a")
    @pytest.mark.parametrize(
        "results",
        [
            lambda obs, rewards, ends, cuts, extras: (obs, rewards, ends),
            lambda obs, rewards, ends, cuts, extras: (obs, rewards, ends, cuts, extras, None),
            lambda obs, rewards, ends, cuts, extras: {"obs": obs},
            lambda obs, rewards, ends, cuts, extras: obs,
        ],
        ids=["three", "six", "a dict", "observations"],
    )
    def test_another_number_of_results_is_refused(self, fake: Any, results: Callable) -> None:
        env = fake.env()
        step = env.step
        env.step = lambda actions: results(*step(actions))
        wrapper = fake.wrap(env)
        with pytest.raises(TypeError, match=self.FORMS):
            fake.run(wrapper, 1)

    @pytest.mark.clause("EPI-7b")
    @pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
    @pytest.mark.parametrize(
        "convert",
        [
            lambda flags: flags,
            lambda flags: flags.numpy(),
            lambda flags: flags.tolist(),
            lambda flags: flags[:, None],
            lambda flags: flags.half().as_subclass(OnDevice),
        ],
        ids=["tensor", "array", "list", "column", "device"],
    )
    @pytest.mark.parametrize("place", ["terminated", "truncated", "dones"])
    def test_float_flags_are_refused_at_the_first_step(
        self, fake: Any, convert: Callable, value: float, place: str
    ) -> None:
        env, floats = fake.env(), convert(torch.full((3,), value))
        if place == "dones":
            four_results(env, lambda dones: floats)
        else:
            env.make_flags = lambda terminated, truncated: (
                (floats, truncated) if place == "terminated" else (terminated, floats)
            )
        wrapper = fake.wrap(env)
        with pytest.raises(ValueError, match=self.FORMS):
            fake.run(wrapper, 1)

    @pytest.mark.clause("EPI-7b")
    @pytest.mark.parametrize("flag", [0.0, 1.0, np.float32(0), torch.tensor(0.0)], ids=repr)
    def test_a_float_flag_of_a_single_env_is_refused(self, fake: Any, flag: Any) -> None:
        env = fake.env(num_envs=1)
        env.make_flags = lambda *flags: (flag, flag)
        wrapper = fake.wrap(env)
        with pytest.raises(ValueError, match=self.FORMS):
            fake.run(wrapper, 1)

    @pytest.mark.clause("EPI-7c")
    @pytest.mark.parametrize(
        "flags",
        [
            torch.zeros(4, dtype=torch.bool),
            np.zeros(5, bool),
            [False],
            torch.tensor(False),
            {"time_out": False},
            dict.fromkeys("abc", 0),
            "100",
            torch.zeros(3, 2),
        ],
        ids=[
            "too many", "too many in an array", "too few", "no dimension", "a dict",
            "a dict of three", "a str", "of (n, 2)",
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("place", [2, 3])
    def test_what_cannot_be_flags_is_refused(self, fake: Any, flags: Any, place: int) -> None:
        env = fake.env(watched=2)
        env.make_flags = lambda *given: (flags, given[1]) if place == 2 else (given[0], flags)
        wrapper = fake.wrap(env, env_idx=2)
        with pytest.raises(ValueError, match=self.FORMS):
            fake.run(wrapper, 1)

    @pytest.mark.clause("COST-1c")
    def test_where_nothing_is_counted_results_are_not_looked_at(self, fake: Any) -> None:
        env = fake.env()
        step = env.step
        env.step = lambda actions: step(actions)[:3]
        wrapper = fake.wrap(env, **only_at(0))
        fake.run(wrapper, 6)
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("EPI-4c")
    @pytest.mark.parametrize("watched", [0, 2])
    @pytest.mark.parametrize(
        "ids",
        [
            0,
            -3,
            [2],
            [-1],
            [0, 1],
            [],
            (),
            (0, 1),
            range(2, 3),
            torch.tensor(2),
            torch.tensor([0, -1]),
            torch.tensor([], dtype=torch.int64),
            torch.tensor([True, False, True]).nonzero(),
            torch.tensor([False, True, True]).nonzero(as_tuple=True),
            np.argwhere([False, False, True]),
            np.where([True, False, False]),
            np.array([2, 1]),
            np.array([False, True, True]),
            torch.tensor([True, False, False]),
            [False, True, True],
            [np.True_, np.False_, np.False_],
            slice(1, None),
            slice(0, 2),
            ...,
        ],
        ids=repr,
    )
    def test_a_reset_counts_what_the_ids_select_of_a_tensor(
        self, fake: Any, ids: Any, watched: int
    ) -> None:
        buffer = torch.ones(3)
        is_plain = isinstance(ids, (tuple, range)) and all(isinstance(i, int) for i in ids)
        taken = list(ids) if is_plain else ids  # which envs loop over, and no tensor takes
        buffer[taken] = 0
        asked: list[int] = []
        env = fake.env(watched=watched)
        env.reset = lambda env_ids=None: (None, {})
        wrapper = fake.wrap(env, env_idx=watched, episode_trigger=asked.append)
        fake.run(wrapper, 1)
        wrapper.reset(ids)
        fake.run(wrapper, 1)
        assert asked == ([0, 1] if buffer[watched] == 0 else [0])

    @pytest.mark.clause("EPI-4d")
    @pytest.mark.parametrize(
        "ids", [[7], {0, 2}, "all", 0.5, object(), [[0, 1], [2]], torch.zeros(5) > 0], ids=repr
    )
    def test_ids_that_only_the_env_takes_raise_nothing(self, fake: Any, ids: Any) -> None:
        env, answer = fake.env(), (object(), {})
        env.reset = lambda env_ids: answer
        wrapper = fake.wrap(env)
        fake.run(wrapper, 1)
        assert wrapper.reset(ids) is answer

    @pytest.mark.clause("EPI-2e")
    @pytest.mark.parametrize(
        "convert",
        [
            bool,
            np.bool_,
            np.array,
            torch.tensor,
            lambda flag: torch.tensor([[flag]]),
            int,
            lambda flag: None if not flag else True,
        ],
        ids=["bool", "NumPy bool", "array", "tensor", "(1, 1)", "int", "None or True"],
    )
    def test_flags_of_a_single_env_may_have_no_dimension(
        self, fake: Any, convert: Callable
    ) -> None:
        asked: list[int] = []
        env = fake.env(num_envs=1, terminated_at=(1, 3), truncated_at=(4,))
        env.make_flags = lambda *flags: [convert(bool(flag[0])) for flag in flags]
        wrapper = fake.wrap(env, episode_trigger=asked.append)
        fake.run(wrapper, 7)
        assert asked == [0, 1, 2, 3]


class TestRecordings:
    @pytest.mark.clause("REC-1a")
    def test_a_recording_started_by_hand_begins_with_the_next_step(self, world: Any) -> None:
        wrapper = world.wrap(step_trigger=never, record_final_episode=False)
        world.run(wrapper, 2)
        wrapper.start_recording()
        world.run(wrapper, 10)
        assert world.videos() == {"2.mp4": [2, 3, 4, 5, 6]}

    @pytest.mark.clause("REC-2a")
    def test_finish_recording_saves_the_frames_so_far_at_once(self, world: Any) -> None:
        wrapper = world.wrap(step_trigger=never, record_final_episode=False)
        wrapper.start_recording()
        world.run(wrapper, 3)
        wrapper.finish_recording()
        assert world.videos() == {"0.mp4": [0, 1, 2]}
        world.run(wrapper, 3)
        wrapper.close()
        assert world.videos() == {"0.mp4": [0, 1, 2]}

    @pytest.mark.clause("REC-2a")
    def test_a_video_can_have_a_single_frame(self, world: Any) -> None:
        wrapper = world.wrap(step_trigger=never, record_final_episode=False)
        wrapper.start_recording()
        world.run(wrapper, 1)
        wrapper.finish_recording()
        assert world.videos() == {"0.mp4": [0]}

    @pytest.mark.clause("REC-1b")
    def test_starting_anew_saves_the_active_recording_first(self, world: Any) -> None:
        wrapper = world.wrap(step_trigger=never, record_final_episode=False)
        wrapper.start_recording()
        world.run(wrapper, 2)
        wrapper.start_recording()
        world.run(wrapper, 10)
        assert world.videos() == {"0.mp4": [0, 1], "2.mp4": [2, 3, 4, 5, 6]}

    @pytest.mark.clause("REC-1b")
    def test_starting_a_background_recording_saves_the_active_one_first(self, world: Any) -> None:
        wrapper = world.wrap(step_trigger=never, record_final_episode=False)
        wrapper.start_recording()
        world.run(wrapper, 2)
        wrapper.start_recording("background")
        world.run(wrapper, 10)
        assert world.videos() == {"0.mp4": [0, 1]}

    @pytest.mark.clause("REC-2b")
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

    @pytest.mark.clause("REC-2c")
    def test_finishing_nothing_does_nothing(self, fake: Any) -> None:
        wrapper = fake.wrap(step_trigger=never, record_final_episode=False)
        wrapper.finish_recording()
        fake.run(wrapper, 2)
        wrapper.finish_recording()
        wrapper.finish_recording()
        assert fake.files() == []

    @pytest.mark.clause("REC-2d")
    @pytest.mark.parametrize("end", ["finish_recording", "close", "start_recording"])
    def test_a_recording_without_a_frame_leaves_no_trace(
        self, fake: Any, end: str, capsys: pytest.CaptureFixture
    ) -> None:
        wrapper = fake.wrap(step_trigger=never, record_final_episode=False, logging=True)
        with warned(count=0):
            wrapper.start_recording()
            getattr(wrapper, end)()
            wrapper.close()
        assert fake.files() == []
        assert capsys.readouterr().out == ""

    @pytest.mark.clause("REC-1c")
    @pytest.mark.parametrize("type", ["Active", "", None, 1])
    def test_an_unknown_type_is_refused_and_changes_nothing(self, fake: Any, type: Any) -> None:
        wrapper = fake.wrap(**only_at(0))
        fake.run(wrapper, 2)
        with pytest.raises(ValueError):
            wrapper.start_recording(type)
        fake.run(wrapper, 6)
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}


class TestFinalEpisode:
    @pytest.mark.clause("FIN-1a", "FIN-3a")
    def test_close_saves_the_newest_episode_worth_watching(self, world: Any) -> None:
        wrapper = world.wrap(terminated_at={7, 15}, step_trigger=never)
        world.run(wrapper, 19)
        assert world.videos() == {}
        wrapper.close()
        assert world.videos() == {"8.mp4": [8, 9, 10, 11, 12]}

    @pytest.mark.clause("FIN-1a", "FIN-3b")
    def test_the_only_episode_is_the_last(self, world: Any) -> None:
        wrapper = world.wrap(step_trigger=never)
        world.run(wrapper, 3)
        wrapper.close()
        assert world.videos() == {"0.mp4": [0, 1, 2]}

    @pytest.mark.clause("FIN-1a", "FIN-3a")
    def test_the_last_of_many_episodes_counted_by_reset_is_saved(self, fake: Any) -> None:
        wrapper = fake.wrap(step_trigger=never)
        for _ in range(4):
            wrapper.reset()
            fake.run(wrapper, 3)
        wrapper.close()
        assert fake.videos() == {"6.mp4": [6, 7, 8]}

    @pytest.mark.clause("FIN-1a", "FILE-1b")
    def test_the_final_episode_overwrites_too(self, world: Any) -> None:
        wrapper = world.wrap(terminated_at={7}, step_trigger=first_only, filename="policy.mp4")
        world.run(wrapper, 10)
        assert world.videos() == {"policy.mp4": [0, 1, 2, 3, 4]}
        wrapper.close()
        assert world.videos() == {"policy.mp4": [5, 6, 7]}

    @pytest.mark.clause("FIN-2a", "FIN-2c")
    def test_a_background_recording_covers_the_first_steps_of_its_episode(self, world: Any) -> None:
        wrapper = world.wrap(terminated_at={9}, step_trigger=never)
        world.run(wrapper, 25)
        wrapper.close()
        assert world.videos() == {"10.mp4": [10, 11, 12, 13, 14]}

    @pytest.mark.clause("FIN-2a")
    def test_episode_that_begins_during_a_video_is_recorded_after_it(self, world: Any) -> None:
        wrapper = world.wrap(terminated_at={9}, step_trigger=lambda n: n == 8)
        world.run(wrapper, 16)
        wrapper.close()
        assert world.videos() == {"8.mp4": [8, 9, 10, 11, 12], "13.mp4": [13, 14, 15]}

    @pytest.mark.clause("FIN-2c", "FIN-3c")
    def test_a_triggered_recording_ends_the_background_one(self, world: Any) -> None:
        wrapper = world.wrap(terminated_at={9}, step_trigger=lambda n: n == 12)
        world.run(wrapper, 30)
        wrapper.close()
        assert world.videos() == {"12.mp4": [12, 13, 14, 15, 16]}

    @pytest.mark.clause("FIN-2b")
    def test_an_endless_episode_leaves_a_late_video(self, fake: Any) -> None:
        wrapper = fake.wrap(video_length_sec=2, step_trigger=never)
        fake.run(wrapper, 1000)
        wrapper.close()
        assert fake.videos() == {"640.mp4": [*range(640, 660)]}

    @pytest.mark.clause("FIN-2b")
    @pytest.mark.parametrize("steps", [79, 80])
    def test_a_late_video_starts_no_earlier_than_4n(self, fake: Any, steps: int) -> None:
        wrapper = fake.wrap(video_length_sec=2, step_trigger=never)
        fake.run(wrapper, steps + 10)
        wrapper.close()
        start = 80 if steps == 80 else 0
        assert fake.videos() == {f"{start}.mp4": [*range(start, start + (10 if start else 20))]}

    @pytest.mark.clause("FIN-2b")
    def test_a_late_video_waits_for_an_active_recording(self, fake: Any) -> None:
        wrapper = fake.wrap(video_length_sec=2, step_trigger=lambda n: n == 75)
        fake.run(wrapper, 120)
        wrapper.close()
        assert fake.videos() == {"75.mp4": [*range(75, 95)], "95.mp4": [*range(95, 115)]}

    @pytest.mark.clause("FIN-2b")
    def test_steps_of_an_episode_count_anew_in_the_next(self, fake: Any) -> None:
        wrapper = fake.wrap(terminated_at={6, 30}, video_length_sec=0.2, step_trigger=never)
        fake.run(wrapper, 40)  # of episode 2, which began at step 31, the step 8 is the step 39
        wrapper.close()
        assert fake.videos() == {"31.mp4": [31, 32]}

    @pytest.mark.clause("FIN-2c")
    def test_a_background_recording_gives_way_to_the_next_episode(self, fake: Any) -> None:
        wrapper = fake.wrap(terminated_at={2}, video_length_sec=2, step_trigger=never)
        camera = wrapper.unwrapped.camera
        fake.run(wrapper, 12)
        assert camera.renders == 12  # each step is in one recording
        wrapper.close()
        assert fake.videos() == {"0.mp4": [0, 1, 2]}

    @pytest.mark.clause("FIN-3a", "FIN-3b")
    @pytest.mark.parametrize(
        ("steps", "start", "count"), [(3, 0, 3), (39, 0, 20), (40, 30, 10), (45, 30, 15)]
    )
    def test_a_new_episode_is_saved_once_it_lasted_a_second(
        self, fake: Any, steps: int, start: int, count: int
    ) -> None:
        wrapper = fake.wrap(terminated_at={29}, video_length_sec=2, step_trigger=never)
        fake.run(wrapper, steps)
        wrapper.close()
        assert fake.videos() == {f"{start}.mp4": [*range(start, start + count)]}

    @pytest.mark.clause("FIN-3a", "FIN-3b")
    def test_lasting_counts_steps_and_not_frames(self, fake: Any) -> None:
        keywords = {"fps": 3.3, "video_length_sec": 0.8}  # frames at steps 0, 3 and 6 of eight
        wrapper = fake.wrap(terminated_at={9}, step_trigger=never, **keywords)
        fake.run(wrapper, 18)
        wrapper.close()
        assert fake.videos() == {"10.mp4": [10, 13, 16]}

    @pytest.mark.clause("FIN-3c")
    @pytest.mark.parametrize("steps", [24, 31])
    def test_an_active_recording_drops_an_older_one_once_it_lasted(
        self, fake: Any, steps: int
    ) -> None:
        wrapper = fake.wrap(terminated_at={15}, video_length_sec=2, step_trigger=lambda n: n == 20)
        fake.run(wrapper, steps)
        wrapper.close()
        dropped = {} if steps == 31 else {"0.mp4": [*range(16)]}
        assert fake.videos() == {"20.mp4": [*range(20, steps)]} | dropped

    @pytest.mark.clause("FIN-3c")
    def test_an_active_recording_that_lasted_between_frames_drops_too(self, fake: Any) -> None:
        keywords = {"fps": 3.3, "video_length_sec": 0.8}  # frames at steps 0, 3 and 6 of eight
        wrapper = fake.wrap(step_trigger=lambda n: n == 3, **keywords, terminated_at={3, 11})
        fake.run(wrapper, 11)  # it ends with step 10
        wrapper.close()
        assert fake.videos() == {"3.mp4": [3, 6, 9]}

    @pytest.mark.clause("FIN-3c", "FAIL-1c")
    def test_an_active_recording_that_fails_at_once_drops_nothing(self, fake: Any) -> None:
        wrapper = fake.wrap(step_trigger=lambda n: n == 8)
        fake.run(wrapper, 8)
        wrapper.unwrapped.camera.make_frame = lambda frame: None
        with warned(r"\b8\.mp4"):
            fake.run(wrapper, 1)
        wrapper.unwrapped.camera.make_frame = lambda frame: frame
        fake.run(wrapper, 8)
        wrapper.close()
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("FIN-3d")
    def test_an_older_episode_does_not_overwrite_a_newer_video(self, fake: Any) -> None:
        keywords = {"video_length_sec": 2, "filename": "policy.mp4"}
        wrapper = fake.wrap(step_trigger=lambda n: n == 10, **keywords)
        fake.run(wrapper, 13)  # the active recording lasts three steps: both are pending
        wrapper.close()
        assert fake.videos() == {"policy.mp4": [10, 11, 12]}

    @pytest.mark.clause("FIN-3d")
    def test_a_video_saved_by_hand_is_not_overwritten_by_an_older_one(self, fake: Any) -> None:
        wrapper = fake.wrap(
            step_trigger=never,
            video_length_sec=2,
            record_final_episode=False,
            filename="policy.mp4",
        )
        wrapper.start_recording("background")
        fake.run(wrapper, 12)
        wrapper.start_recording()
        fake.run(wrapper, 3)
        wrapper.finish_recording()
        wrapper.close()
        assert fake.videos() == {"policy.mp4": [12, 13, 14]}

    @pytest.mark.clause("FIN-3a")
    def test_closing_at_the_end_of_an_episode_saves_that_episode(self, world: Any) -> None:
        wrapper = world.wrap(terminated_at={7, 11}, step_trigger=never)
        world.run(wrapper, 12)
        wrapper.close()
        assert world.videos() == {"8.mp4": [8, 9, 10, 11]}

    @pytest.mark.clause("FIN-3b")
    def test_a_recording_that_gets_no_frame_drops_nothing(self, world: Any) -> None:
        wrapper = world.wrap(step_trigger=never)
        world.run(wrapper, 3)
        wrapper.start_recording()
        wrapper.close()
        assert world.videos() == {"0.mp4": [0, 1, 2]}

    @pytest.mark.clause("FIN-3a")
    @pytest.mark.parametrize("kind", ["step_trigger", "episode_trigger"])
    def test_a_trigger_that_raises_does_not_cost_the_episode_before(
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

    @pytest.mark.clause("FIN-1b")
    def test_without_record_final_episode_close_saves_none(self, world: Any) -> None:
        wrapper = world.wrap(terminated_at={3}, step_trigger=never, record_final_episode=False)
        world.run(wrapper, 8)
        wrapper.close()
        assert world.files() == []


def mp4_codec(video: Any) -> tuple[str, str]:
    return video.codec, video.pix_fmt


AUDITORS: list[Callable[[str, tuple[Any, ...]], None]] = []


@contextlib.contextmanager
def audited(look: Callable[[str, tuple[Any, ...]], None]) -> Iterator[None]:
    """Calls `look` before each thing that Python's audit hooks tell of."""
    if not AUDITORS:  # a hook cannot be taken away
        AUDITORS.append(lambda *_: None)
        sys.addaudithook(lambda event, arguments: AUDITORS[0](event, arguments))
    AUDITORS[0] = look
    try:
        yield
    finally:
        AUDITORS[0] = lambda *_: None


class TestFiles:
    @pytest.mark.clause("FILE-1a", "FILE-1b", "ARG-5b")
    @pytest.mark.parametrize(
        "row",
        VECTORS["names"],
        ids=lambda row: row["name"] if row["name"].isascii() else "not ASCII",
    )
    def test_names(self, fake: Any, row: Any) -> None:
        start = row["step"]
        wrapper = fake.wrap(**only_at(start), filename=row["filename"])
        fake.run(wrapper, start + 8)
        assert fake.files() == [row["name"]]
        assert fake.video(row["name"]).steps == list(range(start, start + 5))

    @pytest.mark.clause("FILE-1b")
    def test_with_a_filename_each_video_overwrites_the_last(self, world: Any) -> None:
        wrapper = world.wrap(**only_at(0, 8), filename="policy.mp4")
        world.run(wrapper, 8)
        assert world.videos() == {"policy.mp4": [0, 1, 2, 3, 4]}
        world.run(wrapper, 8)
        assert world.videos() == {"policy.mp4": [8, 9, 10, 11, 12]}

    @pytest.mark.clause("FILE-3a", "FILE-3b")
    def test_a_name_appears_only_with_its_whole_video(self, fake: Any) -> None:
        wrapper = fake.wrap(**only_at(0, 8), filename="policy.mp4")
        seen = []
        for _ in range(16):
            fake.run(wrapper, 1)
            seen.append(fake.videos().get("policy.mp4"))
        # Not before its last step, and after it until the next: when exactly is TIME-4's.
        first, second = [0, 1, 2, 3, 4], [8, 9, 10, 11, 12]
        assert seen[:4] == [None] * 4
        assert seen[6:12] == [first] * 6
        assert seen[14:] == [second] * 2
        assert all(steps in (None, first, second) for steps in seen)

    @pytest.mark.clause("FILE-3b")
    def test_a_file_of_an_earlier_run_stays_whole_until_it_is_replaced(self, fake: Any) -> None:
        fake.out_dir.mkdir()
        (fake.out_dir / "0.mp4").write_bytes(b"of an earlier run")
        wrapper = fake.wrap(**only_at(0))
        fake.run(wrapper, 4)
        assert (fake.out_dir / "0.mp4").read_bytes() == b"of an earlier run"
        fake.run(wrapper, 4)
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("FILE-3b")
    def test_a_video_is_replaced_in_one_move(self, fake: Any) -> None:
        wrapper = fake.wrap(**only_at(0, 8), filename="policy.mp4")
        fake.run(wrapper, 8)
        path = fake.out_dir / "policy.mp4"
        saved, faults = path.read_bytes(), []

        def look(event: str, arguments: tuple[Any, ...]) -> None:
            # Before each of these that Python does; a file removed or opened shows at the next one.
            if event.partition(".")[0] not in ("open", "os", "shutil", "subprocess"):
                return
            if not path.exists():
                faults.append(f"it is missing at {event}")
            elif event == "open" and os.fspath(path) == arguments[0] and arguments[2] & 3:
                faults.append("it is opened to be written")

        with audited(look):
            fake.run(wrapper, 8)
        assert path.read_bytes() != saved
        assert not faults, f"while policy.mp4 is replaced, {faults[0]}"

    @pytest.mark.clause("FILE-3b", "FIN-3c")
    def test_a_background_recording_that_is_dropped_leaves_the_saved_video(self, fake: Any) -> None:
        wrapper = fake.wrap(terminated_at={6, 9}, filename="policy.mp4")
        fake.run(wrapper, 6)
        assert fake.videos() == {"policy.mp4": [0, 1, 2, 3, 4]}
        fake.run(wrapper, 5)  # in which one of an episode follows another
        assert fake.videos() == {"policy.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("FILE-3b", "FAIL-1b")
    @pytest.mark.parametrize("type", ["active", "background"])
    def test_a_recording_that_fails_leaves_the_saved_video(
        self, fake: Any, type: str, start_recording: Any
    ) -> None:
        wrapper = fake.wrap(filename="policy.mp4", record_final_episode=False)
        fake.run(wrapper, 8)
        start_recording(wrapper, type)
        wrapper.unwrapped.camera.make_frame = lambda frame: None
        with warned(r"policy\.mp4"):
            fake.run(wrapper, 8)
            wrapper.close()
        assert fake.videos() == {"policy.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("FILE-3b", "FAIL-1b", "FAIL-1g")
    def test_a_video_that_cannot_take_its_name_is_kept(
        self, fake: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*arguments: Any, **options: Any) -> None:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

        wrapper = fake.wrap(**only_at(0, 8), filename="policy.mp4")
        fake.run(wrapper, 8)
        with monkeypatch.context() as patched, warned(r"policy\.mp4", "quota") as said:
            for move in ("link", "rename", "replace"):
                patched.setattr(os, move, refuse)
            fake.run(wrapper, 8)
        assert fake.videos() == {"policy.mp4": [0, 1, 2, 3, 4]}
        (kept,) = {*fake.files()} - {"policy.mp4"}
        assert kept in said[0], f"the warning does not say that the video is in {kept}: {said[0]}"
        assert fake.video(kept).steps == [8, 9, 10, 11, 12]

    @pytest.mark.clause("FILE-3c")
    def test_only_videos_are_left_in_the_folder(self, world: Any) -> None:
        wrapper = world.wrap(terminated_at=range(0, 100, 7), step_trigger=lambda n: n == 16)
        world.run(wrapper, 30)
        wrapper.close()
        assert world.videos() == {"16.mp4": [*range(16, 21)], "22.mp4": [*range(22, 27)]}
        assert set(world.files()) == {"16.mp4", "22.mp4"}

    @pytest.mark.clause("CLOSE-9a")
    @pytest.mark.parametrize("name", ["0.mp4", "x" * 251 + ".mp4"], ids=["short", "255 bytes"])
    def test_a_partial_file_is_visible_and_named_after_its_video(
        self, fake: Any, name: str
    ) -> None:
        wrapper = fake.wrap(filename=name if name != "0.mp4" else None)
        fake.run(wrapper, 2)
        wait_until(fake.files)  # ffmpeg creates it
        (part,) = fake.files()
        stem, number, suffix = part.rsplit(".", 2)
        assert suffix == "part"
        assert re.fullmatch("[0-9a-f]{8}", number)
        assert stem == name or len(name) == 255 and len(stem) > 100 and name.startswith(stem)

    @pytest.mark.clause("FILE-5a")
    def test_a_video_is_h264_with_yuv420p(self, world: Any) -> None:
        wrapper = world.wrap()
        world.run(wrapper, 8)
        assert mp4_codec(world.video("0.mp4")) == ("h264", "yuv420p")

    @pytest.mark.clause("FILE-5b")
    def test_the_index_is_at_the_front(self, world: Any) -> None:
        wrapper = world.wrap()
        world.run(wrapper, 8)
        assert world.video("0.mp4").index_first, "its index stands behind its data"

    @pytest.mark.clause("FILE-7")
    @pytest.mark.parametrize("size", [(257, 65), (97, 64), (96, 63), (320, 240)])
    def test_an_odd_size_is_padded_and_not_rescaled(self, fake: Any, size: tuple[int, int]) -> None:
        width, height = size
        wrapper = fake.wrap(size=size)
        wanted = {}
        # All but the step's code has a pattern as fine as can be, which does not survive a rescaling.
        y, x = np.mgrid[:height, :width]
        fine = (100 + 50 * ((x + y) % 2)).astype(np.uint8)[..., None]

        def draw(frame: np.ndarray) -> np.ndarray:
            drawn = np.where(((x < 48) & (y < 32))[..., None], frame, fine)
            wanted[read_step(frame)] = drawn
            return drawn

        wrapper.unwrapped.camera.make_frame = draw
        fake.run(wrapper, 8)
        video = fake.video("0.mp4")
        assert video.steps == [0, 1, 2, 3, 4]
        assert (video.width, video.height) == (width + width % 2, height + height % 2)
        # At which side the pixel is added is free.
        sides = [(x, y) for x in range(1 + width % 2) for y in range(1 + height % 2)]
        for step, frame in zip(video.steps, video.frames):
            at_sides = [frame[y : y + height, x : x + width] for x, y in sides]
            nearest = max(psnr(picture, wanted[step]) for picture in at_sides)
            assert nearest > 30, f"the picture of step {step} is not whole: {nearest:.1f} dB"

    @pytest.mark.clause("FILE-8a", "FILE-8b")
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
        fake.run(wrapper, 8)
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("FILE-8a")
    def test_frames_on_a_device_are_fetched(self, fake: Any) -> None:
        wrapper = fake.wrap()
        camera = wrapper.unwrapped.camera
        camera.make_frame = lambda frame: torch.from_numpy(frame).as_subclass(OnDevice)
        fake.run(wrapper, 8)
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("FILE-8c")
    def test_a_camera_whose_render_takes_no_argument(self, fake: Any) -> None:
        wrapper = fake.wrap()
        camera = wrapper.unwrapped.camera
        render = camera.render
        camera.render = lambda: render()[0]
        fake.run(wrapper, 8)
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("FILE-8c")
    def test_a_camera_that_returns_the_picture_alone(self, fake: Any) -> None:
        wrapper = fake.wrap()
        camera = wrapper.unwrapped.camera
        render = camera.render
        camera.render = lambda *kinds, **options: render(*kinds, **options)[0]
        fake.run(wrapper, 8)
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("FILE-8a")
    def test_a_frame_buffer_that_the_camera_reuses_is_copied(self, fake: Any) -> None:
        wrapper = fake.wrap()
        buffer = np.zeros((64, 96, 3), np.uint8)

        def reuse(frame: np.ndarray) -> np.ndarray:
            buffer[:] = frame
            return buffer

        wrapper.unwrapped.camera.make_frame = reuse
        fake.run(wrapper, 8)
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("FILE-8d")
    @pytest.mark.parametrize("watched", [0, 2])
    def test_of_one_picture_for_each_env_the_watched_one_is_taken(
        self, world: Any, watched: int
    ) -> None:
        wrapper = world.wrap(separate=True, watched=watched, env_idx=watched)
        world.run(wrapper, 8)
        assert world.videos() == {"0.mp4": [1000 * watched + n for n in range(5)]}

    @pytest.mark.clause("FILE-8e", "FAIL-1f")
    @pytest.mark.parametrize("shown", [[0], [0, 2], [0, 1], None], ids=str)
    def test_an_env_that_the_scene_does_not_render_is_named(self, fake: Any, shown: Any) -> None:
        env = fake.env(watched=1, terminated_at=range(4, 40, 5))
        if shown is not None:
            context = SimpleNamespace(rendered_envs_idx=shown)
            env.scene.visualizer = SimpleNamespace(context=context)
        names = [r"rendered_envs_idx", re.escape(str(shown)), r"env_idx\W+1\b", "camera"]
        is_missing = shown is not None and 1 not in shown
        with warned(*(names if is_missing else []), count=int(is_missing)):
            wrapper = fake.wrap(env, env_idx=1)
            fake.run(wrapper, 20)
            wrapper.close()
        assert "0.mp4" in fake.files()

    @pytest.mark.clause("FILE-8e")
    @pytest.mark.parametrize("shown", [[0], [0, 1]], ids=str)
    def test_an_env_that_a_real_scene_does_not_render_is_named(
        self, genesis: Any, new_stage: type, shown: list[int]
    ) -> None:
        stage = new_stage(scene={"rendered_envs_idx": shown})
        names = [r"rendered_envs_idx", re.escape("[0]"), r"env_idx\W+1\b"]
        with warned(*names, count=int(shown == [0])):
            wrapper = wrap_stage(genesis, stage, env_idx=1, record_final_episode=False)
            for _ in range(2):
                wrapper.start_recording()
                for _ in range(3):
                    wrapper.step(None)
            wrapper.close()
        assert genesis.video("0.mp4").count == 2

    @pytest.mark.clause("FILE-10")
    def test_a_relative_out_dir_is_meant_from_where_it_was_given(
        self, fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        wrapper = fake.wrap(out_dir="./videos")
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        fake.run(wrapper, 8)
        wrapper.close()
        assert list(elsewhere.iterdir()) == []
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4], "5.mp4": [5, 6, 7]}

    @pytest.mark.clause("FILE-11a")
    def test_the_frames_are_what_the_camera_gives(self, world: Any) -> None:
        wrapper = world.wrap(**only_at(0))
        world.run(wrapper, 8)
        video, env = world.video("0.mp4"), wrapper.unwrapped
        assert video.steps == [0, 1, 2, 3, 4]
        for step, frame in zip(video.steps, video.frames):
            env.show(step)
            assert psnr(frame, np.array(env.camera.render()[0])) > 30

    @pytest.mark.clause("FILE-8a", "FILE-8b", "FILE-11a")
    @pytest.mark.parametrize("type", ["active", "background"])
    @pytest.mark.parametrize(
        "convert",
        [
            lambda frame: frame,
            torch.from_numpy,
            lambda frame: np.dstack([frame, np.full(frame.shape[:2], 90, np.uint8)]),
            lambda frame: torch.from_numpy(np.dstack([frame, np.full_like(frame, 90)[..., :1]])),
        ],
        ids=["array", "tensor", "RGBA", "RGBA tensor"],
    )
    def test_colours_survive(
        self, fake: Any, convert: Callable, type: str, start_recording: Any
    ) -> None:
        self.check_colours(fake, convert, type, start_recording)

    @pytest.mark.clause("FILE-8d")
    @pytest.mark.parametrize("type", ["active", "background"])
    @pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["arrays", "tensors"])
    def test_colours_survive_in_one_picture_for_each_env(
        self, fake: Any, convert: Callable, type: str, start_recording: Any
    ) -> None:
        def stack(frame: np.ndarray) -> Any:
            return convert(np.stack([255 - frame, 255 - frame, frame]))

        self.check_colours(fake, stack, type, start_recording)

    def check_colours(self, fake: Any, convert: Callable, type: str, start_recording: Any) -> None:
        wrapper = fake.wrap(watched=2, env_idx=2, step_trigger=never, record_final_episode=False)
        start_recording(wrapper, type)
        # None of which is another's with red and blue exchanged.
        colours = [(255, 0, 0), (40, 255, 0), (0, 90, 255), (255, 255, 255), (200, 120, 40)]
        pictures = [np.full((64, 96, 3), colour, np.uint8) for colour in colours]
        remaining = itertools.cycle(pictures)
        wrapper.unwrapped.camera.make_frame = lambda frame: convert(next(remaining))
        fake.run(wrapper, 8)
        wrapper.close()
        frames = [frame.astype(int) for frame in fake.video("0.mp4").frames]
        nearest = [min((np.abs(f - p).mean(), i) for i, p in enumerate(pictures)) for f in frames]
        furthest = max(distance for distance, _ in nearest)
        assert furthest < 4, (
            f"a frame is {furthest:.0f} levels from the nearest picture of the camera"
        )
        assert {i for _, i in nearest} == {0, 1, 2, 3, 4}

    @pytest.mark.clause("FILE-12a")
    def test_memory_does_not_grow_with_the_length(self, fake: Any) -> None:
        import tracemalloc

        wrapper = fake.wrap(size=(640, 480), video_length_sec=12.0, **only_at(0))
        frame = 640 * 480 * 3
        fake.run(wrapper, 20)
        tracemalloc.start()
        fake.run(wrapper, 105)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert fake.video("0.mp4").steps == [*range(120)]
        assert peak < 12 * frame

    @pytest.mark.clause("FILE-3d")
    def test_two_wrappers_with_one_filename_leave_one_whole_video(self, fake: Any) -> None:
        one, two = (fake.wrap(**only_at(step), filename="policy.mp4") for step in (0, 1))
        fake.run(one, 3)
        fake.run(two, 3)
        fake.run(one, 5)
        assert fake.videos() == {"policy.mp4": [0, 1, 2, 3, 4]}
        fake.run(two, 5)
        assert fake.videos() == {"policy.mp4": [1, 2, 3, 4, 5]}
        assert fake.files() == ["policy.mp4"]


class TestPictures:
    @pytest.mark.clause("FILE-3a", "FILE-3c", "FILE-5a", "TIME-6")
    def test_encoder_makes_a_video_of_frames_alone(
        self, fake: Any, implementation: type, module: Any
    ) -> None:
        if not hasattr(module, "_Encoder"):
            pytest.skip("this implementation has no such part")
        fake.out_dir.mkdir()
        pictures = moving_clip(7)
        encoder = module._Encoder(str(fake.out_dir / "alone.mp4"), Fraction(50, 3))
        for picture in pictures:
            encoder.write(picture)
        assert encoder.finish() is True
        assert encoder.frames == 7
        video = fake.video("alone.mp4")
        assert (video.count, video.rate) == (7, Fraction(50, 3))
        assert all(psnr(a, b) > 35 for a, b in zip(video.frames, pictures))
        discarded = module._Encoder(str(fake.out_dir / "discarded.mp4"), Fraction(50))
        discarded.write(pictures[0])
        discarded.discard()
        assert discarded.finish() is False
        assert module._Encoder(str(fake.out_dir / "none.mp4"), Fraction(50)).finish() is False
        assert fake.files() == ["alone.mp4"]

    @pytest.mark.clause("FILE-11b")
    def test_what_moves_is_sharp_and_leaves_no_trail(self, fake: Any, leave_to: Any) -> None:
        pictures = moving_clip(40)
        env = fake.env(size=(320, 240))
        shown = itertools.cycle(pictures)
        env.camera.make_frame = lambda frame: next(shown)
        wrapper = fake.wrap(env, video_length_sec=4, record_final_episode=False)
        fake.run(wrapper, 40)
        wrapper.close()
        if env.camera.videos:
            leave_to("the fake camera's own recorder encoded it")
        frames = fake.video("0.mp4").frames
        if len(frames) != 40:
            leave_to(f"of 40 steps it shows {len(frames)}: TIME-4")
        luma, trail = sharpness(frames, pictures)
        assert luma >= 40, f"luma of {luma:.1f} dB where something moves; 40 is wanted"
        assert trail <= 0.25, (
            f"chroma is {trail:.2f} levels off where something was; 0.25 is wanted"
        )


class TestClose:
    @pytest.mark.clause("CLOSE-1a")
    def test_close_saves_the_active_recording(self, world: Any) -> None:
        wrapper = world.wrap(**only_at(2))
        world.run(wrapper, 5)
        wrapper.close()
        assert world.videos() == {"2.mp4": [2, 3, 4]}

    @pytest.mark.clause("CLOSE-1b")
    def test_close_closes_the_env_after_saving(self, fake: Any) -> None:
        env = fake.env()
        seen = []
        env.close = lambda: seen.append(fake.videos())
        wrapper = fake.wrap(env)
        fake.run(wrapper, 3)
        wrapper.close()
        assert seen == [{"0.mp4": [0, 1, 2]}]

    @pytest.mark.clause("CLOSE-1c")
    def test_close_closes_the_env_if_saving_fails(self, fake: Any) -> None:
        wrapper = fake.wrap()
        fake.run(wrapper, 3)
        shutil.rmtree(fake.out_dir)
        fake.out_dir.write_text("a file where the folder was")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the warning itself is an exception here
            with contextlib.suppress(Exception):
                wrapper.close()
        assert wrapper.unwrapped.calls[-1] == "close"
        wrapper.close()  # the failed recording is not taken up again

    @pytest.mark.clause("CLOSE-1b")
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

    @pytest.mark.clause("CLOSE-1d")
    @pytest.mark.parametrize("trigger", [first_only, never], ids=["active", "background"])
    def test_a_second_close_saves_nothing_new(self, world: Any, trigger: Callable) -> None:
        wrapper = world.wrap(filename="policy.mp4", step_trigger=trigger)
        world.run(wrapper, 3)
        wrapper.close()
        (world.out_dir / "policy.mp4").unlink()
        wrapper.close()
        assert world.files() == []

    @pytest.mark.clause("CLOSE-4a")
    @pytest.mark.parametrize("type", ["active", "background"])
    def test_where_no_thread_starts_any_more_what_runs_is_saved(
        self, fake: Any, monkeypatch: pytest.MonkeyPatch, type: str, start_recording: Any
    ) -> None:
        wrapper = fake.wrap(step_trigger=never, record_final_episode=False)
        start_recording(wrapper, type)
        fake.run(wrapper, 3)
        refuse_threads(monkeypatch)
        wrapper.close()
        assert fake.videos() == {"0.mp4": [0, 1, 2]}
        assert fake.files() == ["0.mp4"]

    @pytest.mark.clause("CLOSE-14b")
    def test_a_signal_has_the_handler_that_the_program_gave_it(self, fake: Any) -> None:
        before = {s: signal.getsignal(s) for s in signal.valid_signals()}
        wrapper = fake.wrap()
        fake.run(wrapper, 3)
        during = {s: signal.getsignal(s) for s in signal.valid_signals()}
        wrapper.close()
        after = {s: signal.getsignal(s) for s in signal.valid_signals()}
        taken = [s.name for s in before if not before[s] == during[s] == after[s]]
        assert not taken, f"the wrapper sets a handler of its own for {taken}"

    @pytest.mark.clause("CLOSE-10a")
    def test_after_close_nothing_keeps_the_wrapper(self, fake: Any, implementation: type) -> None:
        env = fake.env()  # not by fake.wrap(), which keeps what it wraps
        wrapper = implementation(env, video_length_sec=0.5, fps=10, out_dir=str(fake.out_dir))
        wrapper.build()
        for _ in range(8):
            wrapper.step(torch.zeros(env.num_envs, env.num_actions))
        wrapper.close()
        kept = weakref.ref(wrapper)
        del wrapper
        gc.collect()
        assert kept() is None

    @pytest.mark.clause("CLOSE-10b")
    @pytest.mark.parametrize("when", ["at once", "in a cycle"])
    @pytest.mark.parametrize("kind", ["active", "running background", "finished background"])
    def test_a_wrapper_that_nobody_holds_is_saved_and_freed(
        self, fake: Any, kind: str, when: str
    ) -> None:
        env = fake.env()
        wrapper = fake.wrap(env, video_length_sec=0.3, step_trigger=never)
        if kind == "active":
            wrapper.start_recording()
        fake.run(wrapper, 5 if kind == "finished background" else 2)
        if when == "in a cycle":
            env.wrapper = wrapper
        freed = weakref.ref(wrapper)
        fake.forget()
        del wrapper, env
        if when == "in a cycle":
            gc.collect()
        other = fake.wrap(**only_at(0), filename="other.mp4")
        fake.run(other, 1)  # at the latest now
        assert freed() is None
        shown = [0, 1, 2] if kind == "finished background" else [0, 1]
        assert fake.videos() == {"0.mp4": shown}


def kill_encoders() -> None:
    found = encoders()
    if not found:
        pytest.skip("its encoder is no process that could be killed")
    for pid in found:
        os.kill(pid, signal.SIGKILL)


def interrupted(frame: np.ndarray) -> None:
    raise KeyboardInterrupt


class TestFaults:
    @needs_proc
    @pytest.mark.clause("FAIL-1a", "FAIL-1b", "FAIL-1c", "FAIL-1d")
    def test_a_dead_encoder_gives_one_warning_and_the_next_recording_works(self, fake: Any) -> None:
        wrapper = fake.wrap(**only_at(0, 8))
        fake.run(wrapper, 2)
        kill_encoders()
        with warned(r"\b0\.mp4", "-9|kill|pipe"):
            assert len(fake.run(wrapper, 20)) == 20
        assert fake.files() == ["8.mp4"]
        assert fake.videos() == {"8.mp4": [8, 9, 10, 11, 12]}

    @needs_proc
    @pytest.mark.clause("FAIL-1b", "FAIL-1c")
    def test_an_encoder_that_dies_after_the_last_frame_leaves_no_broken_video(
        self, fake: Any
    ) -> None:
        wrapper = fake.wrap(**only_at(0))
        fake.run(wrapper, 2)
        kill_encoders()
        with warned(r"\b0\.mp4", "-9|kill"):
            wrapper.finish_recording()
        assert fake.files() == []

    @pytest.mark.clause("FAIL-1e", "FAIL-1d")
    @needs_proc
    def test_who_makes_errors_of_warnings_gets_them_and_the_next_recording_works(
        self, fake: Any
    ) -> None:
        wrapper = fake.wrap(**only_at(0, 8))
        fake.run(wrapper, 2)
        kill_encoders()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(Warning, match=r"\b0\.mp4"):
                fake.run(wrapper, 4)
            fake.run(wrapper, 14)
            wrapper.close()
        assert fake.files() == ["8.mp4"]
        assert fake.videos() == {"8.mp4": [8, 9, 10, 11, 12]}

    @pytest.mark.clause("FAIL-1b", "FAIL-1d")
    def test_a_folder_that_went_away_gives_one_warning(self, fake: Any) -> None:
        wrapper = fake.wrap(**only_at(0, 8))
        fake.run(wrapper, 2)
        shutil.rmtree(fake.out_dir)
        with saved_or_warned(fake, "0.mp4", [0, 1, 2, 3, 4]):
            fake.run(wrapper, 4)
        fake.run(wrapper, 16)
        assert fake.videos()["8.mp4"] == [8, 9, 10, 11, 12]

    @pytest.mark.clause("FAIL-1b", "FAIL-1f")
    def test_a_folder_that_cannot_be_had_back_gives_a_warning_for_each_video(
        self, fake: Any
    ) -> None:
        wrapper = fake.wrap(**only_at(2, 8))
        shutil.rmtree(fake.out_dir)
        fake.out_dir.write_text("a file where the folder was")
        with warned("exists|not a directory", count=2) as said:
            assert len(fake.run(wrapper, 20)) == 20
        assert re.search(r"\b2\.mp4", said[0])
        assert re.search(r"\b8\.mp4", said[1])

    @pytest.mark.clause("FAIL-1b", "FAIL-1g")
    def test_a_folder_in_the_place_of_the_video_gives_one_warning_and_stays(
        self, fake: Any
    ) -> None:
        wrapper = fake.wrap(**only_at(0))
        (fake.out_dir / "0.mp4").mkdir()
        with warned(r"\b0\.mp4", "directory") as said:
            fake.run(wrapper, 7)
        (kept,) = {*fake.files()} - {"0.mp4"}
        assert kept in said[0]
        assert fake.video(kept).steps == [0, 1, 2, 3, 4]
        assert (fake.out_dir / "0.mp4").is_dir()

    @pytest.mark.clause("FAIL-1a")
    @pytest.mark.parametrize("call", ["finish_recording", "close", "start_recording"])
    def test_a_failure_at_the_end_raises_nothing(self, fake: Any, call: str) -> None:
        wrapper = fake.wrap(**only_at(0))
        fake.run(wrapper, 2)
        shutil.rmtree(fake.out_dir)
        with saved_or_warned(fake, "0.mp4", [0, 1]):
            getattr(wrapper, call)()

    @pytest.mark.clause("FAIL-1b", "FAIL-1g", "CLOSE-1c")
    def test_a_final_episode_that_cannot_be_saved_gives_one_warning(
        self, fake: Any, implementation: type, leave_to: Any
    ) -> None:
        if "record_final_episode" not in inspect.signature(implementation).parameters:
            leave_to("it takes no record_final_episode: API-1")
        wrapper = fake.wrap(step_trigger=never)
        fake.run(wrapper, 3)
        (fake.out_dir / "0.mp4").mkdir()
        with warned(r"\b0\.mp4", "directory"):
            wrapper.close()
        assert wrapper.unwrapped.calls[-1] == "close"
        (kept,) = {*fake.files()} - {"0.mp4"}
        assert fake.video(kept).steps == [0, 1, 2]

    @pytest.mark.clause("FAIL-1b", "FAIL-1d")
    def test_a_background_recording_that_fails_gives_one_warning(self, fake: Any) -> None:
        wrapper = fake.wrap(terminated_at={7}, step_trigger=never)
        wrapper.unwrapped.camera.make_frame = lambda frame: None
        with warned(r"\b0\.mp4"):
            fake.run(wrapper, 8)
        wrapper.unwrapped.camera.make_frame = lambda frame: frame
        fake.run(wrapper, 3)
        wrapper.close()
        assert fake.videos() == {"8.mp4": [8, 9, 10]}

    @pytest.mark.clause("FAIL-1f")
    def test_each_of_two_recordings_of_one_name_that_fail_gives_a_warning(self, fake: Any) -> None:
        wrapper = fake.wrap(**only_at(0, 8), filename="policy.mp4")
        wrapper.unwrapped.camera.make_frame = lambda frame: None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")  # which shows the same words of a line once
            fake.run(wrapper, 16)
        said = [str(warning.message) for warning in caught]
        assert len(said) == 2, f"two recordings fail, and Python shows {len(said)}: {said}"

    @pytest.mark.clause("FAIL-1f")
    def test_each_of_two_wrappers_that_fail_at_one_line_gives_a_warning(self, fake: Any) -> None:
        wrappers = [fake.wrap(**only_at(0), filename=f"{name}.mp4") for name in "ab"]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            for wrapper in wrappers:
                wrapper.unwrapped.camera.make_frame = lambda frame: None
                fake.run(wrapper, 1)
        said = [str(warning.message) for warning in caught]
        assert [re.findall(r"\b[ab]\.mp4", text) for text in said] == [["a.mp4"], ["b.mp4"]]

    @pytest.mark.clause("FAIL-3a", "FAIL-3b")
    def test_what_the_camera_raises_is_passed_on_and_the_frames_kept(self, fake: Any) -> None:
        wrapper = fake.wrap(**only_at(0))
        wrapper.unwrapped.camera.fails_at = {2}
        fake.run(wrapper, 2)
        with pytest.raises(RuntimeError, match="^camera$"):
            fake.run(wrapper, 1)
        fake.run(wrapper, 1)
        wrapper.close()
        steps = fake.video("0.mp4").steps
        assert 2 not in steps
        assert steps[-2:] == [1, 3]

    @pytest.mark.clause("FAIL-3a", "FAIL-3b")
    def test_what_the_env_raises_is_passed_on_and_the_step_not_counted(self, fake: Any) -> None:
        wrapper = fake.wrap(**only_at(0))
        fake.run(wrapper, 2)
        inner_step = wrapper.unwrapped.step

        def step(actions: Any) -> Any:
            raise KeyError("unstable")

        wrapper.unwrapped.step = step
        with pytest.raises(KeyError, match="unstable"):
            fake.run(wrapper, 1)
        wrapper.unwrapped.step = inner_step
        fake.run(wrapper, 6)
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("FAIL-3a")
    @pytest.mark.parametrize("kind", ["step_trigger", "episode_trigger"])
    def test_what_a_trigger_raises_is_passed_on(self, fake: Any, kind: str) -> None:
        failures = [ZeroDivisionError("trigger")]

        def trigger(number: int) -> bool:
            if number == 2 and failures:
                raise failures.pop()
            return number == 3

        wrapper = fake.wrap(terminated_at=range(100), record_final_episode=False, **{kind: trigger})
        with pytest.raises(ZeroDivisionError, match="trigger"):
            fake.run(wrapper, 3)
        fake.run(wrapper, 8)
        # Which step is the first after it depends on whether that one is counted.
        (steps,) = fake.videos().values()
        assert steps in ([3, 4, 5, 6, 7], [4, 5, 6, 7, 8])

    @pytest.mark.clause("FAIL-5a", "FAIL-5b")
    def test_an_interrupt_while_a_video_is_saved_costs_nothing(
        self, fake: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*line: Any, **options: Any) -> None:
            raise KeyboardInterrupt

        wrapper = fake.wrap(**only_at(0, 8), logging=True)
        fake.run(wrapper, 3)
        with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
            patched.setattr("builtins.print", interrupt)
            wrapper.finish_recording()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fake.run(wrapper, 17)
        assert set(fake.videos()) == set(fake.files()) == {"0.mp4", "8.mp4"}

    @pytest.mark.clause("FAIL-5a")
    @pytest.mark.parametrize("type", ["active", "background"])
    @pytest.mark.parametrize("interrupt", [interrupted, Interrupts.of], ids=["camera", "copy"])
    def test_an_interrupt_while_a_frame_is_taken_costs_that_frame_alone(
        self, fake: Any, type: str, start_recording: Any, interrupt: Callable
    ) -> None:
        wrapper = fake.wrap(step_trigger=never, record_final_episode=False)
        start_recording(wrapper, type)
        camera = wrapper.unwrapped.camera
        for step in range(8):
            camera.make_frame = interrupt if step == 2 else (lambda frame: frame)
            with contextlib.suppress(KeyboardInterrupt):
                fake.run(wrapper, 1)
        wrapper.close()
        assert fake.videos() == {"0.mp4": [0, 1, 3, 4]}

    @pytest.mark.clause("FAIL-6a", "FAIL-6d", "FAIL-1d")
    @pytest.mark.parametrize(
        ("convert", "words"),
        [
            (lambda frame: None, ["None"]),
            (lambda frame: frame.astype(np.float32) / 255, ["float32", "(64, 96, 3)"]),
            (lambda frame: torch.from_numpy(frame).float(), ["float32", "(64, 96, 3)"]),
            (lambda frame: frame.astype(np.int64), ["int64", "(64, 96, 3)"]),
            (lambda frame: frame[..., 0], ["uint8", "(64, 96)"]),
            (lambda frame: frame[..., :2], ["uint8", "(64, 96, 2)"]),
            (lambda frame: frame[None, None], ["uint8", "(1, 1, 64, 96, 3)"]),
            (lambda frame: "picture", ["str"]),
        ],
        ids=["None", "float", "float tensor", "int64", "grey", "two channels", "5-d", "str"],
    )
    def test_a_frame_that_cannot_be_recorded_gives_one_warning_that_names_it(
        self, fake: Any, convert: Callable, words: list[str]
    ) -> None:
        wrapper = fake.wrap(**only_at(0, 8))
        wrapper.unwrapped.camera.make_frame = convert
        with warned(r"\b0\.mp4", *map(re.escape, words)):
            fake.run(wrapper, 5)
        wrapper.unwrapped.camera.make_frame = lambda frame: frame
        fake.run(wrapper, 10)
        assert fake.videos() == {"8.mp4": [8, 9, 10, 11, 12]}

    @pytest.mark.clause("FAIL-6a", "FAIL-6d")
    def test_a_stack_without_the_watched_env_gives_one_warning(self, fake: Any) -> None:
        wrapper = fake.wrap(separate=True, watched=2, env_idx=2, record_final_episode=False)
        wrapper.unwrapped.camera.make_frame = lambda frames: frames[:2]
        with warned(r"\b0\.mp4", r"env.*\b2\b|\(2, 64, 96, 3\)"):
            fake.run(wrapper, 5)
        assert fake.files() == []

    @pytest.mark.clause("FAIL-6a", "FAIL-6c", "FAIL-6d")
    def test_frames_of_another_size_give_one_warning_that_names_it(self, fake: Any) -> None:
        wrapper = fake.wrap(**only_at(0, 8))
        fake.run(wrapper, 2)
        wrapper.unwrapped.camera.make_frame = lambda frame: frame[:32]
        with warned(r"\b0\.mp4", re.escape("(32, 96, 3)"), "uint8"):
            fake.run(wrapper, 3)
        wrapper.unwrapped.camera.make_frame = lambda frame: frame
        fake.run(wrapper, 10)
        assert fake.videos() == {"0.mp4": [0, 1], "8.mp4": [8, 9, 10, 11, 12]}

    @pytest.mark.clause("FAIL-6b", "FAIL-6c", "FAIL-6d")
    @pytest.mark.parametrize("type", ["active", "background"])
    def test_a_frame_for_which_memory_runs_out_gives_one_warning_that_names_it(
        self, fake: Any, type: str, start_recording: Any
    ) -> None:
        wrapper = fake.wrap(step_trigger=never, record_final_episode=False)
        start_recording(wrapper, type)
        fake.run(wrapper, 2)
        wrapper.unwrapped.camera.make_frame = Large.of
        with warned(r"\b0\.mp4", re.escape("(64, 96, 3)"), "uint8"):
            fake.run(wrapper, 3)
        wrapper.close()
        assert fake.videos() == {"0.mp4": [0, 1]}

    @pytest.mark.clause("FAIL-6b", "REC-2d")
    def test_memory_that_runs_out_at_once_does_not_cost_the_episode_before(
        self, fake: Any, capsys: pytest.CaptureFixture
    ) -> None:
        wrapper = fake.wrap(terminated_at={7}, step_trigger=never, logging=True)
        fake.run(wrapper, 8)
        wrapper.unwrapped.camera.make_frame = Large.of
        with warned(r"\b8\.mp4"):
            fake.run(wrapper, 1)
            wrapper.close()
        assert fake.files() == ["0.mp4"]
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}
        assert capsys.readouterr().out.count("\n") == 1


class TestLogging:
    @pytest.mark.clause("LOG-1a")
    def test_each_saved_video_prints_a_line_with_its_path(
        self, fake: Any, capsys: pytest.CaptureFixture
    ) -> None:
        wrapper = fake.wrap(**only_at(0, 8), logging=True)
        fake.run(wrapper, 16)
        first, second = capsys.readouterr().out.splitlines()
        assert str(fake.out_dir / "0.mp4") in first
        assert str(fake.out_dir / "8.mp4") in second

    @pytest.mark.clause("LOG-1a")
    def test_the_final_video_prints_a_line_with_its_path(
        self, fake: Any, capsys: pytest.CaptureFixture
    ) -> None:
        wrapper = fake.wrap(step_trigger=never, logging=True)
        fake.run(wrapper, 3)
        wrapper.close()
        lines = capsys.readouterr().out.splitlines()
        named = [line for line in lines if str(fake.out_dir / "0.mp4") in line]
        assert len(named) == 1, f"one line with the path was wanted, and there are {lines}"

    @pytest.mark.clause("LOG-1b")
    def test_the_line_gives_frames_seconds_and_rate(
        self, fake: Any, capsys: pytest.CaptureFixture
    ) -> None:
        wrapper = fake.wrap(fps=3.3, video_length_sec=1.2, step_trigger=first_only, logging=True)
        fake.run(wrapper, 20)
        line = capsys.readouterr().out.splitlines()[0]
        count = fake.video("0.mp4").count
        words = line.replace(str(fake.out_dir / "0.mp4"), "")  # which has numbers of its own
        numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", words)]
        wanted = {"frames": count, "seconds": 0.3 * count, "frames per second": 1 / 0.3}
        for unit, value in wanted.items():  # in whatever order, and rounded as people would
            near = [number for number in numbers if abs(number - value) < 0.01 * value]
            assert near, f"the line does not give the {unit}, {value:.4g}: {line!r}"
        assert "earlier" not in line

    @pytest.mark.clause("LOG-3")
    def test_nothing_is_printed_without_logging(
        self, fake: Any, capfd: pytest.CaptureFixture
    ) -> None:
        wrapper = fake.wrap(terminated_at={20}, step_trigger=lambda n: n in (0, 8), logging=False)
        fake.run(wrapper, 30)
        wrapper.start_recording("background")
        fake.run(wrapper, 8)
        wrapper.close()
        assert len(fake.files()) == 3
        assert capfd.readouterr() == ("", "")

    @pytest.mark.clause("LOG-3")
    def test_no_progress_is_printed_without_logging(
        self, genesis: Any, new_stage: type, capfd: pytest.CaptureFixture
    ) -> None:
        stage = new_stage()
        count_renders(stage, seconds=1.2)
        wrapper = wrap_stage(genesis, stage, logging=False)
        for _ in range(12):
            wrapper.step(None)
        capfd.readouterr()
        wrapper.close()
        assert "0.mp4" in genesis.files()
        assert capfd.readouterr().out == ""

    @pytest.mark.clause("LOG-1d")
    def test_a_line_that_cannot_be_printed_raises_nothing(
        self, fake: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*line: Any, **options: Any) -> None:
            raise OSError(errno.EIO, "the terminal has gone")

        wrapper = fake.wrap(logging=True)
        with monkeypatch.context() as patched:
            patched.setattr("builtins.print", fail)
            patched.setattr(sys, "stdout", SimpleNamespace(write=fail, flush=fail))
            fake.run(wrapper, 8)
            wrapper.close()
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4], "5.mp4": [5, 6, 7]}


def nested(fake: Any, layers: int) -> tuple[Any, Any]:
    """Return an env and the outermost of the wrappers around it."""
    env = wrapper = fake.env()
    for _ in range(layers):
        wrapper = fake.wrap(wrapper, build=False, **only_at())
    return env, wrapper


class TestDelegation:
    @pytest.mark.clause("DEL-1a")
    @pytest.mark.parametrize(
        "name",
        [p.name for p in PROPERTIES if p.name not in ("video_length_steps", "unwrapped")],
    )
    def test_a_property_is_read_from_the_env_at_each_access(self, fake: Any, name: str) -> None:
        env = fake.env()
        wrapper = fake.wrap(env)
        assert getattr(wrapper, name) is getattr(env, name)
        before = getattr(env, name)
        for value in (object(), object()):
            setattr(env, name, value)
            assert getattr(wrapper, name) is value, f"{name} is not read from the env each time"
        setattr(env, name, before)

    @pytest.mark.clause("DEL-2a", "DEL-2b")
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
        assert result is seen[0][1]

    @pytest.mark.clause("DEL-2c")
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

    @pytest.mark.clause("DEL-1b")
    def test_wrappers_nest(self, world: Any) -> None:
        env = world.env()
        inner = world.wrap(env, build=False, step_trigger=never, record_final_episode=False)
        outer = world.wrap(inner, **only_at(0))
        assert outer.env is inner
        assert outer.unwrapped is env
        world.run(outer, 8)
        steps = world.video("0.mp4").steps
        assert [*dict.fromkeys(steps)] == [0, 1, 2, 3, 4]  # each once is TIME-7's

    @pytest.mark.clause("BLD-6")
    def test_an_env_needs_no_more_than_what_is_called(self, fake: Any) -> None:
        env = fake.env()
        needed = ("dt", "num_envs", "camera", "step", "close")
        plain = SimpleNamespace(**{name: getattr(env, name) for name in needed})
        wrapper = fake.wrap(plain, build=False)
        fake.run(wrapper, 8)
        wrapper.close()
        assert wrapper.unwrapped is plain
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4], "5.mp4": [5, 6, 7]}

    @pytest.mark.clause("DEL-5a")
    @pytest.mark.parametrize("layers", [1, 2])
    def test_attribute_is_read_from_the_env(self, fake: Any, layers: int) -> None:
        env, wrapper = nested(fake, layers)
        for env.cfg in (object(), object(), None):
            assert wrapper.cfg is env.cfg
        env.camera.renders = 7
        assert wrapper.camera.renders == 7
        with pytest.raises(AttributeError, match="no_such_name"):
            wrapper.no_such_name  # noqa: B018
        assert getattr(wrapper, "no_such_name", "default") == "default"
        assert not hasattr(wrapper, "no_such_name")

    @pytest.mark.clause("DEL-5b")
    @pytest.mark.parametrize("layers", [1, 2])
    def test_attribute_is_assigned_to_the_env_that_has_it(self, fake: Any, layers: int) -> None:
        env, wrapper = nested(fake, layers)
        env.episode_length_buf = torch.zeros(3, dtype=torch.int64)
        wrapper.episode_length_buf = buffer = torch.randint(0, 9, (3,))
        assert env.episode_length_buf is buffer
        assert wrapper.episode_length_buf is buffer
        wrapper.episode_length_buf += 1  # in place, as some runners do
        assert env.episode_length_buf is buffer

    @pytest.mark.clause("DEL-5c")
    @pytest.mark.parametrize("layers", [1, 2])
    def test_attribute_that_the_env_lacks_stays_on_the_wrapper(
        self, fake: Any, layers: int
    ) -> None:
        env, wrapper = nested(fake, layers)
        wrapper.notes = value = object()
        assert wrapper.notes is value
        assert not hasattr(env, "notes")
        del wrapper.notes
        assert not hasattr(wrapper, "notes")

    @pytest.mark.clause("DEL-5d")
    @pytest.mark.parametrize("layers", [1, 2])
    def test_private_names_are_not_passed_on(self, fake: Any, layers: int) -> None:
        env, wrapper = nested(fake, layers)
        env._secret = theirs = object()
        with pytest.raises(AttributeError, match="_secret"):
            wrapper._secret  # noqa: B018
        wrapper._secret = mine = object()
        assert wrapper._secret is mine
        assert env._secret is theirs

    @pytest.mark.clause("DEL-5c")
    def test_attributes_of_the_wrapper_are_its_own(self, fake: Any) -> None:
        env = fake.env()
        env.video_length_steps, env.start_recording = "theirs", "theirs"
        wrapper = fake.wrap(env)
        assert wrapper.video_length_steps == 5
        assert callable(wrapper.start_recording)

    @pytest.mark.clause("DEL-2d")
    def test_an_env_whose_reset_takes_no_envs_can_be_reset(self, fake: Any) -> None:
        env, answer = fake.env(), (object(), {})
        env.reset = lambda: answer
        assert fake.wrap(env).reset() is answer


def frames_until_steps_wait(fake: Any) -> int:
    """Counts the frames of a recording whose encoder stands still after the first."""
    before = encoders()
    wrapper = fake.wrap(size=(640, 480), video_length_sec=5.0, step_trigger=first_only)
    fake.run(wrapper, 1)
    new = encoders() - before
    if not new:
        pytest.skip("its encoder is no process that could be stopped")
    (encoder,) = new
    os.kill(encoder, signal.SIGSTOP)
    trained = threading.Thread(target=fake.run, args=(wrapper, 20))
    trained.start()
    trained.join(1.0)
    taken = wrapper.unwrapped.camera.renders
    os.kill(encoder, signal.SIGCONT)
    trained.join()
    assert wrapper.unwrapped.camera.renders == 21
    return taken


class TestCost:
    @pytest.mark.clause("COST-1a", "COST-1b")
    @pytest.mark.parametrize("results", [4, 5])
    def test_a_step_reads_each_flag_once_and_waits_once(self, fake: Any, results: int) -> None:
        env = fake.env()
        log: list[str] = []
        if results == 4:
            four_results(env, lambda dones: dones)
        wrapper = fake.wrap(env, episode_trigger=never, record_final_episode=False)

        def count_reads(*flags: torch.Tensor) -> list[Flags]:
            counting = [flag.as_subclass(Flags) for flag in flags]
            for flag in counting:
                flag.log = log
            return counting

        env.make_flags = count_reads
        fake.run(wrapper, 1)  # whose results are looked at (EPI-7)
        log.clear()
        fake.run(wrapper, 10)
        # Each flag once at most, and one wait for all, in whatever order.
        assert log.count("read") <= 2 * 10, f"ten steps read the flags {log.count('read')} times"
        assert log.count("wait") <= 10, f"ten steps wait {log.count('wait')} times"

    @pytest.mark.clause("COST-1c")
    def test_a_step_reads_nothing_where_no_episode_is_counted(self, fake: Any) -> None:
        class Unread:
            def __getattribute__(self, name: str) -> Any:
                raise AssertionError(f"{name} of a flag was asked for")

            def __getitem__(self, index: Any) -> Any:
                raise AssertionError("a flag was read")

        env = fake.env()
        result = (None, None, Unread(), Unread(), {})
        env.step = lambda actions: result
        wrapper = fake.wrap(env, **only_at(2))
        assert all(r is result for r in fake.run(wrapper, 10))

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
        # Up to two steps more, for how long a recording is is TIME-4's.
        assert counts[:3] == [(0, 0)] * 3
        assert all(begun <= 1 and alive <= 1 for begun, alive in counts[3:20])
        assert all(begun <= 2 and alive <= 1 for begun, alive in counts[20:])
        assert all(alive == 0 for _, alive in [*counts[9:20], *counts[26:]])

    @needs_proc
    @pytest.mark.clause("COST-2b")
    def test_a_step_waits_for_an_encoder_that_stands_still(self, fake: Any) -> None:
        # The first, one that is being written, those that wait, and one whose step does.
        assert frames_until_steps_wait(fake) <= 1 + 1 + 4 + 1
