"""Choice blocks: several operations in one place, mixed while an architecture is searched, one of them kept.

    out = sum over operations of softmax(alpha)_o op_o(x)           while it is searched
    out = op_k(x),   k = argmax alpha                                once it is chosen

A module that holds architecture parameters says so by a method `architecture()` that lists them; `Choice` is one.
Whatever trains them finds them with `architecture(model)`, on any model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

MIXED = -1  # the number in `kept` of a choice that is still open


class Choice(nn.Module):
    """Operations by name, from one shape to one shape. Which one is kept is a buffer, so that checkpoints hold it."""

    kept: Tensor

    def __init__(self, operations: Mapping[str, nn.Module]):
        super().__init__()
        self.names = list(operations)
        self.operations = nn.ModuleList(operations.values())
        self.alpha = nn.Parameter(torch.zeros(len(self.names)))
        self.register_buffer("kept", torch.tensor(MIXED))
        self._kept = MIXED
        self.register_load_state_dict_post_hook(_read_kept)

    def architecture(self) -> list[nn.Parameter]:
        return [self.alpha]

    def weights(self) -> Tensor:
        """How much each operation counts."""
        return torch.softmax(self.alpha, 0)

    def forward(self, x: Tensor) -> Tensor:
        if self._kept != MIXED:
            return self.operations[self._kept](x)
        shares = self.weights()
        out = shares[0] * self.operations[0](x)
        for share, operation in zip(shares[1:], list(self.operations)[1:], strict=True):
            out = out + share * operation(x)
        return out

    def best(self) -> int:
        """The operation with the largest weight, the first of them where several are. Waits for the device."""
        return int(self.alpha.detach().argmax()) if self._kept == MIXED else self._kept

    def keep(self, index: int) -> None:
        """Leaves one operation; `MIXED` opens the choice again."""
        self._kept = index
        self.kept.fill_(index)


def _read_kept(module: nn.Module, _keys: object) -> None:
    assert isinstance(module, Choice)
    module._kept = int(module.kept)


def choices(model: nn.Module) -> dict[str, Choice]:
    """Every choice of a model by its path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Choice)}


def architecture(model: nn.Module) -> list[nn.Parameter]:
    """The architecture parameters of a model, each once."""
    found = {
        id(p): p
        for module in model.modules()
        if callable(getattr(module, "architecture", None))
        for p in module.architecture()  # type: ignore[operator]
    }
    return list(found.values())


def twin(model: nn.Module) -> nn.Module:
    """A copy with weights and statistics of its own, and the very same architecture parameters."""
    return copy.deepcopy(model, {id(p): p for p in architecture(model)})


def genotype(model: nn.Module) -> list[str]:
    """The names of the operations that the model's choices lean to, in the order of the choices."""
    return [choice.names[choice.best()] for choice in choices(model).values()]


def decide(model: nn.Module) -> None:
    """Leaves in every choice the operation that it leans to."""
    for choice in choices(model).values():
        choice.keep(choice.best())


def extracted(model: nn.Module) -> nn.Module:
    """A copy of the model in which each choice has become the operation that it leans to."""
    if isinstance(model, Choice):
        return copy.deepcopy(model.operations[model.best()])
    made = copy.deepcopy(model)
    for path, choice in choices(made).items():
        parent, _, name = path.rpartition(".")
        made.get_submodule(parent)._modules[name] = choice.operations[choice.best()]
    return made


def entropies(model: nn.Module) -> dict[str, Tensor]:
    """How open each choice still is: the entropy of its weights, by path."""
    return {path: -(c.weights() * torch.log_softmax(c.alpha, 0)).sum().detach() for path, c in choices(model).items()}


# -- operations on images ----------------------------------------------------------------------------------------------


class Zero(nn.Module):
    """No connection."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def _conv(channels: int, size: int) -> nn.Module:
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(channels, channels, size, padding=size // 2, bias=False), nn.BatchNorm2d(channels)
    )


OPERATIONS: dict[str, Callable[[int], nn.Module]] = {
    "zero": lambda channels: Zero(),
    "skip": lambda channels: nn.Identity(),
    "conv3": lambda channels: _conv(channels, 3),
    "conv1": lambda channels: _conv(channels, 1),
    "pool": lambda channels: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
}


def image_choice(channels: int, names: Sequence[str] = tuple(OPERATIONS)) -> Choice:
    """A choice between operations that keep an image's size and channels."""
    return Choice({name: OPERATIONS[name](channels) for name in names})
