"""Networks of many configurations: one set of weights, of which smaller networks use a part without copying it.

A layer's smaller self takes the first channels of its tensors and the centre of its kernel. `configure` sets the sizes
that the next forward pass uses, `extract` copies them into a plain module that computes the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Config = dict[str, Any]


class Elastic:
    """What a network of many configurations can do, beside being a module.

    A subclass says `choices`, each name with its values from the smallest to the largest, follows them in `_follow`,
    and makes a plain module of its current sizes in `_extract`. It begins as its largest self.
    """

    config: Config

    def choices(self) -> dict[str, list[Any]]:
        raise NotImplementedError

    def _follow(self, config: Config) -> None:
        raise NotImplementedError

    def _extract(self) -> nn.Module:
        raise NotImplementedError

    def configure(self, config: Mapping[str, Any]) -> None:
        """Sets the sizes of the next forward passes. Raises ValueError for what is not among the choices."""
        choices = self.choices()
        if set(config) != set(choices):
            raise ValueError(f"A configuration sets {', '.join(choices)}; this one sets {', '.join(config)}.")
        for name, value in config.items():
            if value not in choices[name]:
                raise ValueError(f"{name} = {value!r} is not one of {', '.join(map(str, choices[name]))}.")
        self.config = dict(config)
        self._follow(self.config)

    def canonical(self, config: Mapping[str, Any]) -> Config:
        """The configuration that stands for all those that are the same network. A subclass says which are: sizes that
        round to the same channels, choices of blocks that are left out."""
        return dict(config)

    @contextmanager
    def configured(self, config: Mapping[str, Any]) -> Iterator[None]:
        """Within the context the network has these sizes; afterwards those that it had."""
        before = self.config
        self.configure(config)
        try:
            yield
        finally:
            self.configure(before)

    def extract(self, config: Mapping[str, Any] | None = None) -> nn.Module:
        """A plain module of these sizes (the current ones when None), with its own copies of the weights."""
        with self.configured(self.config if config is None else config):
            plain = self._extract()
        plain.train(self.training)  # type: ignore[attr-defined]
        return plain

    def largest(self) -> Config:
        return {name: values[-1] for name, values in self.choices().items()}

    def smallest(self) -> Config:
        return {name: values[0] for name, values in self.choices().items()}

    def middle(self) -> Config:
        """The middle value of each choice, the larger one where there are two."""
        return {name: values[len(values) // 2] for name, values in self.choices().items()}

    def sample(self, rng: torch.Generator) -> Config:
        """Each choice drawn on its own, every value equally likely."""
        choices = self.choices()
        drawn = torch.rand(len(choices), generator=rng, device=rng.device).tolist()
        return {name: values[int(u * len(values))] for u, (name, values) in zip(drawn, choices.items(), strict=True)}

    def mutate(self, config: Mapping[str, Any], rate: float, rng: torch.Generator) -> Config:
        """The configuration with each choice drawn anew at this rate."""
        other = self.sample(rng)
        keep = torch.rand(len(config), generator=rng, device=rng.device).tolist()
        return {name: other[name] if u < rate else config[name] for u, name in zip(keep, config, strict=True)}

    def count(self) -> int:
        """How many configurations there are."""
        return math.prod(len(values) for values in self.choices().values())

    def grid(self) -> Iterator[Config]:
        """The configurations in which choices of one kind (the name's last word) move together, smallest first."""
        choices = self.choices()
        kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in choices))
        lengths = [max(len(v) for n, v in choices.items() if n.rpartition(".")[2] == kind) for kind in kinds]
        for at in itertools.product(*(range(length) for length in lengths)):
            index = dict(zip(kinds, at, strict=True))
            yield {n: v[min(index[n.rpartition(".")[2]], len(v) - 1)] for n, v in choices.items()}


def centre(kernel: Tensor, size: int) -> Tensor:
    """The middle of a kernel [..., K, K]; the whole of it where it has that size."""
    start = (kernel.shape[-1] - size) // 2
    return kernel[..., start : start + size, start : start + size] if start else kernel


