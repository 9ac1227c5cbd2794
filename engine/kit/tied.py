"""Which channels of a model must vanish or permute together: found by following them through the traced graph.

Every weight makes new channels and consumes those that came in; norms, biases and sums bind what they touch. A group is
one set of such channels, with every place in every parameter where they stand. Channels that reach the outside (the
inputs, the answers) are in no group: they cannot be changed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils import parametrize

Side = str  # "output": the channels' own weights; "input": the weights that read them; "along": a norm's gains, shifts


@dataclass(frozen=True)
class Member:
    """Where a group's channels stand in one parameter: channel i fills `repeat` places from start + i * repeat."""

    name: str
    dim: int
    side: Side
    start: int = 0
    repeat: int = 1

    def places(self, channels: Tensor) -> Tensor:
        """The places of some channels along the member's dimension, in the order given."""
        each = torch.arange(self.repeat, device=channels.device)
        return (self.start + channels[:, None] * self.repeat + each).flatten()


@dataclass(frozen=True)
class Group:
    """Channels that must vanish or permute together."""

    size: int
    members: tuple[Member, ...]
    reason: str = ""  # why a channel whose own parameters are all zero may still not be cut out, where that is so

    @property
    def removable(self) -> bool:
        """Whether a channel whose own parameters are all zero can be cut out and nothing changes."""
        return not self.reason

    def names(self, side: Side | None = None) -> list[str]:
        return [member.name for member in self.members if side in (None, member.side)]


@dataclass(frozen=True)
class Segment:
    """A run of channels along a tensor's axis: a group's, each repeated over neighbouring places."""

    group: int
    size: int
    repeat: int = 1


@dataclass(frozen=True)
class Layout:
    """Where the channels of a tensor are: its axis, and the segments along it."""

    axis: int
    segments: tuple[Segment, ...]


class Untied(ValueError):
    """The channels cannot be followed; the message says where and why."""


class Tying:
    """Collects groups. A module with a rule of its own has `tie(tying, path, layout) -> layout` and calls these."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._size: list[int] = []
        self._fixed: list[bool] = []
        self._reason: list[str] = []
        self._members: list[list[Member]] = []

    def group(self, size: int, fixed: bool = False) -> int:
        """New channels."""
        self._parent.append(len(self._parent))
        self._size.append(size)
        self._fixed.append(fixed)
        self._reason.append("")
        self._members.append([])
        return len(self._parent) - 1

    def add(self, group: int, name: str, dim: int, side: Side, start: int = 0, repeat: int = 1) -> None:
        """Says that a group's channels stand in a parameter."""
        self._members[self._find(group)].append(Member(name, dim, side, start, repeat))

    def produce(self, places: Sequence[tuple[str, int]], size: int, axis: int) -> Layout:
        """New channels along an axis, made by the given parameters along the given dimensions."""
        group = self.group(size)
        for name, dim in places:
            self.add(group, name, dim, "output")
        return Layout(axis, (Segment(group, size),))

    def consume(self, name: str, dim: int, layout: Layout, side: Side = "input") -> None:
        """A parameter reads the channels of a layout along one of its dimensions."""
        start = 0
        for segment in layout.segments:
            self.add(segment.group, name, dim, side, start, segment.repeat)
            start += segment.size * segment.repeat

    def unite(self, one: Layout, other: Layout) -> None:
        """The channels of two layouts are the same."""
        sizes = [[(s.size, s.repeat) for s in layout.segments] for layout in (one, other)]
        if sizes[0] != sizes[1]:
            raise Untied(f"channels in groups of {sizes[0]} meet channels in groups of {sizes[1]}")
        for a, b in zip(one.segments, other.segments, strict=True):
            self._merge(self._find(a.group), self._find(b.group))

    def fix(self, layout: Layout) -> None:
        """The channels of a layout are seen from outside."""
        for segment in layout.segments:
            self._fixed[self._find(segment.group)] = True

    def keep(self, layout: Layout, reason: str) -> None:
        """The channels of a layout may change places, but none may be cut out, though its own parameters be zero."""
        for segment in layout.segments:
            self._reason[self._find(segment.group)] = reason

    def is_fixed(self, layout: Layout) -> bool:
        return all(self._fixed[self._find(segment.group)] for segment in layout.segments)

    def groups(self) -> list[Group]:
        """The groups whose channels may be changed, in the order in which they were met."""
        roots = [i for i in range(len(self._parent)) if self._find(i) == i and not self._fixed[i] and self._members[i]]
        return [Group(self._size[i], tuple(dict.fromkeys(self._members[i])), self._reason[i]) for i in roots]

    def _find(self, group: int) -> int:
        while self._parent[group] != group:
            group = self._parent[group]
        return group

    def _merge(self, one: int, other: int) -> None:
        first, second = min(one, other), max(one, other)
        if first != second:
            self._parent[second] = first
            self._fixed[first] |= self._fixed[second]
            self._reason[first] = self._reason[first] or self._reason[second]
            self._members[first] += self._members[second]
            self._members[second] = []


