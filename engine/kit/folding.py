"""Exact folding: what is affine in evaluation (normalization over the batch) goes into the weights beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from engine.kit.anatomy import trace

Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
_NOTHING = (nn.Identity, nn.modules.dropout._DropoutNd)  # in evaluation


class Affine(nn.Module):
    """x scale + shift, channel by channel, along the second axis or the last one: what a fixed norm comes down to.

    Args:
        scale: A number a channel.
        shift: A number a channel.
        axis: Where the channels are: 1, or -1.
    """

    def __init__(self, scale: Tensor, shift: Tensor, axis: int = 1):
        super().__init__()
        self.scale, self.shift, self.axis = nn.Parameter(scale), nn.Parameter(shift), axis

    def forward(self, x: Tensor) -> Tensor:
        if self.axis == -1:
            return x * self.scale + self.shift
        shape = [-1, *[1] * (x.dim() - 2)]
        return x * self.scale.view(shape) + self.shift.view(shape)

    def extra_repr(self) -> str:
        return f"{len(self.scale)}, axis={self.axis}"


def scale_and_shift(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """The two numbers a channel that a module is in evaluation, in float64; None where it is not that.

    A batch norm with running statistics:  scale = gamma / sqrt(var + eps);  shift = beta - mean scale
    """
    if isinstance(module, Affine):
        return module.scale.detach().double(), module.shift.detach().double()
    if not isinstance(module, BatchNorm) or module.running_mean is None or module.running_var is None:
        return None
    scale = (module.running_var.double() + module.eps).rsqrt()
    if module.affine:
        scale = scale * module.weight.detach().double()
    shift = -module.running_mean.double() * scale
    return scale, shift + module.bias.detach().double() if module.affine else shift


@torch.no_grad()
def folded(weight: Tensor, bias: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a weight together with the norm that follows it, in float64.

    W' = W scale;  b' = b scale + shift. Raises ValueError where the norm is no scale and shift in evaluation.
    """
    found = scale_and_shift(norm)
    if found is None:
        raise ValueError(f"A {type(norm).__name__} is no fixed scale and shift a channel in evaluation.")
    scale, shift = found
    kernel = weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))
    return kernel, shift if bias is None else shift + bias.double() * scale


@torch.no_grad()
def merge_after(layer: Weighted, norm: nn.Module) -> None:
    """Puts what follows a layer into its weights, in place: layer(x) becomes norm(layer(x))."""
    set_weights(layer, *folded(layer.weight, layer.bias, norm))


@torch.no_grad()
def merge_before(layer: Weighted, norm: nn.Module) -> None:
    """Puts what comes before a layer into its weights, in place: layer(x) becomes layer(norm(x)).

    W (a x + b) + c = (W a) x + (W b + c). Exact for a convolution only where it does not pad (see `takes_before`).
    """
    found = scale_and_shift(norm)
    if found is None:
        raise ValueError(f"A {type(norm).__name__} is no fixed scale and shift a channel in evaluation.")
    weight = layer.weight.double()
    groups = getattr(layer, "groups", 1)
    rows = weight.view(groups, -1, *weight.shape[1:])  # [groups, outputs, inputs of the group, kernel ...]
    scale, shift = (each.view(groups, 1, -1, *[1] * (weight.dim() - 2)) for each in found)
    moved = (rows * shift).flatten(2).sum(-1).flatten()
    bias = moved if layer.bias is None else moved + layer.bias.double()
    set_weights(layer, (rows * scale).reshape(weight.shape), bias)


def takes_before(layer: nn.Module) -> bool:
    """Whether a shift before a layer can go into its bias: zeros that it pads with come after the shift."""
    if isinstance(layer, nn.Linear):
        return True
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return False
    return layer.padding == "valid" or layer.padding_mode != "zeros" or not any(layer.padding)


