"""Deferred rendering of real scenes, compared bit for bit with eager rendering.

The eager reference is the same scene without a wrapper, whose camera renders each frame at its
step. The frames, what the env itself renders, and the simulation must equal those of the reference.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import operator
import sys
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

import video_wrapper
from spec.suite import genesis_scenes
from spec.suite.child import warned
from spec.suite.genesis_scenes import Stage, add_box, attach, start_genesis, wrap_stage

pytestmark = pytest.mark.extended

STEPS = 12
# Before Genesis 1.4.2, some pixels differ by one level; before 1.3.3, also in two eager references.
NOISE = 0 if genesis_scenes.has_genesis("1.4.2") else 0.01

Act = Callable[[Stage], Any]


def both(*acts: Act) -> Act:
    return lambda stage: [act(stage) for act in acts]


def at(step: int, act: Act) -> Act:
    """Return an act for one step. Step 0 is when the scene has been built."""
    return lambda stage: stage.t == step and act(stage)


def every(steps: int, act: Act) -> Act:
    """Return an act for each step whose number is a multiple."""
    return lambda stage: stage.t and stage.t % steps == 0 and act(stage)


def follow(box: int = 0, since: int = 0, **options: Any) -> Act:
    return at(since, lambda stage: stage.camera.follow_entity(stage.boxes[box], **options))


def look(*names: str) -> Act:
    """Return an act by which the env itself renders by cameras."""
    return lambda stage: [stage.look(name) for name in names]


def orbit(stage: Stage) -> None:
    angle = 0.1 * stage.t
    stage.camera.set_pose(pos=(2 * math.cos(angle), 2 * math.sin(angle), 1), lookat=(0, 0, 0.3))


def change_lights(stage: Stage) -> None:
    scene, angle = stage.scene.visualizer.context._scene, 0.1 * stage.t
    for node in list(scene.light_nodes):
        node.light.intensity, node.light.color = 5.0 - 0.4 * stage.t, (1.0, 0.5, 0.05 * stage.t)
        matrix = node.matrix
        matrix[0, :3] = math.cos(angle), 0, math.sin(angle)
        matrix[2, :3] = -math.sin(angle), 0, math.cos(angle)
        scene.set_pose(node, matrix)
    scene.ambient_light = (0.02 * stage.t, 0.1, 0.1)
    scene.bg_color = (0.05 * stage.t, 0.1, 0.1, 1.0)


def small_floor(stage: Stage) -> None:
    morph = start_genesis().morphs.Plane(plane_size=(1.2, 1.2), pos=(0, 0, 0.02))
    stage.scene.add_entity(morph)


def raise_added(stage: Stage) -> None:
    stage.scene.entities[-1].set_pos(stage.each([-0.2, 0, 0.02 + 0.03 * stage.t]))


def reflect(stage: Stage) -> None:
    """Have planes reflect for a while, also under software OpenGL."""
    stage.scene.visualizer.rasterizer._renderer._is_software = False
    stage.scene.visualizer.context.plane_reflection = stage.t < 9


def box(x: float = -0.4, material: str = "Rigid", **options: Any) -> Act:
    """Return an act that adds a cube."""
    make = operator.attrgetter(f"materials.{material}")

    def add(stage: Stage) -> Any:
        return add_box(stage, 0.2, (x, 0.4, 0.2), material=make(start_genesis())(), **options)

    return add


def heterogeneous(stage: Stage) -> None:
    morphs, place = start_genesis().morphs, (0.4, 0.4, 0.4)
    box, ball = morphs.Box(size=(0.3,) * 3, pos=place), morphs.Sphere(radius=0.2, pos=place)
    stage.scene.add_entity([box, ball])


def sensor_box(stage: Stage) -> None:
    contact, index = start_genesis().sensors.Contact, box()(stage).idx
    stage.scene.add_sensor(contact(entity_idx=index, link_idx_local=0, draw_debug=True))


def move_a_box(stage: Stage) -> None:
    stage.boxes[2].set_pos(stage.each([0.3, 0.05 * stage.t, 0.5]))


def reset_to_a_state(stage: Stage) -> None:
    if stage.t == 4:
        stage.saved = stage.scene.get_state()
    elif stage.t in (6, 10):
        stage.scene.reset(stage.saved)


def draw_anew(stage: Stage) -> None:
    """Draw an arrow and a frame anew at each step, as command managers do."""
    stage.scene.clear_debug_objects()
    angle, pose = 0.3 * stage.t, np.eye(4)
    vec = (0.5 * math.cos(angle), 0.5 * math.sin(angle), 0.1)
    stage.scene.draw_debug_arrow((0, 0, 0.6), vec, radius=0.03, color=(0, 0.5, 1, 0.7))
    pose[:3, 3] = (0.1 * stage.t - 0.5, 0, 0.4)
    stage.scene.draw_debug_frame(pose, axis_length=0.4)


def draw_passing(stage: Stage) -> None:
    """Draw what Genesis clears with the next step."""
    context = stage.scene.visualizer.context
    if stage.t % 3 == 1:
        sphere = context.make_debug_sphere((0, 0, 0.6), 0.2, (1, 0, 0, 1))
        context.add_debug_node(sphere, persistent=False)


def draw_glass(stage: Stage) -> None:
    """Draw see-through balls at one distance, which Genesis draws in the order of creation."""
    stage.scene.clear_debug_objects()
    for i in range(3):
        radius = 0.2 + 0.05 * ((i + stage.t) % 3)
        color = (i == 0, i == 1, i == 2, 0.5)
        stage.scene.draw_debug_sphere((0.02 * stage.t, 0, 0.5), radius=radius, color=color)


def move_drawing(stage: Stage) -> None:
    """Move a ball by an array that Genesis does not copy, then by its node, and clear it."""
    context = stage.scene.visualizer.context
    if stage.t == 0:
        stage.ball = stage.scene.draw_debug_sphere((0, 0, 0.5), radius=0.1, color=(0, 1, 0, 1))
        stage.poses = np.array(stage.ball.primitives[0].poses)
    elif stage.t < 5:
        stage.poses[:, :3, 3] = (0.1 * stage.t - 0.5, 0.2, 0.5)
        context.update_debug_objects((stage.ball,), (stage.poses,))
    elif stage.t < 9:
        pose = np.eye(4)
        pose[:3, 3] = (0, 0.05 * stage.t, 0)
        context.set_node_pose(context.external_nodes[stage.ball.name], pose=pose)
    elif stage.t == 9:
        stage.scene.clear_debug_object(stage.ball)


def adapt_camera(stage: Stage) -> None:
    stage.camera = SimpleNamespace(render=stage.camera.render)


def use_subclass(stage: Stage) -> None:
    stage.camera.__class__ = type("SameCamera", (type(stage.camera),), {})


def pretend(name: str) -> Act:
    """Return an act that gives the scene a viewer or a renderer that does nothing."""
    return at(0, lambda stage: setattr(stage.scene.visualizer, name, MagicMock()))


class Case(NamedTuple):
    """A scene, how often a frame is due, and what comes after each step of the wrapper."""

    options: dict[str, Any]  # of the stage
    stride: int = 1
    after: Act = both()
    cameras: tuple[str, ...] = ("camera",)  # which are recorded
    inference: str = ""  # what is done in torch's inference mode, as rsl_rl steps envs
    since: str = "0"  # the first Genesis that has such a scene, and draws it twice the same
    obstacle: str = ""  # why rendering cannot be deferred


def case(*acts: Act, **options: Any) -> Case:
    own = {name: options.pop(name) for name in Case._fields if name in options}
    return Case({"on_step": both(*acts), **options}, **own)


SMOOTH = follow(smoothing=0.8)
SIDE_FOLLOWS = at(0, lambda stage: stage.side_camera.follow_entity(stage.boxes[1], smoothing=0.6))
LOOK = look("side_camera")
CAMERAS = ("camera", "side_camera")
DEBUG = {"debug": True}
REFLECTING = {"plane_reflection": True, "shadow": False}
CONTACT = box(visualize_contact=True)
# A body without visual geometry and one that shows its other geometry.
ODD_GEOMETRY = both(box(visualization=False), box(x=0, vis_mode="collision"))
SOME = {"rendered_envs_idx": [0, 3]}
APART = {"rendered_envs_idx": [0, 2], "split_envs": True}
CASES = {
    "still camera": case(),
    "no batch dimension": case(n_envs=0),
    "scene stands still at first": case(still_until=5),
    "new scene": case(at(5, Stage.make_scene)),
    # Cameras that move.
    "set_pose each step": case(orbit, stride=2),
    "sees nothing at first": case(
        lambda stage: stage.camera.set_pose(lookat=(4, -4, 9) if stage.t < 7 else (0, 0, 0.3))
    ),
    "fov changed": case(lambda stage: vars(stage.camera).update(_fov=30 + 2 * stage.t)),
    "camera of a subclass": case(at(0, use_subclass)),
    "following": case(follow(), stride=2),
    "following, smoothing": case(SMOOTH),
    "following, smoothing, stride 3": case(SMOOTH, stride=3),
    "following, fixed axis": case(follow(fixed_axis=(None, None, 1.0))),
    "following, smoothing, fixed orientation": case(follow(smoothing=0.8, fix_orientation=True)),
    "following, set_pose later": case(SMOOTH, at(5, orbit)),
    "following, then another": case(SMOOTH, follow(box=2, since=5, smoothing=0.5)),
    "following, then no more": case(SMOOTH, at(5, lambda stage: stage.camera.unfollow_entity())),
    "attached": case(attach, SIDE_FOLLOWS, after=every(3, both(move_a_box, LOOK))),
    "attached, then detached": case(attach, at(5, lambda stage: stage.camera.detach()), stride=2),
    "two cameras following": case(SMOOTH, SIDE_FOLLOWS, every(3, LOOK)),
    "two cameras following, both recorded": case(SMOOTH, SIDE_FOLLOWS, cameras=CAMERAS),
    # Envs.
    "camera of an env": case(n_envs=3, camera={"env_idx": 2}),
    "some envs rendered": case(SMOOTH, n_envs=4, scene=SOME, camera={"env_idx": 3}),
    "each env apart": case(SMOOTH, n_envs=3, scene=APART),
    "each env apart, attached": case(attach, scene={"split_envs": True}),
    # Bodies.
    "collision geometry": case(add=ODD_GEOMETRY),
    "kinematic": case(raise_added, add=box(material="Kinematic"), since="1.3.3"),
    "heterogeneous": case(add=heterogeneous, n_envs=4, scene=SOME),
    "a body moved after the step": case(move_a_box),
    "reset of all": case(SMOOTH, every(5, lambda stage: stage.scene.reset())),
    "reset of some envs": case(every(5, lambda stage: stage.scene.reset(envs_idx=[1]))),
    "reset to a state": case(reset_to_a_state),
    # The env renders, too.
    "rendered before, then a body moved": case(look("camera"), move_a_box),
    "rendered before by another, then a body moved": case(LOOK, move_a_box, add=ODD_GEOMETRY),
    "rendered now and then": case(SMOOTH, every(2, look("camera")), every(3, LOOK)),
    "rendered after": case(follow(), after=look(*CAMERAS)),
    # Lights, shadows and background.
    "lights": case(change_lights),
    "no shadow, no reflection": case(scene={"shadow": False, "plane_reflection": False}),
    "reflection": case(reflect, raise_added, add=small_floor, scene=REFLECTING, since="1.3.3"),
    # Debug drawings.
    "drawings redrawn": case(draw_anew, follow(), SIDE_FOLLOWS, after=every(3, LOOK), camera=DEBUG),
    "drawings redrawn, each env apart": case(
        draw_anew, camera=DEBUG, scene={"split_envs": True, "show_world_frame": True}
    ),
    "drawings that pass": case(draw_passing, orbit, camera=DEBUG, since="1.4.5"),
    "drawings that are seen through": case(draw_glass, camera=DEBUG, since="1.3.3"),
    "drawing moved, then cleared": case(move_drawing, camera=DEBUG),
    "drawings unseen": case(draw_anew, SIDE_FOLLOWS, after=every(3, LOOK), add=CONTACT),
    "link frames unseen": case(scene={"show_link_frame": True}),
    **{
        f"inference mode in {parts}": case(draw_anew, SMOOTH, camera=DEBUG, inference=parts)
        for parts in ("step", "build, step", "close", "build, step, close", "some steps")
    },
    # Scenes that cannot be deferred.
    "soft bodies": case(add=box(0.6, "MPM.Elastic"), n_envs=1, obstacle="soft bodies"),
    "contact arrows": case(add=CONTACT, camera=DEBUG, obstacle="contact"),
    "link frames": case(camera=DEBUG, scene={"show_link_frame": True}, obstacle="frame"),
    "sensor drawings": case(add=sensor_box, camera=DEBUG, since="1.3.3", obstacle="sensor"),
    "camera adapter": case(at(0, adapt_camera), obstacle="SimpleNamespace"),
    "viewer": case(pretend("_viewer"), obstacle="viewer"),
    "another renderer": case(pretend("_renderer"), obstacle="rasterizer"),
}


def play(case: Case, steps: int = STEPS + 3, is_bare: bool = False) -> Stage:
    """Return the eager reference after these steps, or the scene if no camera is recorded."""
    stage = Stage(**case.options)
    for step in range(steps):
        stage.step()
        if step % case.stride == 0 and not is_bare:
            for name in case.cameras:
                getattr(stage, name).render()
        case.after(stage)
    return stage


def assert_equal(images: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Compare images bit for bit, except on old releases of Genesis."""
    differences = [float((a != b).mean()) for a, b in zip(images, expected, strict=True)]
    assert max(differences, default=0) <= NOISE, differences