def find_groups(module: nn.Module, example: Tensor) -> list[Group]:
    """The groups of a model, followed on an input on the meta device. Raises ValueError with the reason for none."""
    from engine.kit.anatomy import trace

    modes = {m: m.training for m in module.modules()}
    try:
        module.eval()
        graph = trace(module, leaf=lambda m: hasattr(m, "tie"))
        return _Follower(module, example).follow(graph)
    finally:
        for m, mode in modes.items():
            m.training = mode


# -- following the graph -----------------------------------------------------------------------------------------------

Seen = tuple[Any, Layout | None]  # a value on the meta device, and where its channels are


class _Follower:
    def __init__(self, module: nn.Module, example: Tensor):
        self.module, self.example = module, like(module, example)
        self.modules = dict(module.named_modules())
        self.tying = Tying()
        self.env: dict[torch.fx.Node, Seen] = {}
        self.parameters: dict[torch.fx.Node, str] = {}  # nodes that are a parameter, or some of its rows

    def follow(self, graph: torch.fx.Graph) -> list[Group]:
        for node in graph.nodes:
            try:
                with torch.no_grad():
                    self.env[node] = self._node(node)
            except Untied as error:
                raise ValueError(
                    f"The channels of {type(self.module).__name__} cannot be followed through {node.name}: {error}."
                ) from error
        return self.tying.groups()

    def _node(self, node: torch.fx.Node) -> Seen:
        if node.op == "placeholder":
            return self._input()
        if node.op == "get_attr":
            self.parameters[node] = str(node.target)
            return _meta(_attribute(self.module, str(node.target))), None
        if node.op == "output":
            for layout in self._layouts(node):
                self.tying.fix(layout)
            return None, None
        values = torch.fx.node.map_arg(node.args, lambda n: self.env[n][0])
        options = torch.fx.node.map_arg(node.kwargs, lambda n: self.env[n][0])
        if node.op == "call_module":
            path = str(node.target)
            value = _call(self.modules[path], values, options)
            return value, self._through(path, self.modules[path], self._layouts(node), values[0], value)
        if node.op == "call_method":
            value = getattr(values[0], str(node.target))(*values[1:], **options)
            name = str(node.target)
        else:
            value = node.target(*values, **options)  # type: ignore[operator]
            name = getattr(node.target, "__name__", str(node.target))
        return value, self._function(name, node, values, options, value)

    def _input(self) -> Seen:
        if self.example.dtype.is_floating_point and self.example.dim() > 1:
            axis = 1 if self.example.dim() > 2 else self.example.dim() - 1
            size = self.example.shape[axis]
            return self.example, Layout(axis, (Segment(self.tying.group(size, fixed=True), size),))
        return self.example, None

    def _layouts(self, node: torch.fx.Node) -> list[Layout]:
        found = [self.env[n][1] for n in node.all_input_nodes]
        return [layout for layout in found if layout is not None]

    # -- modules -------------------------------------------------------------------------------------------------------

    def _through(self, path: str, module: nn.Module, layouts: list[Layout], taken: Any, value: Any) -> Layout | None:
        if any(parametrize.is_parametrized(m) for m in module.modules()):
            raise Untied("its weight is mapped (masked, quantized or reparametrized); fold the model first")
        if not layouts and not isinstance(module, nn.Embedding):
            if not any(True for _ in module.parameters()):
                return None
            raise Untied("what comes in has no channels that are known")
        own = getattr(module, "tie", None)
        if own is not None:
            return own(self.tying, path, layouts[0])
        if isinstance(module, nn.Flatten):
            return _flattened(layouts[0], taken, module.start_dim, module.end_dim)
        for types, rule in _RULES:
            if isinstance(module, types):
                return rule(self.tying, path, module, layouts[0] if layouts else None, value)
        raise Untied(f"nothing is known of {type(module).__name__}")

    # -- functions -----------------------------------------------------------------------------------------------------

    def _function(
        self, name: str, node: torch.fx.Node, values: Sequence[Any], options: dict[str, Any], out: Any
    ) -> Layout | None:
        layouts = self._layouts(node)
        if not layouts or not isinstance(out, Tensor):
            source = node.args[0] if node.args else None
            if name == "getitem" and source in self.parameters and isinstance(values[1], slice):
                self.parameters[node] = self.parameters[source]  # type: ignore[index]
            if layouts and isinstance(out, tuple | list) and any(isinstance(each, Tensor) for each in out):
                raise Untied(f"nothing is known of {name}()")
            return None
        first = layouts[0]
        if name in _ARITHMETIC:
            self._check_zero(name, values, first)
            return self._arithmetic(node, out)
        if name in _ELEMENTWISE:
            if name in _NONZERO:
                self.tying.keep(first, f"{name}() makes something else of zero")
            return first
        if name in _POOLS:
            return first
        if name == "flatten":
            start = _option(values, options, 1, "start_dim", 0)
            return _flattened(first, values[0], start, _option(values, options, 2, "end_dim", -1))
        if name in ("view", "reshape") and out.dim() == 2 and out.shape[0] == values[0].shape[0]:
            return _flattened(first, values[0], 1, -1)
        if name in ("mean", "sum", "amax"):
            return _reduced(first, values, options)
        if name in ("cat", "concat", "concatenate"):
            return self._concatenated(layouts, values, options, len(node.all_input_nodes))
        if name in ("transpose", "permute", "unsqueeze"):
            return _moved(first, name, values, options)
        if name == "getitem":
            return _indexed(first, values[1], values[0].dim())
        raise Untied(f"nothing is known of {name}()")

    def _check_zero(self, name: str, values: Sequence[Any], layout: Layout) -> None:
        """A number that is added, or a quotient by what may be zero, makes something else of a zero channel."""
        shifts = name.strip("_").removeprefix("i").removeprefix("r") in ("add", "sub")
        shifts = shifts and any(isinstance(value, int | float) and value for value in values)
        if shifts or ("div" in name and isinstance(values[-1], Tensor)):
            self.tying.keep(layout, f"{name}() makes something else of zero")

    def _arithmetic(self, node: torch.fx.Node, out: Tensor) -> Layout:
        """Sums and products bind the channels of both sides, aligned from the right as broadcasting does."""
        sides = [(n, *self.env[n]) for n in node.all_input_nodes if isinstance(self.env[n][0], Tensor)]
        known = [(value, layout) for _, value, layout in sides if layout is not None]
        aligned = [replace(layout, axis=layout.axis + out.dim() - value.dim()) for value, layout in known]
        first = aligned[0]
        for other in aligned[1:]:
            if other.axis != first.axis:
                raise Untied("it joins channels that stand on different axes")
            self.tying.unite(first, other)
        for n, value, layout in sides:
            dim = first.axis - (out.dim() - value.dim())
            if layout is None and dim >= 0 and value.shape[dim] != 1:
                if n not in self.parameters or value.shape[dim] != _places_along(first):
                    raise Untied("it joins channels with something that has none")
                self.tying.consume(self.parameters[n], dim, first, "output" if len(known) == 1 else "along")
        return first

    def _concatenated(
        self, layouts: list[Layout], values: Sequence[Any], options: dict[str, Any], count: int
    ) -> Layout:
        tensors = values[0]
        dim = _option(values, options, 1, "dim", 0) % tensors[0].dim()
        if len(layouts) != count or any(layout.axis != layouts[0].axis for layout in layouts):
            raise Untied("it joins channels with something that has none")
        if dim == layouts[0].axis:
            return Layout(dim, tuple(segment for layout in layouts for segment in layout.segments))
        for layout in layouts[1:]:
            self.tying.unite(layouts[0], layout)
        return layouts[0]


