"""REC-8: random sequences of calls, against a model of what the clauses say."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest

from spec.suite.video_reader import EACH_FRAME, box, read_step, read_video


@dataclass
class Recording:
    """A recording of the model, and the steps that it shows."""

    type: str
    first: int
    episode: int
    shown: list[int] = field(default_factory=list)
    steps: int = 0


class Model:
    """What the clauses TIME, TRIG, EPI, REC and FIN say, step by step."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.lasting = min(plan["length"], 10)  # steps: N, or those of a second if that is sooner
        self.videos: dict[str, list[int]] = {}
        self.step_number = self.episode = self.steps_in_episode = 0
        self.asked: set[int] = set()
        self.due = 0  # the episode's step from which a background recording may start
        self.running: Recording | None = None
        self.background: list[Recording] = []  # what close() chooses from, oldest first

    def step(self, done: bool) -> None:
        if not self.running or self.running.type == "background":
            self.start_what_is_due()
        if self.running:
            recording = self.running
            if recording.steps % self.plan["stride"] == 0:
                recording.shown.append(self.step_number)
            recording.steps += 1
            if recording.steps == self.lasting:  # FIN-3c
                self.background = [recording] if recording.type == "background" else []
            if recording.steps == self.plan["length"]:
                self.finish()
        self.step_number += 1
        self.steps_in_episode += 1
        if done:
            self.end_episode()

    def start_what_is_due(self) -> None:
        if self.plan["kind"] == "step_trigger":
            triggered = self.step_number in self.plan["true_for"]
        else:
            is_asked = self.episode not in self.asked
            triggered = is_asked and self.episode in self.plan["true_for"]
            self.asked.add(self.episode)
        if triggered:
            self.start("active")
        elif self.plan["final"] and self.steps_in_episode >= self.due:  # FIN-2
            self.start("background")
            self.due = 4 * self.plan["length"]
            while self.due <= self.steps_in_episode:
                self.due *= 2

    def end_episode(self) -> None:
        if self.steps_in_episode:
            self.episode += 1
            self.steps_in_episode = self.due = 0

    def start(self, type: str) -> None:
        self.finish()
        self.running = Recording(type, self.step_number, self.episode)
        if type == "background":
            self.background.append(self.running)

    def finish(self) -> None:
        if self.running and self.running.type == "active":
            self.save(self.running)
        self.running = None

    def close(self) -> None:
        self.finish()
        shown = [r for r in self.background if r.shown]
        worthwhile = [r for r in shown if r.steps >= self.lasting or r.episode < self.episode]
        for recording in (worthwhile or shown)[-1:]:  # FIN-3a and FIN-3b
            self.save(recording)
        self.background = []

    def save(self, recording: Recording) -> None:
        if recording.shown:
            self.videos[f"{recording.first}.mp4"] = recording.shown


CALLS = ["reset", "reset others", "finish", "active", "background"]


def draw_plan(dice: random.Random) -> dict[str, Any]:
    """Draw a random sequence of calls, which leaves about one video."""
    steps = dice.randint(4, 16) if dice.random() < 0.8 else dice.randint(16, 60)
    calls = ["done" if dice.random() < 0.1 else "step" for _ in range(steps)]
    for _ in range(dice.choice([0, 0, 1, 1, 2, 4])):
        calls.insert(dice.randint(0, len(calls)), dice.choice(CALLS))
    return {
        "calls": [*calls, *["close"] * dice.choice([1, 1, 2])],
        "length": dice.choice([dice.randint(1, 9), dice.randint(1, 9), dice.randint(10, 14)]),
        "stride": dice.choice([1, 1, 2, 3]),
        "kind": dice.choice(["step_trigger", "episode_trigger"]),
        "true_for": dice.choices(range(12), k=dice.choice([0, 1, 1, 2])),
        "final": dice.random() < 0.5,
    }


def expected(plan: dict[str, Any]) -> dict[str, list[int]]:
    model = Model(plan)
    reads_flags = plan["final"] or plan["kind"] == "episode_trigger"  # COST-1c
    for call in plan["calls"]:
        if call in ("step", "done"):
            model.step(call == "done" and reads_flags)
        elif call == "reset":
            model.end_episode()
        elif call in ("active", "background"):
            model.start(call)
        elif call == "finish":
            model.finish()
        elif call == "close":
            model.close()
    return model.videos


