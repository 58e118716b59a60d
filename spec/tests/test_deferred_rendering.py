"""`_DeferredRenderer` on real scenes, compared bit for bit with an eager reference.

The eager reference is the same scene, whose camera renders each frame at its step. The frames, what
the env itself renders with that camera, and the simulation must equal those of the reference. Other
cameras must give the images of a bare run, the same scene without any recording.
"""

from __future__ import annotations

import contextlib
import functools
import math
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spec.suite.genesis_scenes import (
    Stage,
    attach,
    collision_box,
    draw_sphere,
    draw_sphere_late,
    follow,
    installed,
    kinematic_box,
    move_ghost,
    needs_genesis,
    orbit,
    render_and_reset,
    reset_now_and_then,
    start_genesis,
)
from video_wrapper import _CannotDefer, _DeferredRenderer

pytestmark = [pytest.mark.of_module, pytest.mark.extended]

RELEASE = tuple(map(int, installed("genesis-world").split(".")[:3]))
STEPS = 12
# Before Genesis 1.3.3, two eager references differ by some pixels now and then, too.
NOISE = 0.01 if RELEASE < (1, 3, 3) else 0


class Deferred(_DeferredRenderer):
    """Has snapshots that say what they take, and that can be given to `render`."""

    def snapshot(self) -> Any:
        render, nbytes = super().snapshot()
        render.nbytes = nbytes
        return render

    def render(self, snapshot: Any, is_check: bool = False) -> Any:
        if isinstance(snapshot, functools.partial):
            return snapshot()
        return super().render(snapshot, is_check)


def both(*functions: Callable[[Stage], Any]) -> Callable[[Stage], None]:
    def run(stage: Stage) -> None:
        for function in functions:
            function(stage)

    return run


def draw_arrow(stage: Stage) -> None:
    """An arrow that is drawn anew each step, as command managers do."""
    stage.scene.clear_debug_objects()
    angle = 0.3 * stage.t
    vec = (0.5 * math.cos(angle), 0.5 * math.sin(angle), 0.1)
    stage.scene.draw_debug_arrow((0, 0, 0.6), vec, radius=0.03, color=(0, 0.5, 1, 0.7))


def draw_passing(stage: Stage) -> None:
    """A drawing that Genesis, from 1.4.5, clears with the next step."""
    context = stage.scene.visualizer.context
    if stage.t % 3 == 1:
        sphere = context.make_debug_sphere((0, 0, 0.6), 0.2, (1, 0, 0, 1))
        context.add_debug_node(sphere, persistent=False)


def draw_glass(stage: Stage) -> None:
    """See-through balls at one distance from the camera, drawn in the order in which they came."""
    stage.scene.clear_debug_objects()
    for i in range(3):
        radius = 0.2 + 0.05 * ((i + stage.t) % 3)
        color = (i == 0, i == 1, i == 2, 0.5)
        stage.scene.draw_debug_sphere((0.02 * stage.t, 0, 0.5), radius=radius, color=color)


def draw_frame(stage: Stage) -> None:
    stage.scene.clear_debug_objects()
    pose = np.eye(4)
    pose[:3, 3] = (0.1 * stage.t - 0.5, 0, 0.4)
    stage.scene.draw_debug_frame(pose, axis_length=0.4)


def draw_once(stage: Stage) -> None:
    stage.ball = stage.scene.draw_debug_sphere((0, 0, 0.5), radius=0.1, color=(0, 1, 0, 1))


def move_drawing(stage: Stage) -> None:
    """By an array that is used again, and that Genesis takes as it is."""
    if stage.t == 1:
        count = len(stage.ball.primitives[0].poses)
        stage.poses = np.tile(np.eye(4, dtype=np.float32), (count, 1, 1))
    stage.poses[:, :3, 3] = (0.1 * stage.t - 0.5, 0.2, 0.5)
    stage.scene.visualizer.context.update_debug_objects((stage.ball,), (stage.poses,))


def move_node(stage: Stage) -> None:
    context = stage.scene.visualizer.context
    pose = np.eye(4)
    pose[:3, 3] = (0, 0.05 * stage.t, 0)
    context.set_node_pose(context.external_nodes[stage.ball.name], pose=pose)


def clear_late(stage: Stage) -> None:
    if stage.t == 7:
        stage.scene.clear_debug_object(stage.ball)