_ARITHMETIC = {"add", "iadd", "sub", "isub", "mul", "imul", "__add__", "__radd__", "__mul__", "__rmul__"}
_ARITHMETIC |= {"add_", "sub_", "mul_", "truediv", "div"}
_ELEMENTWISE = {
    *(
        "relu",
        "relu_",
        "gelu",
        "silu",
        "tanh",
        "sigmoid",
        "elu",
        "leaky_relu",
        "hardswish",
        "hardtanh",
        "relu6",
        "mish",
    ),
    *(
        "softplus",
        "dropout",
        "dropout2d",
        "contiguous",
        "float",
        "to",
        "clone",
        "detach",
        "neg",
        "abs",
        "square",
        "exp",
    ),
}
_NONZERO = {"sigmoid", "softplus", "exp"}  # of those
_POOLS = {f"{kind}_pool{n}d" for kind in ("avg", "max", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)}
_POOLS |= {"_max_pool1d", "_max_pool2d", "boolean_dispatch", "fn"}  # how max pooling shows in a graph


def _places_along(layout: Layout) -> int:
    """Places along the axis of a layout."""
    return sum(segment.size * segment.repeat for segment in layout.segments)


def _linear(tying: Tying, path: str, module: Any, layout: Layout, out: Tensor) -> Layout:
    if layout.axis == out.dim() - 1:
        tying.consume(f"{path}.weight", 1, layout)
    elif not tying.is_fixed(layout):
        raise Untied("it mixes places and not channels")
    return tying.produce(_places(path, module), module.out_features, out.dim() - 1)