@pytest.mark.clause("FIN-5a", "FIN-5b", "FIN-5c", "FIN-10")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.extended(
    default=[
        *("still camera", "following, smoothing", "attached", "each env apart"),
        *("drawings redrawn", "soft bodies", "contact arrows"),
    ]
)
def test_deferred_frames_match_eager_rendering(
    genesis: Any, new_stage: type[Stage], implementation: type, name: str
) -> None:
    case, is_module = CASES[name], implementation is video_wrapper.VideoWrapper
    genesis_scenes.needs_genesis(case.since, "there is no such scene, or no two are alike")
    obstacle = case.obstacle if genesis_scenes.has_genesis("1.2.0") else "Genesis"
    words = ["record_final_episode=False", obstacle] if obstacle else []
    reference = play(case)
    with torch.inference_mode("build" in case.inference):
        stage = wrapper = new_stage(**case.options)
    # Eager rendering moves other cameras that follow.
    is_alone = case.cameras == CAMERAS or stage.side_camera._followed_entity is None
    bare = reference if is_alone else play(case, is_bare=True)
    # Other implementations may render eagerly (FIN-6), and without a warning (FIN-10).
    with warned(*words, count=bool(words)) if is_module else contextlib.nullcontext():
        for camera in case.cameras:
            names = {"camera_attr": camera, "filename": f"{camera}.mp4"}
            wrapper = wrap_stage(genesis, wrapper, fps=50 / case.stride, **names)
        for step in range(STEPS + 3):
            if step == STEPS:
                wrapper.reset()  # the next episode ends too soon to be saved
            is_some = case.inference == "some steps" and step % 3 > 0
            with torch.inference_mode("step" in case.inference and not is_some):
                wrapper.step(None)
            case.after(stage)
        count = len(stage.rendered)
        with torch.inference_mode("close" in case.inference):
            wrapper.close()
    deferred = stage.rendered[count:]  # without those of a self-check
    if is_module:
        assert bool(deferred) == (not obstacle)
    stage.rendered = deferred or stage.rendered
    for camera in case.cameras:
        assert genesis.video(f"{camera}.mp4").count == STEPS / case.stride
        images = stage.images(camera)
        assert_equal(images, reference.images(camera)[: len(images)])
        assert any((image != images[0]).any() for image in images)
        for shadows, expected in zip(stage.shadows(camera), reference.shadows(camera)):
            assert all(map(np.array_equal, shadows, expected))
    with torch.inference_mode("build" in case.inference):
        for each in {stage, reference, bare}:
            each.step()
            each.look("side_camera")
    assert_equal(stage.seen, bare.seen)
    assert all(map(torch.equal, stage.state(), bare.state()))
    for each in stage, reference:
        each.look("camera")
    assert_equal(stage.seen[-1:], reference.seen[-1:])
    assert len(stage.scene.visualizer.cameras) == 2