@torch.no_grad()
def set_weights(layer: Weighted, kernel: Tensor, bias: Tensor) -> None:
    """Gives a layer new weights, in the type of those that it has; it has a bias then."""
    old = layer.weight
    layer.weight = nn.Parameter(kernel.to(old.dtype), old.requires_grad)
    layer.bias = nn.Parameter(bias.to(old.dtype), old.requires_grad)


def merge_norms(model: nn.Module, call: Callable[[], Any]) -> list[tuple[str, str]]:
    """Merges every norm that is affine in evaluation into the weights before it, or into all those after it, in place.

    Only where nothing else sees what lies between, so that the model computes the same; an identity takes the norm's
    place. `call` passes an input through the model, to see shapes. Returns the paths of norms and of one weight each.
    A model whose graph cannot be followed is merged inside its Sequentials alone.
    """
    dims = _dimensions(model, call)
    try:
        graph = trace(model)
    except ValueError:
        return _merge_sequentials(model, dims)
    return _merge_graph(model, graph, dims)


def _dimensions(model: nn.Module, call: Callable[[], Any]) -> dict[str, set[int]]:
    """The number of axes of what each norm is given."""
    seen: dict[str, set[int]] = {}
    handles = [
        module.register_forward_pre_hook(lambda _m, x, path=path: seen.setdefault(path, set()).add(x[0].dim()))
        for path, module in model.named_modules()
        if scale_and_shift(module) is not None
    ]
    try:
        with torch.no_grad():
            call()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _same_axis(norm: nn.Module, layer: nn.Module, dims: set[int]) -> bool:
    """Whether a norm's channels are the outputs (or inputs) of a layer, and not some other axis."""
    if len(dims) != 1:
        return False
    last = getattr(norm, "axis", 1) == -1 or dims == {2}
    first = getattr(norm, "axis", 1) == 1
    return last if isinstance(layer, nn.Linear) else first


def _merge_graph(model: nn.Module, graph: Graph, dims: dict[str, set[int]]) -> list[tuple[str, str]]:
    modules = dict(model.named_modules())
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    for node in list(graph.nodes):
        if node.op == "call_module" and isinstance(modules[str(node.target)], _NOTHING):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)

    def weighted(node: Any) -> bool:
        alone = isinstance(node, Node) and node.op == "call_module" and calls[str(node.target)] == 1
        return alone and isinstance(modules[str(node.target)], Weighted)

    merged = []
    for node in list(graph.nodes):
        path = str(node.target)
        if node.op != "call_module" or path not in dims or calls[path] != 1:
            continue
        norm, source, users = modules[path], node.args[0], list(node.users)
        if weighted(source) and len(source.users) == 1 and _same_axis(norm, modules[str(source.target)], dims[path]):
            merge_after(modules[str(source.target)], norm)
            merged.append((path, str(source.target)))
        elif users and all(weighted(user) and user.args == (node,) and not user.kwargs for user in users):
            layers = [modules[str(user.target)] for user in users]
            if not all(takes_before(layer) and _same_axis(norm, layer, dims[path]) for layer in layers):
                continue
            for layer in layers:
                merge_before(layer, norm)
            merged.append((path, str(users[0].target)))
        else:
            continue
        model.set_submodule(path, nn.Identity())
        node.replace_all_uses_with(source)
        graph.erase_node(node)
    return merged


def _merge_sequentials(model: nn.Module, dims: dict[str, set[int]]) -> list[tuple[str, str]]:
    merged = []
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for above, sequence in [(p, m) for p, m in model.named_modules() if isinstance(m, nn.Sequential)]:
        names = [name for name, module in sequence.named_children() if not isinstance(module, _NOTHING)]
        for before, name in pairwise(names):
            layer, norm = sequence.get_submodule(before), sequence.get_submodule(name)
            path = f"{above}.{name}" if above else name
            if places[id(layer)] > 1 or places[id(norm)] > 1:
                continue
            if isinstance(layer, Weighted) and path in dims and _same_axis(norm, layer, dims[path]):
                merge_after(layer, norm)
                sequence._modules[name] = nn.Identity()
                merged.append((path, f"{above}.{before}" if above else before))
    return merged
