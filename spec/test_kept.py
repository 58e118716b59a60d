"""FIN-5 to FIN-11: what is kept of a real scene, to be rendered when it is saved."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import needs_genesis_1_4_5, psnr
from spec.stages import DRAWN, STAGES, Stage, count_renders, record_stage, soft_box, wrap_stage


class TestKeptForLater:
    @pytest.mark.clause("FIN-5")
    @pytest.mark.parametrize("name", STAGES)
    def test_a_background_recording_shows_what_an_active_one_shows(
        self, genesis: Any, new_stage: type[Stage], read_video: Any, tmp_path: Path, leave_to: Any,
        name: str,
    ) -> None:  # fmt: skip
        if name == "debug drawings":
            needs_genesis_1_4_5("two cameras show many debug drawings a little differently")
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

    @pytest.mark.clause("FIN-5")
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

    @pytest.mark.clause("FIN-6")
    @pytest.mark.parametrize(
        "name", [name for name in STAGES if name not in (*DRAWN, "user who renders too")]
    )
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
    def test_what_would_take_too_much_memory_is_rendered_at_once(
        self, genesis: Any, new_stage: type[Stage]
    ) -> None:
        stage = new_stage()
        renders = count_renders(stage)
        wrapper = wrap_stage(genesis, stage, video_length_sec=1e5)
        for _ in range(4):
            wrapper.step(None)
        assert len(renders) == 2
        wrapper.close()
        assert len(renders) == 2

    @pytest.mark.clause("FIN-7")
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

    @pytest.mark.clause("CLOSE-2", "FILE-4")
    def test_ctrl_c_while_the_final_episode_renders_closes_the_env(
        self, reproducible: Any, new_stage: type[Stage], leave_to: Any
    ) -> None:
        stage = new_stage()
        closed = []
        stage.close = lambda: closed.append(True)
        renders = count_renders(stage, interrupt_at=3)
        wrapper = wrap_stage(reproducible, stage)
        with contextlib.suppress(KeyboardInterrupt):
            for _ in range(12):
                wrapper.step(None)
        if renders:
            leave_to("it renders as it goes, which is FIN-6's")
        state = stage.state()
        try:
            wrapper.close()
        except KeyboardInterrupt:
            assert len(renders) == 3
        else:
            leave_to("its close() renders nothing, which is FIN-1's")
        assert closed == [True]
        assert reproducible.files() == []
        assert all(torch.equal(a, b) for a, b in zip(state, stage.state()))