def render_side(stage: Stage) -> None:
    stage.seen.append(np.array(stage.side_camera.render()[0]))


def render_own(stage: Stage) -> None:
    stage.seen.append(np.array(stage.camera.render()[0]))


def render_side_now_and_then(stage: Stage) -> None:
    if stage.t % 3 == 1:
        render_side(stage)


def side_follows(stage: Stage) -> None:
    """Have the other camera follow another body, with smoothing of its own."""
    stage.side_camera.follow_entity(stage.boxes[1], smoothing=0.6)


def teleport(stage: Stage) -> None:
    if stage.t == 5:
        stage.camera.set_pose(pos=(-1.5, 2, 1.5), lookat=(0, 0, 0.3))


def follow_another(stage: Stage) -> None:
    if stage.t == 5:
        stage.camera.follow_entity(stage.boxes[2], smoothing=0.5)


def unfollow(stage: Stage) -> None:
    if stage.t == 5:
        stage.camera.unfollow_entity()


def detach(stage: Stage) -> None:
    if stage.t == 5:
        stage.camera.detach()


def move_a_box(stage: Stage) -> None:
    stage.boxes[2].set_pos(stage.each([0.3, 0.05 * stage.t, 0.5]))


def reset_all(stage: Stage) -> None:
    if stage.t % 5 == 0:
        stage.scene.reset()


def reset_some(stage: Stage) -> None:
    if stage.t % 5 == 0:
        stage.scene.reset(envs_idx=[1])


def save_state(stage: Stage) -> None:
    for _ in range(4):
        stage.scene.step()
    stage.saved = stage.scene.get_state()


def reset_to_state(stage: Stage) -> None:
    if stage.t % 5 == 0:
        stage.scene.reset(stage.saved)


def change_fov(stage: Stage) -> None:
    stage.camera._fov = 30 + 2 * stage.t


def change_light(stage: Stage) -> None:
    scene = stage.scene.visualizer.context._scene
    for node in scene.light_nodes:
        node.light.intensity = 5.0 - 0.4 * stage.t
        node.light.color = (1.0, 0.5, 0.05 * stage.t)
    scene.ambient_light = (0.02 * stage.t, 0.1, 0.1)
    scene.bg_color = (0.05 * stage.t, 0.1, 0.1, 1.0)


def turn_light(stage: Stage) -> None:
    scene = stage.scene.visualizer.context._scene
    for node in list(scene.light_nodes):
        matrix = node.matrix
        angle = 0.1 * stage.t
        matrix[:3, :3] = [
            [math.cos(angle), 0, math.sin(angle)],
            [0, 1, 0],
            [-math.sin(angle), 0, math.cos(angle)],
        ]
        scene.set_pose(node, matrix)


def small_floor(stage: Stage) -> None:
    gs = start_genesis()
    stage.floor = stage.scene.add_entity(gs.morphs.Plane(plane_size=(1.2, 1.2), pos=(0, 0, 0.02)))


def reflect(stage: Stage) -> None:
    """Has floors reflect under software OpenGL, too, where Genesis leaves it out, as it does shadows."""
    stage.scene.visualizer.rasterizer._renderer._is_software = False


def raise_floor(stage: Stage) -> None:
    stage.floor.set_pos(stage.each([0, 0, 0.02 + 0.03 * stage.t]))


def switch_reflection(stage: Stage) -> None:
    stage.scene.visualizer.context.plane_reflection = stage.t < 7


def heterogeneous(stage: Stage) -> None:
    gs = start_genesis()
    morphs = [
        gs.morphs.Box(size=(0.3,) * 3, pos=(0.4, 0.4, 0.4)),
        gs.morphs.Sphere(radius=0.2, pos=(0.4, 0.4, 0.4)),
    ]
    stage.mixed = stage.scene.add_entity(morphs)


def hidden_box(stage: Stage) -> None:
    gs = start_genesis()
    morph = gs.morphs.Box(size=(0.2,) * 3, pos=(-0.4, 0.4, 0.4), visualization=False)
    stage.scene.add_entity(morph)


def contact_box(stage: Stage) -> None:
    gs = start_genesis()
    morph = gs.morphs.Box(size=(0.2,) * 3, pos=(-0.4, 0.4, 0.2))
    stage.scene.add_entity(morph, visualize_contact=True)


