"""Normalization statistics at evaluation: those of the batch, or re-estimated on other data; put back afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

MODES = ("running", "batch", "recalibrated")
T = TypeVar("T")


def norms_of(*modules: nn.Module) -> list[_BatchNorm]:
    """The layers that keep running statistics, each once."""
    found = {id(m): m for module in modules for m in module.modules() if isinstance(m, _BatchNorm)}
    return [norm for norm in found.values() if norm.running_mean is not None]


@contextmanager
def batch_statistics(*modules: nn.Module) -> Iterator[None]:
    """Within the context every batch is normalized by its own statistics; the running ones stay as they are."""
    norms = norms_of(*modules)
    before = [(norm.training, norm.track_running_stats) for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm, (training, tracking) in zip(norms, before, strict=True):
            norm.training, norm.track_running_stats = training, tracking


@contextmanager
def kept(*modules: nn.Module) -> Iterator[None]:
    """Within the context parameters and buffers may change; afterwards they hold what they held before, bit for bit."""
    tensors = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
    with torch.no_grad():
        copies = [tensor.detach().clone() for tensor in tensors.values()]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, copy in zip(tensors.values(), copies, strict=True):
                tensor.copy_(copy)


@torch.no_grad()
def calibrate(model: nn.Module | Iterable[nn.Module], forward: Callable[[T], object], batches: Iterable[T]) -> int:
    """Replaces the running statistics by the mean of those of the batches, each passed once; returns how many passed.

    Only the layers with statistics are in training mode for it: dropout stays as it was.
    """
    norms = norms_of(*([model] if isinstance(model, nn.Module) else model))
    before = [(norm.training, norm.momentum) for norm in norms]
    passed = 0
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.training, norm.momentum = True, None  # no momentum: the plain mean over what has passed
        for batch in batches:
            forward(batch)
            passed += 1
    finally:
        for norm, (training, momentum) in zip(norms, before, strict=True):
            norm.training, norm.momentum = training, momentum
    return passed


@contextmanager
def recalibrated(*modules: nn.Module, forward: Callable[[T], object], batches: Iterable[T]) -> Iterator[None]:
    """Within the context the running statistics are those of the batches; afterwards they are what they were."""
    norms = norms_of(*modules)
    with kept(*norms):
        calibrate(modules, forward, batches)
        yield
