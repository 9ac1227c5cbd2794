"""What optimizers need once: which of torch's kernels fit the parameters, and the foreach frame of our own ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT, _get_fused_kernels_supported_devices


def listed(params: ParamsT) -> list[Any]:
    """The parameters, groups or named parameters as a list: what an optimizer is given may be an iterator."""
    return [{**p, "params": _many(p["params"])} if isinstance(p, dict) else p for p in params]


def _many(params: Any) -> list[Any]:
    return [params] if isinstance(params, Tensor) else list(params)


def tensors(params: Sequence[Any]) -> Iterable[Tensor]:
    """The tensors in a list made by `listed`."""
    for entry in params:
        if isinstance(entry, dict):
            yield from tensors(entry["params"])
        else:
            yield entry[1] if isinstance(entry, tuple) else entry


def fused_fits(params: Sequence[Any]) -> bool:
    """Whether torch's fused kernels take these parameters: real floats on a device that has the kernels."""
    devices = set(_get_fused_kernels_supported_devices())
    found = list(tensors(params))
    return bool(found) and all(p.is_floating_point() and p.device.type in devices for p in found)
