"""Test doubles: triggers, tensors on a device, frames that cannot be copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def first_only(n: int) -> bool:
    return n == 0


def never(number: int) -> bool:
    return False


def only_at(*steps: int) -> dict[str, Any]:
    """Return arguments of a wrapper that records from these steps on, and no final episode."""
    return {"step_trigger": lambda n: n in steps, "record_final_episode": False}


class Asked:
    """A trigger that remembers what it was asked, and is true for the given numbers."""

    def __init__(self, *true_for: int) -> None:
        self.true_for = true_for
        self.numbers: list[int] = []

    def __call__(self, number: int) -> bool:
        self.numbers.append(number)
        return number in self.true_for

    @property
    def episodes(self) -> list[int]:
        """Return each number that it was asked once, because TRIG-3b judges repetitions."""
        return [*dict.fromkeys(self.numbers)]


class OnDevice(torch.Tensor):
    """A tensor that seems to be on an accelerator: its memory is read only by way of `cpu()`."""

    is_cpu, is_cuda = False, True

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("numpy", "__array__", "data_ptr"):
            raise TypeError("can't convert device type tensor to numpy. Use Tensor.cpu() first.")
        result = super().__torch_function__(func, types, args, kwargs or {})
        is_moved = name == "cpu" or (name == "to" and "cpu" in map(str, args))
        return result.as_subclass(torch.Tensor) if is_moved else result


class Flags(torch.Tensor):
    """Done flags that seem to be on an accelerator, and log how they are read."""

    is_cpu, is_cuda = False, True
    log: list[str]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, flags = func.__name__, next(a for a in args if isinstance(a, Flags))
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, Flags):
            result.log = flags.log
        if name in ("__bool__", "item", "tolist", "cpu", "to", "numpy", "__array__", "nonzero"):
            flags.log.append("wait")
        elif len(args) > 1 and name in ("__getitem__", "select", "index_select", "take", "gather"):
            flags.log.append("read")
        return result


class Uncopied(torch.Tensor):
    """A frame that raises `error` when its memory is copied.

    A test skips if `has_raised` stays False, because the class under test copies in another way.
    """

    error: BaseException
    has_raised = False

    @classmethod
    def of(cls, frame: np.ndarray) -> Uncopied:
        return torch.from_numpy(frame).as_subclass(cls)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        copies = ("cpu", "to", "numpy", "__array__", "tolist", "clone", "contiguous")
        if getattr(func, "__name__", "") in copies:
            cls.has_raised = True
            raise cls.error
        return super().__torch_function__(func, types, args, kwargs or {})


class Large(Uncopied):
    error = MemoryError("Unable to allocate 7.91 MiB")


class Interrupts(Uncopied):
    error = KeyboardInterrupt()
