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
    """Arguments of a wrapper that records from these steps on, and no final episode."""
    return {"step_trigger": lambda n: n in steps, "record_final_episode": False}


class Asked:
    """A trigger that remembers what it was asked, and is true for the numbers given."""

    def __init__(self, *true_for: int) -> None:
        self.true_for = true_for
        self.numbers: list[int] = []

    def __call__(self, number: int) -> bool:
        assert type(number) is int
        self.numbers.append(number)
        return number in self.true_for

    @property
    def episodes(self) -> list[int]:
        """What it was asked for, each once: whether it was asked more often is TRIG-5's."""
        return [*dict.fromkeys(self.numbers)]


class OnDevice(torch.Tensor):
    """A tensor that is on an accelerator, or seems to be: its memory is read by way of `cpu()`."""

    is_cpu, is_cuda = False, True

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("numpy", "__array__", "data_ptr"):
            raise TypeError("can't convert device type tensor to numpy. Use Tensor.cpu() first.")
        result = super().__torch_function__(func, types, args, kwargs or {})
        moved = name == "cpu" or (name == "to" and "cpu" in map(str, args))
        return result.as_subclass(torch.Tensor) if moved else result

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        raise TypeError("can't convert device type tensor to numpy. Use Tensor.cpu() first.")


class Flags(torch.Tensor):
    """Done flags that are on an accelerator, or seem to be, and count how they are read."""

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
    """A frame that cannot be taken over, in whatever way: `error` is raised instead."""

    error: BaseException

    @classmethod
    def of(cls, frame: np.ndarray) -> Uncopied:
        return torch.from_numpy(frame).as_subclass(cls)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        takes = ("cpu", "to", "numpy", "__array__", "tolist", "clone", "contiguous")
        if getattr(func, "__name__", "") in takes:
            raise cls.error
        return super().__torch_function__(func, types, args, kwargs or {})

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        raise self.error


class Large(Uncopied):
    error = MemoryError("Unable to allocate 7.91 MiB")


class Interrupts(Uncopied):
    error = KeyboardInterrupt()