def _convolution(tying: Tying, path: str, module: Any, layout: Layout, out: Tensor) -> Layout:
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        raise Untied("transposed convolutions are not followed")
    if module.groups == 1:
        tying.consume(f"{path}.weight", 1, layout)
        return tying.produce(_places(path, module), module.out_channels, 1)
    if module.groups == module.in_channels == module.out_channels:
        for name, dim in _places(path, module):
            tying.consume(name, dim, layout, "along")
        return layout
    raise Untied(f"its {module.groups} groups of channels do not move freely")


def _places(path: str, module: Any) -> list[tuple[str, int]]:
    return [(f"{path}.weight", 0)] + ([(f"{path}.bias", 0)] if module.bias is not None else [])


def _batch_norm(tying: Tying, path: str, module: Any, layout: Layout, out: Tensor) -> Layout:
    for name in ("weight", "bias", "running_mean", "running_var"):
        if getattr(module, name, None) is not None:
            tying.consume(f"{path}.{name}", 0, layout, "along")
    if getattr(module, "affine", True) is False:
        tying.keep(layout, f"{path} has no gain that could be zero, and shifts by a running mean")
    return layout


def _layer_norm(tying: Tying, path: str, module: Any, layout: Layout, out: Tensor) -> Layout:
    tying.keep(layout, f"{path} normalizes each channel with all others")
    dim = layout.axis - (out.dim() - len(module.normalized_shape))
    for name in ("weight", "bias"):
        if dim >= 0 and getattr(module, name, None) is not None:
            tying.consume(f"{path}.{name}", dim, layout, "along")
    return layout


def _group_norm(tying: Tying, path: str, module: Any, layout: Layout, out: Tensor) -> Layout:
    if module.num_groups > 1:
        tying.fix(layout)  # a channel stays among those that it is normalized with
    tying.keep(layout, f"{path} normalizes each channel with all others")
    return _batch_norm(tying, path, module, layout, out)


def _activation(tying: Tying, path: str, module: Any, layout: Layout | None, out: Tensor) -> Layout | None:
    if isinstance(module, nn.PReLU) and module.num_parameters > 1 and layout is not None:
        tying.consume(f"{path}.weight", 0, layout, "along")
    if isinstance(module, _NONZERO_MODULES) and layout is not None:
        tying.keep(layout, f"{path} makes something else of zero")
    return layout


def _embedding(tying: Tying, path: str, module: Any, layout: Layout | None, out: Tensor) -> Layout:
    return tying.produce([(f"{path}.weight", 1)], module.embedding_dim, out.dim() - 1)