DEBUG = {"camera": {"debug": True}}
REFLECTING = {"plane_reflection": True, "shadow": False}
CASES: dict[str, dict[str, Any]] = {
    "still camera": {},
    "no batch dimension": {"n_envs": 0},
    "set_pose each step": {"on_step": orbit},
    "stride 2": {"stride": 2},
    "stride 3, following, smoothing": {"stride": 3, "setup": follow(smoothing=0.8)},
    "following": {"setup": follow()},
    "following, stride 2": {"setup": follow(), "stride": 2},
    "following, smoothing": {"setup": follow(smoothing=0.8)},
    "following, fixed axis": {"setup": follow(fixed_axis=(None, None, 1.0))},
    "following, fixed orientation": {"setup": follow(fix_orientation=True)},
    "following, smoothing, fixed orientation": {
        "setup": follow(smoothing=0.8, fix_orientation=True)
    },
    "two cameras following, smoothing": {
        "setup": both(follow(smoothing=0.8), side_follows),
        "on_step": render_side_now_and_then,
    },
    "two cameras following, smoothing, rendered after": {
        "setup": both(follow(smoothing=0.8), side_follows),
        "on_frame": both(render_side_now_and_then, move_a_box),
    },
    "following, set_pose later": {"setup": follow(), "on_step": teleport},
    "following, smoothing, set_pose later": {"setup": follow(smoothing=0.8), "on_step": teleport},
    "following, then another": {"setup": follow(smoothing=0.8), "on_step": follow_another},
    "following, then no more": {"setup": follow(smoothing=0.8), "on_step": unfollow},
    "following, smoothing, stride 3, rendered after": {
        "setup": follow(smoothing=0.8),
        "stride": 3,
        "on_frame": render_own,
    },
    "attached, then detached": {"setup": attach, "on_step": detach},
    "attached": {"setup": attach},
    "attached, stride 2": {"setup": attach, "stride": 2},
    "camera of an env": {"n_envs": 3, "camera": {"env_idx": 2}},
    "some envs rendered": {
        "n_envs": 4,
        "scene": {"rendered_envs_idx": [1, 3]},
        "camera": {"env_idx": 3},
        "setup": follow(smoothing=0.5),
    },
    "one env rendered": {"n_envs": 4, "scene": {"rendered_envs_idx": [2]}},
    "each env apart": {"n_envs": 3, "scene": {"rendered_envs_idx": [0, 2], "split_envs": True}},
    "each env apart, following, smoothing": {
        "n_envs": 3,
        "scene": {"rendered_envs_idx": [0, 2], "split_envs": True},
        "setup": follow(smoothing=0.5),
    },
    "each env apart, attached": {"scene": {"split_envs": True}, "setup": attach},
    # Beside a body without visual geometry, of which a solver has two lists.
    "collision geometry": {"add": both(hidden_box, collision_box)},
    "collision geometry, a body moved after rendering": {
        "add": collision_box,
        "on_step": both(render_side, move_a_box),
    },
    "kinematic": {"add": kinematic_box, "on_step": move_ghost},
    "heterogeneous": {"add": heterogeneous},
    "heterogeneous, some envs rendered": {
        "n_envs": 4,
        "scene": {"rendered_envs_idx": [0, 3]},
        "add": heterogeneous,
    },
    "hidden": {"add": hidden_box},
    "a body moved after the step": {"on_step": move_a_box},
    "rendered before": {"on_step": render_own},
    "rendered before by another": {"on_step": render_side},
    "rendered before, then a body moved": {"on_step": both(render_own, move_a_box)},
    "rendered now and then, reset": {"on_step": render_and_reset, "setup": follow(smoothing=0.8)},
    "rendered after": {"on_frame": render_own},
    "rendered after, following, smoothing": {
        "setup": follow(smoothing=0.8),
        "on_frame": render_own,
    },
    "rendered before and after, following, smoothing": {
        "setup": follow(smoothing=0.8),
        "on_step": lambda stage: stage.t % 2 and render_own(stage),
        "on_frame": render_own,
    },
    "rendered after by another, smoothing": {
        "setup": follow(smoothing=0.8),
        "on_frame": render_side,
    },
    "reset of some bodies": {"on_step": reset_now_and_then},
    "reset of all": {"on_step": reset_all},
    "reset of all, following, smoothing": {"on_step": reset_all, "setup": follow(smoothing=0.8)},
    "reset of some envs": {"on_step": reset_some},
    "reset to a state": {"setup": save_state, "on_step": reset_to_state},
    "fov changed": {"on_step": change_fov},
    "lights changed": {"on_step": change_light},
    "light turned": {"on_step": turn_light},
    "passing drawing": {**DEBUG, "on_step": both(draw_passing, orbit)},
    "drawings redrawn": {**DEBUG, "on_step": draw_arrow},
    "drawings that are seen through": {**DEBUG, "on_step": draw_glass},
    "drawings redrawn, following": {**DEBUG, "on_step": draw_arrow, "setup": follow()},
    "drawings adding up": {**DEBUG, "on_step": draw_sphere},
    "drawing late": {**DEBUG, "on_step": draw_sphere_late},
    "drawing moved": {**DEBUG, "setup": draw_once, "on_step": move_drawing},
    "drawing's node moved": {**DEBUG, "setup": draw_once, "on_step": move_node},
    "drawing cleared": {**DEBUG, "setup": draw_once, "on_step": clear_late},
    "drawings, each env apart": {**DEBUG, "scene": {"split_envs": True}, "on_step": draw_arrow},
    "drawings unseen": {"on_step": draw_arrow},
    "frame redrawn": {**DEBUG, "on_step": draw_frame},
    "world and link frames": {
        **DEBUG,
        "scene": {"show_world_frame": True, "show_link_frame": True},
    },
    "contact arrows": {**DEBUG, "add": contact_box},
    "contact arrows, rendered after": {**DEBUG, "add": contact_box, "on_frame": render_own},
    "no shadow, no reflection": {"scene": {"shadow": False, "plane_reflection": False}},
    "reflection": {
        "scene": REFLECTING,
        "add": small_floor,
        "setup": reflect,
        "on_step": raise_floor,
    },
    "reflection, rendered before": {
        "scene": REFLECTING,
        "add": small_floor,
        "setup": reflect,
        "on_step": both(raise_floor, render_own),
    },
    "reflection, link frames": {
        **DEBUG,
        "scene": {**REFLECTING, "show_link_frame": True},
        "add": small_floor,
        "setup": reflect,
        "on_step": raise_floor,
    },
    "reflection switched off": {
        "scene": REFLECTING,
        "setup": reflect,
        "on_step": switch_reflection,
    },
}