def play(fake: Any, plan: dict[str, Any], folder: Path) -> None:
    """Make the calls of a plan on the class under test."""
    dones, number = set(), 0
    for call in plan["calls"]:
        dones |= {number} if call == "done" else set()
        number += call in ("step", "done")
    wrapper = fake.wrap(
        out_dir=str(folder),
        size=(48, 32),
        num_envs=2,
        terminated_at=dones,
        fps=10 / plan["stride"],
        video_length_sec=plan["length"] / 10,
        record_final_episode=plan["final"],
        **{plan["kind"]: lambda n: n in plan["true_for"]},
    )
    make = {
        "reset": wrapper.reset,
        "reset others": lambda: wrapper.reset([1]),
        "finish": wrapper.finish_recording,
        "active": wrapper.start_recording,
        "background": lambda: wrapper.start_recording("background"),
        "close": wrapper.close,
    }
    for call in plan["calls"]:
        make.get(call, lambda: fake.run(wrapper, 1))()


def read_folder(folder: Path) -> dict[str, list[int]]:
    return {name: [*read_video(folder / name).steps] for name in os.listdir(folder)}


def shortest(fails: Callable[[dict[str, Any]], bool], plan: dict[str, Any]) -> dict[str, Any]:
    """Leave out calls for as long as the plan fails."""
    for i in reversed(range(len(plan["calls"]))):
        shorter = plan | {"calls": plan["calls"][:i] + plan["calls"][i + 1 :]}
        if fails(shorter):
            plan = shorter
    return plan


class TestSequences:
    @pytest.mark.clause("REC-8")
    def test_random_calls_leave_the_videos_of_the_model(self, fake: Any, tmp_path: Path) -> None:
        seed = int(os.environ.get("VIDEO_WRAPPER_SEED", random.randrange(10**6)))
        dice = random.Random(seed)
        folders = (tmp_path / str(i) for i in itertools.count())

        def fails(plan: dict[str, Any]) -> bool:
            folder = next(folders)
            play(fake, plan, folder)
            return read_folder(folder) != expected(plan)

        for _ in range(int(os.environ.get("VIDEO_WRAPPER_SEQUENCES", "1000")) // 100):
            batch = [(draw_plan(dice), next(folders)) for _ in range(100)]
            for plan, folder in batch:
                play(fake, plan, folder)
            # Decoded in one go, which takes a hundredth of the time, and each only if that differs.
            videos = [(folder / n, v) for plan, folder in batch for n, v in expected(plan).items()]
            same_files = all(set(os.listdir(f)) == set(expected(p)) for p, f in batch)
            if same_files and steps_of_all([path for path, _ in videos]) == [v for _, v in videos]:
                continue
            for plan, folder in batch:
                found = read_folder(folder)
                if found != expected(plan):
                    words = f"seed {seed}: {plan}: {found} instead of {expected(plan)}"
                    pytest.fail(f"{words}; the shortest such plan: {shortest(fails, plan)}")


def steps_of_all(paths: list[Path]) -> list[list[int]]:
    """The steps that each of many videos of 48x32 pixels shows."""
    names = "".join(f"file 'file:{path}'\n" for path in paths)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-xerror"]
    command += ["-f", "concat", "-safe", "0", "-protocol_whitelist", "file,pipe", "-i", "pipe:0"]
    command += ["-vf", "setpts=N", *EACH_FRAME]
    command += ["-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"]
    result = subprocess.run(command, input=names.encode(), capture_output=True, check=False)
    if result.returncode or result.stderr:
        return []
    frames = iter(np.frombuffer(result.stdout, np.uint8).reshape(-1, 32, 48, 3))
    return [[read_step(next(frames)) for _ in range(frame_count(path))] for path in paths]


def frame_count(path: Path) -> int:
    return int.from_bytes(box(path.read_bytes(), "moov/trak/mdia/minf/stbl/stsz")[8:12], "big")