_NONZERO_MODULES = (nn.Sigmoid, nn.Softplus, nn.Hardsigmoid)
_SAME = (
    *(
        getattr(nn.modules.activation, n)
        for n in ("ReLU", "GELU", "SiLU", "Tanh", "Sigmoid", "ELU", "LeakyReLU", "PReLU")
    ),
    *(nn.Mish, nn.Hardswish, nn.Hardtanh, nn.Softplus, nn.SELU, nn.CELU, nn.Softsign, nn.Hardsigmoid),
    *(
        nn.Identity,
        nn.Sequential,
        nn.modules.dropout._DropoutNd,
        nn.modules.pooling._AvgPoolNd,
        nn.modules.pooling._MaxPoolNd,
    ),
    *(nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd),
)
_RULES: tuple[tuple[Any, Callable[..., Layout | None]], ...] = (
    (nn.Linear, _linear),
    (nn.modules.conv._ConvNd, _convolution),
    (nn.modules.batchnorm._NormBase, _batch_norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    (nn.GroupNorm, _group_norm),
    (nn.Embedding, _embedding),
    (_SAME, _activation),
)


# -- axes --------------------------------------------------------------------------------------------------------------


def _flattened(layout: Layout, taken: Tensor, start: int, end: int) -> Layout:
    """The axis after the axes from start to end became one: a channel then fills neighbouring places."""
    start, end = start % taken.dim(), end % taken.dim()
    if layout.axis < start:
        return layout
    if layout.axis > end:
        return replace(layout, axis=layout.axis - (end - start))
    if math.prod(taken.shape[start : layout.axis]) != 1:
        raise Untied("a channel's places would not stand beside each other")
    inner = math.prod(taken.shape[layout.axis + 1 : end + 1])
    return Layout(start, tuple(replace(segment, repeat=segment.repeat * inner) for segment in layout.segments))


def _reduced(layout: Layout, values: Sequence[Any], options: dict[str, Any]) -> Layout:
    dims, keep = _option(values, options, 1, "dim", None), _option(values, options, 2, "keepdim", False)
    if dims is None:
        raise Untied("it sums over the channels")
    gone = {dim % values[0].dim() for dim in (dims if isinstance(dims, Sequence) else [dims])}
    if layout.axis in gone:
        raise Untied("it sums over the channels")
    return layout if keep else replace(layout, axis=layout.axis - sum(dim < layout.axis for dim in gone))


def _moved(layout: Layout, name: str, values: Sequence[Any], options: dict[str, Any]) -> Layout:
    taken, rest = values[0], list(values[1:]) or list(options.values())
    if name == "unsqueeze":
        dim = rest[0] % (taken.dim() + 1)
        return replace(layout, axis=layout.axis + (dim <= layout.axis))
    order = list(range(taken.dim()))
    if name == "transpose":
        order[rest[0]], order[rest[1]] = order[rest[1]], order[rest[0]]
    else:
        order = [dim % taken.dim() for dim in (rest[0] if isinstance(rest[0], Sequence) else rest)]
    return replace(layout, axis=order.index(layout.axis))


def _indexed(layout: Layout, index: Any, dims: int) -> Layout:
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (dims - len(parts) + 1)
    if not all(isinstance(part, int | slice) for part in parts):
        raise Untied("its index is neither a number nor a slice")
    if len(parts) > layout.axis and parts[layout.axis] != slice(None):
        raise Untied("it takes some of the channels")
    return replace(layout, axis=layout.axis - sum(isinstance(part, int) for part in parts[: layout.axis]))


def _option(values: Sequence[Any], options: dict[str, Any], position: int, name: str, default: Any) -> Any:
    return values[position] if len(values) > position else options.get(name, default)


def _attribute(module: nn.Module, path: str) -> Any:
    return operator.attrgetter(path)(module)


def _meta(value: Any) -> Any:
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value


def like(module: nn.Module, example: Tensor) -> Tensor:
    """The example in the floating type of the module's parameters."""
    kind = next((p.dtype for p in module.parameters() if p.is_floating_point()), example.dtype)
    return example.to(kind) if example.is_floating_point() else example


def _call(module: nn.Module, values: Any, options: Any) -> Any:
    state = {name: _meta(t) for name, t in (*module.named_parameters(), *module.named_buffers())}
    return torch.func.functional_call(module, state, tuple(values), options)