def make(case: dict[str, Any], **more: Any) -> Stage:
    options = {k: v for k, v in case.items() if k not in ("stride", "on_frame")}
    stage = Stage.__new__(Stage)
    stage.seen = []
    stage.__init__(**{**options, **more})
    return stage


def play(
    stage: Stage, case: dict[str, Any], record: Callable[[], Any], steps: int = STEPS
) -> list[Any]:
    """Step the stage as `VideoWrapper.step` does, and record each due frame."""
    recorded, deferred = [], getattr(record, "__self__", None)
    for step in range(steps):
        if isinstance(deferred, Deferred):
            deferred.move_camera()
        stage.step()
        if step % case.get("stride", 1) == 0:
            recorded.append(record())
        case.get("on_frame", lambda stage: None)(stage)
    return recorded


def eager(stage: Stage) -> Callable[[], np.ndarray]:
    return lambda: np.array(stage.camera.render()[0])


def render_all(deferred: Deferred, snapshots: list[Any]) -> list[np.ndarray]:
    return [np.array(deferred.render(snapshot)[0]) for snapshot in snapshots]


def assert_equal(frames: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Compare frames bit for bit, except where two eager references differ, too."""
    differences = [float((a != b).mean()) for a, b in zip(frames, expected, strict=True)]
    assert max(differences, default=0) <= NOISE, differences


@functools.cache
def eager_frames(name: str) -> list[np.ndarray]:
    stage = make(CASES[name])
    return play(stage, CASES[name], eager(stage))


def note_shadows(stage: Stage) -> list[list[np.ndarray]]:
    """Return a list that gets, for each image of the camera, what Genesis fits shadows to.

    Genesis draws no shadows under software OpenGL, so images do not show whether they are right.
    """
    noted: list[list[np.ndarray]] = []
    render, context = stage.camera.render, stage.scene.visualizer.context

    def render_and_note() -> Any:
        image = render()
        values = context._scene.bounds, context.jit.light, context.jit.light_matrix
        noted.append([np.array(value) for value in values])
        return image

    stage.camera.render = render_and_note
    return noted


# Before Genesis 1.3.3, two eager references of these differ.
UNSTEADY = (
    "drawings that are seen through",
    "reflection",
    "reflection, rendered before",
    "reflection, link frames",
)


@pytest.mark.clause("FIN-5a", "FIN-5b", "FIN-5c")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.extended(
    default=[
        "still camera",
        "following, smoothing",
        "attached",
        "each env apart",
        "drawings redrawn, following",
        "contact arrows",
    ]
)
def test_deferred_frames_match_eager_rendering(genesis: Any, name: str) -> None:
    if name in UNSTEADY:
        needs_genesis("1.3.3", "two eager references differ")
    if name == "passing drawing":
        needs_genesis("1.4.5", "drawings do not pass with a step")
    case = CASES[name]
    reference = make(case)
    noted = note_shadows(reference)
    frames = play(reference, case, lambda: (np.array(reference.camera.render()[0]), noted[-1]))
    expected, expected_shadows = zip(*frames)
    assert any((a != expected[0]).any() for a in expected)
    stage = make(case)
    deferred = Deferred(stage.scene, stage.camera)
    snapshots = play(stage, case, deferred.snapshot)
    shadows = note_shadows(stage)
    assert_equal(render_all(deferred, snapshots), expected)
    for values, expected_values in zip(shadows, expected_shadows, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(values, expected_values, strict=True))
    expected_seen, cameras = reference.seen, ["camera", "side_camera"]
    if stage.side_camera._followed_entity is not None:
        # Rendering moves each camera that follows, and a snapshot none but its own.
        bare = make(case)
        play(bare, case, lambda: None)
        expected_seen, cameras = bare.seen, ["camera"]
    assert_equal(stage.seen, expected_seen)  # what the env rendered itself
    for _ in range(3):
        deferred.move_camera()
        stage.step()
        reference.step()
        assert all(torch.equal(a, b) for a, b in zip(stage.state(), reference.state()))
    for attribute in cameras:
        images = [np.array(getattr(s, attribute).render()[0]) for s in (stage, reference)]
        assert_equal(images[:1], images[1:])


INFERENCE = ["step and snapshot", "build, step and snapshot", "render", "all", "now and then"]


@pytest.mark.clause("FIN-5a")
@pytest.mark.parametrize("name", ["still camera", "following", "drawings redrawn, following"])
@pytest.mark.parametrize("inference", [*INFERENCE, "snapshot"])
def test_inference_mode_makes_no_difference(genesis: Any, name: str, inference: str) -> None:
    """rsl_rl steps envs in inference mode, and their rewards read the poses of geometry."""

    def mode(word: str) -> Any:
        return torch.inference_mode(word in inference or inference == "all")

    case, steps = CASES[name], []
    with mode("build"):
        stage = make(case)
    deferred = Deferred(stage.scene, stage.camera)
    for step in range(STEPS):
        is_inference = step % 3 == 0 if inference == "now and then" else None
        with mode("step") if is_inference is None else torch.inference_mode(is_inference):
            stage.boxes[0].geoms[0].get_pos()
            deferred.move_camera()
            stage.step()
            with mode("snapshot") if is_inference is None else contextlib.nullcontext():
                steps.append(deferred.snapshot())
        if inference == "snapshot":
            stage.side_camera.render()
            stage.camera.render()
    with mode("render"):
        frames = render_all(deferred, steps)
    assert_equal(frames, eager_frames(name))
    with mode("step"):
        stage.step()
        stage.camera.render()


@pytest.mark.clause("FIN-5b", "FIN-5c")
@pytest.mark.parametrize(
    "name",
    [
        "still camera",
        "following, smoothing",
        "attached",
        "drawings redrawn, following",
        "contact arrows",
        "each env apart, following, smoothing",
        "a body moved after the step",
    ],
)
def test_other_cameras_and_simulation_notice_nothing(genesis: Any, name: str) -> None:
    """The other camera follows with smoothing, and renders now and then, also after a frame."""

    def look(stage: Stage) -> None:
        if stage.t % 3 == 0:
            move_a_box(stage)
            render_side(stage)

    case = CASES[name]
    setup = both(side_follows, case.get("setup", lambda stage: None))
    bare, stage = make(case, setup=setup), make(case, setup=setup)
    bare.t = stage.t = 0
    deferred = Deferred(stage.scene, stage.camera)
    snapshots = []
    for _ in range(STEPS):
        bare.step()
        look(bare)
        stage.step()
        poses = [[np.array(p) for p in pose_of(c)] for c in (stage.camera, stage.side_camera)]
        snapshots.append(deferred.snapshot())
        for camera, pose in zip((stage.camera, stage.side_camera), poses):
            assert all(np.array_equal(a, b) for a, b in zip(pose_of(camera), pose, strict=True))
        look(stage)
        assert all(torch.equal(a, b) for a, b in zip(bare.state(), stage.state()))
    render_all(deferred, snapshots[::4])
    for _ in range(3):
        for each in bare, stage:
            each.step()
            render_side(each)
            render_own(each)
    assert_equal(stage.seen, bare.seen)
    assert all(torch.equal(a, b) for a, b in zip(bare.state(), stage.state()))


def pose_of(camera: Any) -> list[Any]:
    return [getattr(camera, name) for name in _DeferredRenderer.POSE]


@pytest.mark.clause("FIN-5a")
@pytest.mark.parametrize("setup", [follow(smoothing=0.8), follow(), attach])
def test_active_frames_go_on_from_background_frames(genesis: Any, setup: Any) -> None:
    """Background, active and background frames, as if all had been rendered at their steps."""
    reference, stage = make({}, setup=setup), make({}, setup=setup)
    expected = play(reference, {}, eager(reference), 18)
    deferred = Deferred(stage.scene, stage.camera)
    snapshots = play(stage, {}, deferred.snapshot, 6)
    deferred.move_camera()
    frames = play(stage, {}, eager(stage), 6)
    snapshots += play(stage, {}, deferred.snapshot, 6)
    frames[:0] = render_all(deferred, snapshots[:6])
    frames += render_all(deferred, snapshots[6:])
    assert_equal(frames, expected)


@pytest.mark.clause("FIN-6")
def test_only_self_checks_render_at_a_snapshot(genesis: Any, monkeypatch: Any) -> None:
    stage = make({})
    renders = []
    render = type(stage.camera).render
    monkeypatch.setattr(
        type(stage.camera), "render", lambda camera: renders.append(stage.t) or render(camera)
    )
    deferred = Deferred(stage.scene, stage.camera)
    assert renders == []
    snapshots = play(stage, {}, deferred.snapshot, 20)
    assert renders == [1, 1, 1, 1]
    renders.clear()
    deferred.render(snapshots[7])
    assert renders == [20]


@pytest.mark.clause("FIN-9")
def test_snapshots_count_their_bytes(genesis: Any) -> None:
    stage = make(CASES["drawings adding up"])
    deferred = Deferred(stage.scene, stage.camera)
    sizes = [snapshot.nbytes for snapshot in play(stage, {}, deferred.snapshot)]
    mesh = stage.scene.draw_debug_sphere((0, 0, 0), radius=0.1).primitives[0]
    assert all(mesh.positions.nbytes < size < 6 * mesh.positions.nbytes for size in sizes)
    bare = make({})
    deferred = Deferred(bare.scene, bare.camera)
    assert all(200 < s.nbytes < 2000 for s in play(bare, {}, deferred.snapshot))


def update_no_bodies(stage: Stage, monkeypatch: Any) -> None:
    context = type(stage.scene.visualizer.context)
    monkeypatch.setattr(context, "update_rigid", lambda context: None)


def keep_camera_elsewhere(stage: Stage, monkeypatch: Any) -> None:
    elsewhere = stage.camera.transform
    monkeypatch.setattr(type(stage.camera), "transform", elsewhere)


def keep_poses_elsewhere(stage: Stage, monkeypatch: Any) -> None:
    context = stage.scene.visualizer.context
    shown = type(context).__dict__["update_rigid"]
    monkeypatch.setattr(type(context), "update_rigid", lambda _: shown(context))


def update_at_each_render(stage: Stage, monkeypatch: Any) -> None:
    context = type(stage.scene.visualizer.context)
    update = context.update
    monkeypatch.setattr(context, "update", lambda context, *_: update(context, force_render=True))


FAULTS = [update_no_bodies, keep_camera_elsewhere, keep_poses_elsewhere, update_at_each_render]


@pytest.mark.clause("FIN-5a")
@pytest.mark.parametrize("name", ["still camera", "drawing cleared", "contact arrows"])
def test_first_snapshot_finds_another_genesis_though_all_stands_still(
    genesis: Any, name: str
) -> None:
    """One scene, which no fault harms, since there is no step and no frame that is kept."""
    needs_genesis("1.4.2", "bodies are not moved for a check")
    stage = make(CASES[name])
    missed = []
    for fault in FAULTS:
        with pytest.MonkeyPatch.context() as monkeypatch:
            fault(stage, monkeypatch)
            try:
                Deferred(stage.scene, stage.camera).snapshot()
                missed.append(fault.__name__)
            except _CannotDefer:
                pass
    Deferred(stage.scene, stage.camera).snapshot()
    assert not missed


@pytest.mark.clause("FIN-5a")
def test_cannot_defer_names_what_this_genesis_lacks(genesis: Any) -> None:
    stage = make({})
    stage.step()
    names = ["genesis.vis.rasterizer_context.RasterizerContext.update_rigid"]
    if RELEASE >= (1, 4, 2):
        names += ["genesis.utils.misc.qd_to_torch"]
    for name in names:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.delattr(name)
            with pytest.raises(_CannotDefer, match=name.rpartition(".")[2]):
                Deferred(stage.scene, stage.camera).snapshot()
    Deferred(stage.scene, stage.camera).snapshot()


@pytest.mark.clause("FIN-5a")
def test_cannot_defer_says_why(genesis: Any) -> None:
    gs = start_genesis()
    camera_class = sys.modules["genesis.vis.camera"].Camera

    def soft(stage: Stage) -> None:
        morph = gs.morphs.Box(size=(0.1,) * 3, pos=(0.5, 0.5, 0.5))
        stage.scene.add_entity(morph, material=gs.materials.MPM.Elastic())

    class OwnCamera(camera_class):
        def render(self, *args: Any, **options: Any) -> Any:
            return super().render(*args, **options)

    class SameCamera(camera_class):
        pass

    stage, other = make({}), make({"add": soft, "n_envs": 1})
    for scene, camera, words in (
        (other.scene, other.camera, "soft bodies"),
        (stage.scene, other.camera, "another scene"),
        (stage.scene, object(), "object renders in its own way"),
    ):
        with pytest.raises(_CannotDefer, match=words):
            Deferred(scene, camera).snapshot()
    deferred = Deferred(stage.scene, stage.camera)
    assert deferred.is_of(stage.scene, stage.camera)
    assert not deferred.is_of(other.scene, stage.camera)
    assert not deferred.is_of(stage.scene, stage.side_camera)
    stage.camera.__class__ = OwnCamera
    with pytest.raises(_CannotDefer, match="OwnCamera renders in its own way"):
        deferred.snapshot()
    stage.camera.__class__ = SameCamera
    deferred.snapshot()


@pytest.mark.clause("FIN-5a")
def test_camera_that_sees_nothing_at_first_can_defer(genesis: Any) -> None:
    def look_away(stage: Stage) -> None:
        if stage.t < 7:
            stage.camera.set_pose(pos=(0, 0, 50), lookat=(0, 0, 60), up=(0, 1, 0))
        else:
            stage.camera.set_pose(pos=(2, -2, 1.2), lookat=(0, 0, 0.3), up=(0, 0, 1))

    reference, stage = make({"on_step": look_away}), make({"on_step": look_away})
    expected = play(reference, {}, eager(reference))
    deferred = Deferred(stage.scene, stage.camera)
    assert_equal(render_all(deferred, play(stage, {}, deferred.snapshot)), expected)


@pytest.mark.clause("FIN-5a")
@pytest.mark.parametrize(
    "name", ["following, smoothing", "drawings redrawn, following", "world and link frames"]
)
@pytest.mark.parametrize("method", ["snapshot", "render"])
def test_interrupt_leaves_exact_frames(genesis: Any, name: str, method: str) -> None:
    """Ctrl-C comes at each line of the class, one after the other."""
    stage = make(CASES[name])
    deferred = Deferred(stage.scene, stage.camera)
    snapshots = play(stage, {}, deferred.snapshot, 6)
    frames = render_all(deferred, snapshots)
    file = sys.modules[_DeferredRenderer.__module__].__file__

    for line in range(1, 10_000):
        count, where = 0, 0

        def trace(frame: Any, event: str, argument: Any, line: int = line) -> Any:
            nonlocal count, where
            if frame.f_code.co_filename != file:
                return None
            if event == "line":
                count += 1
                if count == line:
                    where = frame.f_lineno
                    raise KeyboardInterrupt
            return trace

        stage.step()
        sys.settrace(trace)
        try:
            deferred.snapshot() if method == "snapshot" else deferred.render(snapshots[2])
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        deferred.move_camera()  # as the next step does
        # Frames are exact all the same.
        assert np.array_equal(deferred.render(snapshots[2])[0], frames[2]), (line, where)
        if count < line:
            break
        if line % 3 == 0:
            stage.step()
            # the interrupted snapshot may have moved the camera, or not
            snapshot = deferred.snapshot()
            image = np.array(stage.camera.render()[0])
            assert np.array_equal(deferred.render(snapshot)[0], image), (line, where)
    assert line > 50
    assert_equal(render_all(deferred, snapshots), frames)


@pytest.mark.clause("FIN-5a")
@pytest.mark.parametrize("name", ["still camera", "following, smoothing"])
def test_second_interrupt_leaves_the_env_able_to_render(genesis: Any, name: str) -> None:
    """Two interrupts may leave the present half restored, but not for ever."""
    stage = make(CASES[name])
    deferred = Deferred(stage.scene, stage.camera)
    snapshots = play(stage, {}, deferred.snapshot, 5)
    frame = np.array(deferred.render(snapshots[2])[0])
    context, visualizer = stage.scene.visualizer.context, stage.scene.visualizer
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(KeyboardInterrupt):
        put = deferred._put

        def put_or_break(snapshot: Any) -> None:
            if snapshot is not snapshots[2]:
                raise KeyboardInterrupt
            put(snapshot)

        monkeypatch.setattr(deferred, "_put", put_or_break)
        deferred.render(snapshots[2])
    assert math.inf not in (visualizer._t, context._t)
    stage.step()
    deferred._pose = {}
    snapshot = deferred.snapshot()
    image = np.array(stage.camera.render()[0])
    assert np.array_equal(deferred.render(snapshot)[0], image)
    if name == "still camera":  # else the camera may have moved on the pose of the snapshot itself
        assert np.array_equal(deferred.render(snapshots[2])[0], frame)


@pytest.mark.clause("FIN-11a")
@pytest.mark.parametrize("gone", ["gs.destroy()", "stage.scene.destroy()"])
def test_scene_that_is_gone_is_reported_and_crashes_nothing(genesis: Any, gone: str) -> None:
    code = f"""
        import genesis as gs
        from spec.suite.genesis_scenes import start_genesis
        from spec.tests.test_deferred_rendering import Deferred, _CannotDefer, make, play

        start_genesis()
        stage = make({{}})
        deferred = Deferred(stage.scene, stage.camera)
        snapshots = play(stage, {{}}, deferred.snapshot, 5)
        scene, camera = stage.scene, stage.camera
        {gone}
        try:
            deferred.render(snapshots[0])
        except _CannotDefer as error:
            assert "call close() before gs.destroy()" in str(error)
        else:
            raise AssertionError("rendered")
        print("reported")
    """
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0 and "reported" in result.stdout, result.stderr[-2000:]


@pytest.mark.clause("FIN-5a")
def test_failing_device_is_passed_on(genesis: Any) -> None:
    stage = make({})
    deferred = Deferred(stage.scene, stage.camera)
    snapshots = play(stage, {}, deferred.snapshot, 5)
    frame = np.array(deferred.render(snapshots[1])[0])

    def fail() -> None:
        raise torch.OutOfMemoryError("out of memory")

    stage.scene.rigid_solver.update_vgeoms = fail
    stage.step()
    with pytest.raises(torch.OutOfMemoryError):
        deferred.snapshot()
    del stage.scene.rigid_solver.update_vgeoms
    assert len(stage.scene.visualizer.cameras) == 2
    assert np.array_equal(deferred.render(snapshots[1])[0], frame)
    snapshot = deferred.snapshot()
    assert np.array_equal(stage.camera.render()[0], deferred.render(snapshot)[0])