class ElasticLinear(nn.Linear):
    """A linear layer of which the first inputs and outputs can be used alone."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__(in_features, out_features, bias)
        self.inputs, self.outputs = in_features, out_features

    def configure(self, inputs: int | None = None, outputs: int | None = None) -> None:
        self.inputs, self.outputs = inputs or self.in_features, outputs or self.out_features

    def active(self) -> tuple[Tensor, Tensor | None]:
        """The weights that are used."""
        return self.weight[: self.outputs, : self.inputs], None if self.bias is None else self.bias[: self.outputs]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.active())

    def extract(self) -> nn.Linear:
        return _filled(nn.Linear(self.inputs, self.outputs, self.bias is not None), *self.active())


class ElasticConv2d(nn.Conv2d):
    """A convolution that keeps the image's size (or divides it by the stride), of which the first channels and the
    kernel's centre can be used alone."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, bias: bool = False):
        if kernel % 2 == 0:
            raise ValueError(f"A kernel of {kernel} pixels has no centre: use an odd number.")
        super().__init__(in_channels, out_channels, kernel, stride, kernel // 2, bias=bias)
        self.inputs, self.outputs, self.kernel = in_channels, out_channels, kernel

    def configure(self, inputs: int | None = None, outputs: int | None = None, kernel: int | None = None) -> None:
        self.inputs, self.outputs = inputs or self.in_channels, outputs or self.out_channels
        self.kernel = kernel or self.kernel_size[0]

    def active(self) -> tuple[Tensor, Tensor | None]:
        """The weights that are used."""
        weight = centre(self.weight[: self.outputs, : self.inputs], self.kernel)
        return weight, None if self.bias is None else self.bias[: self.outputs]

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.active()
        return F.conv2d(x, weight, bias, self.stride, self.kernel // 2)

    def extract(self) -> nn.Conv2d:
        size, stride = self.kernel, self.stride[0]
        plain = nn.Conv2d(self.inputs, self.outputs, size, stride, size // 2, bias=self.bias is not None)
        return _filled(plain, *self.active())


class ElasticBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization of which the first channels can be used alone. All configurations share the running
    statistics, which then are nobody's own: measure them anew before one is evaluated (`engine.kit.calibration`)."""

    def __init__(self, num_features: int):
        super().__init__(num_features)
        self.features = num_features

    def configure(self, features: int | None = None) -> None:
        self.features = features or self.num_features

    def forward(self, x: Tensor) -> Tensor:
        own = self.training and self.track_running_stats
        factor = self.momentum or 0.0
        if own and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                factor = 1.0 / float(self.num_batches_tracked)
        c = self.features
        mean, var = (None if t is None else t[:c] for t in (self.running_mean, self.running_var))
        if self.training and not own:
            mean = var = None
        return F.batch_norm(x, mean, var, self.weight[:c], self.bias[:c], self.training, factor, self.eps)

    def extract(self) -> nn.BatchNorm2d:
        c = self.features
        plain = _filled(nn.BatchNorm2d(c, self.eps, self.momentum), self.weight[:c], self.bias[:c])
        assert plain.running_mean is not None and plain.running_var is not None
        assert self.running_mean is not None and self.running_var is not None
        plain.running_mean.copy_(self.running_mean[:c])
        plain.running_var.copy_(self.running_var[:c])
        return plain


@torch.no_grad()
def _filled(plain: Any, weight: Tensor, bias: Tensor | None) -> Any:
    plain = plain.to(weight.device, weight.dtype)
    plain.weight.copy_(weight)
    if bias is not None:
        plain.bias.copy_(bias)
    return plain


class Residual(nn.Module):
    """A body and a shortcut, added, then a nonlinearity: what an elastic block is once it has been extracted."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, activation: nn.Module):
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(x) + self.shortcut(x))


class ElasticBlock(nn.Module):
    """A residual block: two convolutions with elastic input, inner width, output and kernel.

    `zero_gamma` starts the last normalization at zero, so that the block starts as its shortcut.
    """

    def __init__(self, inputs: int, outputs: int, inner: int, kernel: int, stride: int = 1, zero_gamma: bool = True):
        super().__init__()
        self.first, self.first_norm = ElasticConv2d(inputs, inner, kernel, stride), ElasticBatchNorm2d(inner)
        self.second, self.second_norm = ElasticConv2d(inner, outputs, kernel), ElasticBatchNorm2d(outputs)
        self.inner_activation, self.activation = nn.ReLU(), nn.ReLU()
        changes = stride != 1 or inputs != outputs
        self.shortcut = ElasticConv2d(inputs, outputs, 1, stride) if changes else nn.Identity()
        if zero_gamma:
            nn.init.zeros_(self.second_norm.weight)

    def configure(self, inputs: int, outputs: int, inner: int, kernel: int) -> None:
        self.first.configure(inputs, inner, kernel)
        self.first_norm.configure(inner)
        self.second.configure(inner, outputs, kernel)
        self.second_norm.configure(outputs)
        if isinstance(self.shortcut, ElasticConv2d):
            self.shortcut.configure(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.inner_activation(self.first_norm(self.first(x)))
        return self.activation(self.second_norm(self.second(inner)) + self.shortcut(x))

    def extract(self) -> Residual:
        first, second = (self.first, self.first_norm), (self.second, self.second_norm)
        body = nn.Sequential(*(m.extract() for m in first), nn.ReLU(), *(m.extract() for m in second))
        shortcut = self.shortcut.extract() if isinstance(self.shortcut, ElasticConv2d) else nn.Identity()
        return Residual(body, shortcut, nn.ReLU())


class ElasticStage(nn.ModuleList):
    """Blocks in a row, of which the first `depth` are used."""

    def __init__(self, blocks: Sequence[nn.Module]):
        super().__init__(blocks)
        self.depth = len(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in list(self)[: self.depth]:
            x = block(x)
        return x

    def extract(self) -> nn.Sequential:
        blocks: list[Any] = list(self)[: self.depth]
        return nn.Sequential(*(block.extract() for block in blocks))


class Resize(nn.Module):
    """Images at another resolution, by linear interpolation; those that have it already pass as they are."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] == (self.size, self.size):
            return x
        return F.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False)
