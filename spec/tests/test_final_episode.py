"""FIN-6 to FIN-11: snapshots of a real scene, which are rendered when a video is saved."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from spec.suite.child import warned
from spec.suite.genesis_scenes import Stage, attach, wrap_stage
from spec.suite.processes import check_end

# Code for `script` that makes the class of real scenes, as the implementation wants an env to be.
STAGE_CLASS = """
            import json, warnings
            from spec.suite import harness
            from spec.suite.genesis_scenes import Stage, count_renders, start_genesis, wrap_stage
            gs = start_genesis()
            stage_class = harness.env_class(Stage, sys.argv[3] and harness.load(sys.argv[3]))
"""


@pytest.mark.clause("FIN-6", "COST-10a")
@pytest.mark.parametrize("on_step", [lambda stage: None, attach], ids=["static", "attached"])
def test_nothing_is_rendered_until_it_is_saved(
    reproducible: Any, new_stage: type[Stage], monkeypatch: Any, on_step: Any
) -> None:
    stage, every = new_stage(on_step), []
    camera_class, render = type(stage.camera), type(stage.camera).render
    monkeypatch.setattr(camera_class, "render", lambda *args: every.append(args) or render(*args))
    wrapper = wrap_stage(reproducible, stage)
    wrapper.step(None)
    checks = len(stage.images()), len(every)
    assert max(checks) <= 4
    for step in range(1, 20):
        if step == 7:
            wrapper.reset()
        wrapper.step(None)
    assert (len(stage.images()), len(every)) == checks
    wrapper.close()
    assert reproducible.video("7.mp4").count == 6
    assert (len(stage.images()), len(every)) == tuple(count + 6 for count in checks)


@pytest.mark.clause("FIN-9")
def test_recording_is_cut_short_if_its_snapshots_fill_the_memory(
    reproducible: Any, new_stage: type[Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = new_stage()
    wrapper = wrap_stage(reproducible, stage, video_length_sec=24)
    memory = SimpleNamespace(available=8000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    with warned("rendered_envs_idx", "MB", count=2):  # one for each recording
        for _ in range(2):
            for _ in range(30):
                wrapper.step(None)
            wrapper.reset()
        checks = len(stage.rendered)
        wrapper.close()
    frames = reproducible.video("30.mp4").count
    assert 2 <= frames < 15
    assert frames == len(stage.rendered) - checks


@pytest.mark.clause("FIN-11a", "FIN-11b")
@pytest.mark.parametrize("gone", ["gs.destroy()", "stage.scene.destroy()"])
@pytest.mark.extended(default=["gs.destroy()"])
def test_scene_that_is_gone_gives_one_warning(
    reproducible: Any, script: Any, leave_to: Any, gone: str
) -> None:
    result = script(f"""
        {STAGE_CLASS}
        for run in range(2):
            gs._initialized or gs.init(backend=gs.cpu, logging_level="error")
            stage, closed = stage_class(), []
            stage.close = lambda: closed.append(True)
            env = wrap_stage(world, stage)
            for _ in range(12):
                env.step(None)
            is_deferred = len(stage.rendered) < 6
            {gone}
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                env.close()
            texts = [str(warning.message) for warning in found]
            print(json.dumps([is_deferred, texts, world.files(), closed]))
    """)
    check_end(result)
    for line in result.stdout.splitlines()[-2:]:
        is_deferred, texts, files, closed = json.loads(line)
        if not is_deferred or not (texts or files):
            leave_to("it does not defer rendering: FIN-1, FIN-6")
        assert len(texts) == 1 and re.search(r"0\.mp4.*close\(\)", texts[0]), texts
        assert files == [] and closed == [True]


@pytest.mark.of_module  # other classes may save snapshots in another way
@pytest.mark.clause("CLOSE-6b", "CLOSE-6c", "FIN-5b")
def test_exit_resumes_saving_after_ctrl_c(reproducible: Any, script: Any) -> None:
    result = script(f"""
        {STAGE_CLASS}
        stage = stage_class()
        stage.close = lambda: print("closed")
        env = wrap_stage(world, stage, logging=True)
        for _ in range(12):
            env.step(None)
        renders = count_renders(stage, interrupt_at=3)
        state = stage.state()
        try:
            env.close()
        except KeyboardInterrupt:
            print(len(renders), "rendered, then Ctrl-C", flush=True)
        assert all((a == b).all() for a, b in zip(state, stage.state()))
    """)
    lines = [line for line in result.stdout.splitlines() if "[Genesis]" not in line]
    assert lines[0] == "3 rendered, then Ctrl-C", result.stdout + result.stderr[-2000:]
    assert len([line for line in lines if line.startswith("Saved")]) == 1
    assert result.world.video("0.mp4").count == 6


@pytest.mark.clause("FAIL-6b", "FAIL-6c")
def test_full_device_ends_the_recording_and_frames_are_saved(
    reproducible: Any, new_stage: type[Stage], leave_to: Any, monkeypatch: Any
) -> None:
    stage, fail = new_stage(), Mock(side_effect=torch.OutOfMemoryError("out of memory"))
    wrapper = wrap_stage(reproducible, stage)
    for step in range(16):
        with monkeypatch.context() as patch, warned("memory", count=int(step == 8)):
            if step == 8:
                patch.setattr(stage.scene.rigid_solver, "update_vgeoms", fail)
            wrapper.step(None)
        if step in (0, 2, 4, 6):
            stage.look("camera")
    count = len(stage.rendered)
    wrapper.close()
    if len(stage.rendered) == count:
        leave_to("it does not defer rendering: FIN-6")
    assert reproducible.video("0.mp4").count == 4
    assert np.array_equal(stage.images()[count:], stage.seen)
