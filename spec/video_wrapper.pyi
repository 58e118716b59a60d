# The page's annotations are kept to the letter:
# ruff: noqa: RUF013, UP006, UP035
"""The documented API: what the signature tests compare against (clauses API-1 to API-5).

Names, order, defaults and annotations are those of the API page; where the page gives no annotation there is
none here, and any will do.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Tuple

import genesis
import gymnasium
import torch

class GenesisEnv: ...

class Wrapper:
    can_be_wrapped: bool = True
    env: GenesisEnv = None

    @property
    def action_space(self) -> gymnasium.spaces: ...
    @property
    def dt(self) -> float: ...
    @property
    def extras(self) -> dict: ...
    @property
    def num_actions(self) -> int: ...
    @property
    def num_envs(self) -> int: ...
    @property
    def num_observations(self) -> int: ...
    @property
    def observation_space(self) -> gymnasium.spaces: ...
    @property
    def robot(self) -> Any: ...
    @property
    def scene(self) -> genesis.Scene: ...
    @property
    def unwrapped(self) -> GenesisEnv: ...
    def get_observations(self) -> torch.Tensor: ...
    def reset(self, env_ids: Sequence[int] = None) -> tuple[torch.Tensor, dict[str, Any]]: ...

class VideoWrapper(Wrapper):
    def __init__(
        self,
        env: GenesisEnv,
        camera_attr: str = "camera",
        video_length_sec: int = 8,
        episode_trigger: Callable[[int], bool] | None = None,
        step_trigger: Callable[[int], bool] | None = None,
        out_dir: str = "./videos",
        fps: int = 60,
        env_idx: int = 0,
        filename: str = None,
        record_final_episode: bool = True,
        logging: bool = True,
    ): ...
    @property
    def video_length_steps(self) -> int: ...
    def build(self) -> None: ...
    def close(self): ...
    def finish_recording(self): ...
    def start_recording(self, type: Literal["active", "background"] = "active"): ...
    def step(
        self, actions: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]: ...
