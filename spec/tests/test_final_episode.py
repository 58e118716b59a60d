"""FIN-5 to FIN-11: what is kept of a real scene, to be rendered when it is saved."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from spec.suite.genesis_scenes import (
    STAGES,
    Stage,
    count_renders,
    needs_genesis,
    record_stage,
    soft_box,
    wrap_stage,
)
from spec.suite.processes import check_end
from spec.suite.video_reader import psnr

# What makes real scenes in a process that `script` starts, as the implementation wants an env to be.
STAGE_CLASS = """
            from spec.suite.genesis_scenes import Stage, count_renders, wrap_stage
            gs = genesis_scenes.start_genesis()
            stage_class = harness.env_class(Stage, sys.argv[3] and harness.load(sys.argv[3]))
"""


class TestKeptForLater:
    @pytest.mark.clause("FIN-5a", "FIN-5b")
    @pytest.mark.parametrize("name", STAGES)
    @pytest.mark.extended(
        default=["static camera", "following camera, smoothing", "debug drawings"]
    )
    def test_a_background_recording_shows_what_an_active_one_shows(
        self, genesis: Any, new_stage: type[Stage], read_video: Any, tmp_path: Path, leave_to: Any,
        name: str,
    ) -> None:  # fmt: skip
        if name == "debug drawings":
            needs_genesis("1.3.3", "two cameras show many debug drawings a little differently")
        seen, kept = new_stage(**STAGES[name]), new_stage(**STAGES[name])
        wanted = read_video(record_stage(genesis, seen, "active", tmp_path / "a", leave_to))
        video = read_video(record_stage(genesis, kept, "background", tmp_path / "b", leave_to))
        assert video.count == wanted.count > 4
        # The encoder gives the same for the same, so that one pixel's difference would show.
        assert all(np.array_equal(a, b) for a, b in zip(video.frames, wanted.frames))
        assert psnr(wanted.frames[0], wanted.frames[-1]) < 40  # the bodies do move
        for _ in range(100):
            seen.step()
            kept.step()
            assert all(torch.equal(a, b) for a, b in zip(seen.state(), kept.state()))
        assert np.array_equal(np.array(seen.camera.render()[0]), np.array(kept.camera.render()[0]))

    @pytest.mark.clause("FIN-5a")
    def test_what_cannot_be_rendered_later_is_recorded_all_the_same(
        self, genesis: Any, new_stage: type[Stage], read_video: Any, tmp_path: Path, leave_to: Any
    ) -> None:
        stages = {type: new_stage(n_envs=1, add=soft_box) for type in ("active", "background")}
        wanted, video = (
            read_video(record_stage(genesis, stage, type, tmp_path / type, leave_to))
            for type, stage in stages.items()
        )
        assert video.count == wanted.count > 4
        assert all(np.array_equal(a, b) for a, b in zip(video.frames, wanted.frames))

    @pytest.mark.clause("FIN-6", "COST-10a")
    @pytest.mark.parametrize("name", [name for name in STAGES if name != "user who renders too"])
    @pytest.mark.extended(default=["static camera", "attached camera"])
    def test_nothing_is_rendered_until_it_is_saved(
        self, reproducible: Any, new_stage: type[Stage], leave_to: Any, name: str
    ) -> None:
        stage = new_stage(**STAGES[name])
        renders = count_renders(stage)
        wrapper = wrap_stage(reproducible, stage)
        for _ in range(20):
            wrapper.step(None)
        assert renders == []
        wrapper.close()
        if not reproducible.files():
            leave_to("it saves no final episode, which is FIN-1's")
        assert len(renders) == 6

    @pytest.mark.clause("FIN-9")
    def test_what_would_take_too_much_memory_is_cut_short_with_a_warning(
        self, reproducible: Any, new_stage: type[Stage], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import psutil

        stage = new_stage()
        renders = count_renders(stage)
        wrapper = wrap_stage(reproducible, stage, video_length_sec=24)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8_000))
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            for _ in range(60):
                wrapper.step(None)
                if stage.t % 30 == 0:
                    wrapper.reset()
            assert renders == []
            wrapper.close()
        said = [str(warning.message) for warning in found]
        assert len(said) == 2  # one for each recording that is cut short
        assert all("rendered_envs_idx" in words and "MB" in words for words in said)
        count = reproducible.video("30.mp4").count
        assert 2 <= count == len(renders) < 15

    @pytest.mark.clause("FIN-10")
    def test_what_must_be_rendered_as_it_goes_says_so_once(
        self, genesis: Any, new_stage: type[Stage]
    ) -> None:
        stage = new_stage(n_envs=1, add=soft_box)
        renders = count_renders(stage)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            wrapper = wrap_stage(genesis, stage)
            for _ in range(3):
                for _ in range(4):
                    wrapper.step(None)
                wrapper.reset()
            wrapper.close()
        assert len(renders) == 6
        (words,) = [str(warning.message) for warning in found]
        assert "record_final_episode=False" in words and "soft bodies" in words

    @pytest.mark.clause("FIN-11a", "FIN-11b")
    @pytest.mark.parametrize("gone", ["gs.destroy()", "stage.scene.destroy()"])
    @pytest.mark.extended(default=["gs.destroy()"])
    def test_a_scene_that_is_gone_gives_one_warning_and_the_env_is_closed(
        self, reproducible: Any, script: Any, leave_to: Any, gone: str
    ) -> None:
        code = f"""
            import json, warnings
            {STAGE_CLASS}
            for run in range(2):
                gs._initialized or gs.init(backend=gs.cpu, logging_level="error")
                stage, closed = stage_class(), []
                stage.close = lambda: closed.append(True)
                renders = count_renders(stage)
                env = wrap_stage(world, stage)
                for _ in range(6):
                    env.step(None)
                kept = not renders
                {gone}
                with warnings.catch_warnings(record=True) as found:
                    warnings.simplefilter("always")
                    env.close()
                said = [str(warning.message) for warning in found]
                print(json.dumps([kept, said, world.files(), closed]))
        """
        result = script(code, timeout=600)
        check_end(result)
        for line in result.stdout.splitlines()[-2:]:
            kept, said, files, closed = json.loads(line)
            if not kept or not (said or files):
                leave_to("it keeps no frames until they are saved: FIN-1, FIN-6")
            assert len(said) == 1 and "0.mp4" in said[0], f"one warning was wanted, and not {said}"
            assert "close()" in said[0], f"that close() comes first was wanted, and not {said}"
            assert files == [] and closed == [True]

    @pytest.mark.clause("LOG-1c")
    def test_close_says_how_far_it_is(
        self, reproducible: Any, new_stage: type[Stage], leave_to: Any,
        capsys: pytest.CaptureFixture,
    ) -> None:  # fmt: skip
        stage = new_stage()
        renders = count_renders(stage, seconds=1.5)
        wrapper = wrap_stage(reproducible, stage, logging=True)
        for _ in range(12):
            wrapper.step(None)
        before = len(renders)
        wrapper.close()
        if len(renders) == before:
            leave_to("its close() renders nothing: FIN-1 or FIN-6")
        assert len(renders) == 6
        progress, saved = capsys.readouterr().out.splitlines()
        assert re.search(r"0\.mp4.*\b[1-5]\b.*\b6\b", progress)
        assert "Saved" in saved

    @pytest.mark.of_module  # what it counts is how this module saves what it keeps
    @pytest.mark.clause("CLOSE-6b", "CLOSE-6c", "FIN-5b")
    @pytest.mark.parametrize("end", ["close", "exit"])
    @pytest.mark.extended(default=["close"])
    def test_saving_goes_on_after_ctrl_c_with_the_next_close_or_the_end(
        self, reproducible: Any, script: Any, end: str
    ) -> None:
        code = f"""
            {STAGE_CLASS}
            stage = stage_class()
            stage.close = lambda: print("closed", flush=True)
            renders = count_renders(stage, interrupt_at=3)
            env = wrap_stage(world, stage, logging=True)
            try:
                for _ in range(12):
                    env.step(None)
                state = stage.state()
                env.close()
            except KeyboardInterrupt:
                print(len(renders), "rendered, then Ctrl-C", flush=True)
            if {end == "close"}:
                env.close()
                print(len(renders), "rendered")
            assert all((a == b).all() for a, b in zip(state, stage.state()))
        """
        result = script(code, timeout=600)
        lines = [line for line in result.stdout.splitlines() if "[Genesis]" not in line]
        assert lines[0] == "3 rendered, then Ctrl-C", result.stdout + result.stderr[-2000:]
        saved = [line for line in lines if line.startswith("Saved")]
        assert len(saved) == 1 and result.world.video("0.mp4").count == 6
        if end == "close":  # the picture that was interrupted is rendered once more, and no other
            assert lines[-2:] == ["closed", "7 rendered"]

    @pytest.mark.clause("FAIL-6b", "FAIL-6c")
    def test_a_device_that_is_full_ends_the_recording_and_what_it_has_is_saved(
        self, reproducible: Any, new_stage: type[Stage], monkeypatch: pytest.MonkeyPatch,
        leave_to: Any,
    ) -> None:  # fmt: skip
        def fail(*_: Any) -> None:
            raise torch.OutOfMemoryError("out of memory")

        stage = new_stage()
        renders = count_renders(stage)
        wrapper = wrap_stage(reproducible, stage)
        for _ in range(8):
            wrapper.step(None)
        if renders:
            leave_to("it keeps no frames until it is saved: FIN-6")
        monkeypatch.setattr(stage.scene.rigid_solver, "update_vgeoms", fail)
        with pytest.warns(RuntimeWarning, match="out of memory"):
            wrapper.step(None)
        for _ in range(8):
            wrapper.step(None)
        monkeypatch.undo()
        wrapper.close()
        assert reproducible.video("0.mp4").count == 4
