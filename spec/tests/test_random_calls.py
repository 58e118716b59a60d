"""REC-8: random sequences of calls, against a model of what the clauses say."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest

from spec.suite.video_reader import EACH_FRAME, box, read_step, read_video


class Model:
    """A model of the clauses TIME, TRIG, EPI, REC and FIN, with the wrapper's methods."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.lasting = min(plan["length"], 10)  # steps: N, or those of a second if that is sooner
        self.reads_flags = plan["final"] or plan["kind"] == "episode_trigger"  # COST-1c
        self.videos: dict[str, list[int]] = {}
        self.step_number = self.episode = self.steps_in_episode = 0
        self.asked: set[int] = set()
        self.due = 0  # the episode's step from which a background recording may start
        self.running: Any = None
        self.background: list[Any] = []  # what close() chooses from, oldest first

    def step(self, actions: Any) -> None:
        if not self.running or self.running.type == "background":
            self.start_what_is_due()
        if recording := self.running:
            if recording.steps % self.plan["stride"] == 0:
                recording.shown.append(self.step_number)
            recording.steps += 1
            if recording.steps == self.lasting:  # FIN-3c
                self.background = [recording] if recording.type == "background" else []
            if recording.steps == self.plan["length"]:
                self.finish_recording()
        self.step_number += 1
        self.steps_in_episode += 1
        if self.reads_flags and self.step_number - 1 in self.plan["dones"]:
            self.reset()

    def start_what_is_due(self) -> None:
        number = self.step_number if self.plan["kind"] == "step_trigger" else self.episode
        triggered = number in self.plan["true_for"] and number not in self.asked
        self.asked.add(number)
        if triggered:
            self.start_recording()
        elif self.plan["final"] and self.steps_in_episode >= self.due:  # FIN-2
            self.start_recording("background")
            self.due = 4 * self.plan["length"]
            while self.due <= self.steps_in_episode:
                self.due *= 2

    def reset(self, env_ids: Any = None) -> None:
        if env_ids is None and self.steps_in_episode:
            self.episode += 1
            self.steps_in_episode = self.due = 0

    def start_recording(self, type: str = "active") -> None:
        self.finish_recording()
        place = {"first": self.step_number, "episode": self.episode}
        self.running = SimpleNamespace(type=type, **place, shown=[], steps=0)
        if type == "background":
            self.background.append(self.running)

    def finish_recording(self) -> None:
        if self.running and self.running.type == "active":
            self.save(self.running)
        self.running = None

    def close(self) -> None:
        self.finish_recording()
        shown = [r for r in self.background if r.shown]
        worthwhile = [r for r in shown if r.steps >= self.lasting or r.episode < self.episode]
        for recording in (worthwhile or shown)[-1:]:  # FIN-3a and FIN-3b
            self.save(recording)
        self.background = []

    def save(self, recording: Any) -> None:
        if recording.shown:
            self.videos[f"{recording.first}.mp4"] = recording.shown


CALLS = [
    ("reset",),
    ("reset", [1]),  # of the other env
    ("finish_recording",),
    ("start_recording",),
    ("start_recording", "background"),
]


def draw_plan(dice: random.Random) -> dict[str, Any]:
    """Draw a random sequence of calls, which leaves about one video."""
    steps = dice.randint(4, 16) if dice.random() < 0.8 else dice.randint(16, 60)
    calls: list[Any] = [("step", None)] * steps
    for _ in range(dice.choice([0, 0, 1, 1, 2, 4])):
        calls.insert(dice.randint(0, len(calls)), dice.choice(CALLS))
    return {
        "calls": [*calls, *[("close",)] * dice.choice([1, 1, 2])],
        "dones": [step for step in range(steps) if dice.random() < 0.1],
        "length": dice.choice([dice.randint(1, 9), dice.randint(1, 9), dice.randint(10, 14)]),
        "stride": dice.choice([1, 1, 2, 3]),
        "kind": dice.choice(["step_trigger", "episode_trigger"]),
        "true_for": dice.choices(range(12), k=dice.choice([0, 1, 1, 2])),
        "final": dice.random() < 0.5,
    }


def call_all(target: Any, plan: dict[str, Any]) -> Any:
    """Make the calls of a plan on a wrapper or a model, and return it."""
    for name, *arguments in plan["calls"]:
        getattr(target, name)(*arguments)
    return target


def steps_of_all(paths: list[Path]) -> list[list[int]]:
    """Return the steps that each of many videos of 48x32 pixels shows, decoded in one go."""
    names = "".join(f"file 'file:{path}'\n" for path in paths)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-xerror"]
    command += ["-f", "concat", "-safe", "0", "-protocol_whitelist", "file,pipe", "-i", "pipe:0"]
    command += ["-vf", "setpts=N", *EACH_FRAME, "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"]
    result = subprocess.run(command, input=names.encode(), capture_output=True, check=False)
    if result.returncode or result.stderr:
        return []
    frames = iter(np.frombuffer(result.stdout, np.uint8).reshape(-1, 32, 48, 3))
    tables = [box(path.read_bytes(), "moov/trak/mdia/minf/stbl/stsz") for path in paths]
    return [
        [read_step(next(frames)) for _ in range(int.from_bytes(t[8:12], "big"))] for t in tables
    ]


@pytest.mark.clause("REC-8")
def test_random_calls_leave_the_videos_of_the_model(fake: Any, tmp_path: Path) -> None:
    seed = int(os.environ.get("VIDEO_WRAPPER_SEED", random.randrange(10**6)))
    dice = random.Random(seed)
    # Sorted, so that the first plan that fails is a short one.
    plans = sorted((draw_plan(dice) for _ in range(1000)), key=lambda plan: len(plan["calls"]))
    folders = [tmp_path / str(i) for i in range(len(plans))]
    for plan, folder in zip(plans, folders):
        wrapper = fake.wrap(
            out_dir=str(folder),
            size=(48, 32),
            num_envs=2,
            terminated_at=plan["dones"],
            fps=10 / plan["stride"],
            video_length_sec=plan["length"] / 10,
            record_final_episode=plan["final"],
            **{plan["kind"]: lambda n, plan=plan: n in plan["true_for"]},
        )
        call_all(wrapper, plan)
    expected = [call_all(Model(plan), plan).videos for plan in plans]
    paths = [folder / name for folder, videos in zip(folders, expected) for name in videos]
    steps = [steps for videos in expected for steps in videos.values()]
    same_files = [set(os.listdir(folder)) for folder in folders] == [*map(set, expected)]
    # One decoder for all takes a hundredth of the time. Only if they differ, each has its own.
    if not same_files or steps_of_all(paths) != steps:
        for plan, folder, videos in zip(plans, folders, expected):
            found = {name: read_video(folder / name).steps for name in os.listdir(folder)}
            assert found == videos, f"seed {seed}: {plan}"