@pytest.mark.clause("FIN-5a")
@pytest.mark.parametrize("name", ["following, smoothing", "attached"])
def test_active_frames_go_on_from_background_frames(
    genesis: Any, new_stage: type[Stage], name: str
) -> None:
    """Six background frames, which are dropped, six active ones, and six of another background."""
    stage = new_stage(**CASES[name].options)
    wrapper = wrap_stage(genesis, stage, video_length_sec=0.12, fps=50)
    for step in range(18):
        if step in (6, 12):
            wrapper.start_recording("active" if step == 6 else "background")
        wrapper.step(None)
        CASES[name].after(stage)
    wrapper.close()
    assert_equal(stage.images()[-STEPS:], play(CASES[name], 18).images()[-STEPS:])


@pytest.mark.clause("COST-10b")
def test_contact_arrows_that_are_unseen_are_not_computed(
    reproducible: Any, new_stage: type[Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    genesis_scenes.needs_genesis("1.4.5", "contact arrows are drawn in another way")
    stage, drawn = new_stage(add=CONTACT), []
    wrapper = wrap_stage(reproducible, stage, fps=50)
    wrapper.step(None)  # the first frame may be checked
    context = type(stage.scene.visualizer.context)
    monkeypatch.setattr(context, "make_debug_arrow", lambda *_, **options: drawn.append(options))
    for _ in range(STEPS):
        wrapper.step(None)
    assert drawn == []
    stage.look("side_camera")
    assert drawn != []


@pytest.mark.of_module
@pytest.mark.clause("FIN-5a", "FIN-10")
@pytest.mark.parametrize("name", ["still camera", "drawings redrawn", "drawings unseen"])
def test_self_check_finds_another_genesis_though_all_stands_still(
    genesis: Any, new_stage: type[Stage], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    genesis_scenes.needs_genesis("1.4.2", "a check cannot move bodies")
    stage = new_stage(**CASES[name].options)
    stage.still_until = sys.maxsize
    context, Camera = stage.scene.visualizer.context, type(stage.camera)
    Context, utilities = type(context), start_genesis().utils.misc
    update, update_rigid = Context.update, Context.update_rigid
    faults = {
        "none": (Context, "update", update),
        "bodies are not placed": (Context, "update_rigid", lambda self: None),
        "other poses are ignored": (Context, "update_rigid", lambda self: update_rigid(context)),
        "each render updates": (Context, "update", lambda self, *_: update(self, True)),
        "the camera is ignored": (Camera, "transform", stage.camera.transform),
        "a function is missing": (utilities, "qd_to_torch", None),
    }
    found = {}
    for fault, (owner, attribute, value) in faults.items():
        stage.scene.step()
        stage.rendered.clear()
        with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as texts:
            warnings.simplefilter("always")
            patch.setattr(owner, attribute, value)
            if value is None:
                patch.delattr(owner, attribute)
            wrapper = wrap_stage(genesis, stage, fps=50)
            for _ in range(2):
                wrapper.step(None)
            count = len(stage.rendered)
            wrapper.close()
        is_eager = len(stage.rendered) == count
        found[fault] = is_eager, ["record_final_episode" in str(it.message) for it in texts]
    assert found.pop("none") == (False, [])
    assert found == dict.fromkeys(found, (True, [True]))


def is_interrupted(call: Callable[[], Any], line: int) -> bool:
    """Have Ctrl-C come at a line of the renderer, counted as they run, if the call gets there."""
    methods = map(inspect.unwrap, vars(video_wrapper._DeferredRenderer).values())
    codes = {method.__code__ for method in methods if inspect.isfunction(method)}
    lines = itertools.count(1)

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if event == "line" and next(lines) == line:
            raise KeyboardInterrupt
        return trace if frame.f_code in codes else None

    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.mark.of_module
@pytest.mark.clause("FIN-5a", "FAIL-5a", "FAIL-5b", "CLOSE-6b")
def test_interrupts_leave_exact_frames(reproducible: Any, new_stage: type[Stage]) -> None:
    """Ctrl-C comes at each line that a snapshot runs, and at each that renders one."""
    stage = new_stage(draw_anew, camera=DEBUG)
    wrapper = wrap_stage(reproducible, stage, video_length_sec=60, fps=50)
    wrapper.step(None)
    stage.rendered.clear()  # of a self-check
    stage.look("camera")
    lines = itertools.count(1)
    while is_interrupted(lambda: wrapper.step(None), next(lines)):
        wrapper.step(None)
        stage.look("camera")
    stage.look("camera")
    assert len(stage.seen) > 20
    stage.scene.clear_debug_objects()  # Ctrl-C may lose them
    lines = itertools.count(1)
    while is_interrupted(wrapper.close, next(lines)):
        pass
    # A frame that Ctrl-C came after is rendered again, unless it was encoded.
    images = [image for image, _ in itertools.groupby(map(np.ndarray.tobytes, stage.images()))]
    assert images == [image.tobytes() for image in stage.seen]
    assert reproducible.video("0.mp4").count == len(images)
