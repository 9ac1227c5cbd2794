"""Start and rates by which wide networks learn like narrow ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from engine.fields import Count
from engine.kit.anatomy import Anatomy, anatomy_of
from engine.parts import Task, Technique, technique

if TYPE_CHECKING:
    from engine.training.run import Run

ID = "adam-mup"


@dataclass(frozen=True)
class Powers:
    """By which powers of r = width / base width a parameter's start, rate and eps differ from the standard ones."""

    start: float = 0.0
    rate: float = 0.0
    eps: float = 0.0


# Against a standard start, whose weights have a deviation of 1 / sqrt(inputs) and whose biases are as small.
POWERS = {
    "mup": {
        "input": Powers(eps=-1),
        "hidden": Powers(rate=-1, eps=-1),
        "output": Powers(start=-0.5, rate=-1),
        "bias": Powers(start=0.5, eps=-1),
        "vector": Powers(eps=-1),
        "output bias": Powers(start=0.5),
    },
    "ntk": {
        "input": Powers(rate=-0.5, eps=-0.5),
        "hidden": Powers(rate=-1.5, eps=-0.5),
        "output": Powers(rate=-1),
        "bias": Powers(start=0.5, rate=-0.5, eps=-0.5),
        "vector": Powers(rate=-0.5, eps=-0.5),
        "output bias": Powers(start=0.5),
    },
}


@technique(
    id=ID,
    name="Maximal update (muP) for adaptive optimizers",
    paper="Tensor Programs IVb: Adaptive Optimization in the Infinite-Width Limit",
    arxiv="2308.01814",
    recommends={"optimizer": {"use": "adamw", "lr": 0.003}},
    example={"model": {"hidden": [16, 16]}, "techniques": [{"use": ID, "base_width": 8}]},
)
class AdamMuP(Technique):
    """Gives every kind of weight the start and the rate by which a network learns alike at any width. A learning rate
    that is right for a narrow model is then right for a wide one.

        r = width / base_width;   against the usual start and the recipe's rate and eps:
                     input weights    hidden weights    output weights    biases, gains
        muP  start   1                1                 r^-1/2            r^1/2 (biases, so that they stay as they are)
             rate    1                r^-1              r^-1              1
             eps     r^-1             r^-1              1                 r^-1
        NTK  rate    r^-1/2           r^-3/2            r^-1              r^-1/2
             eps     r^-1/2           r^-1/2            1                 r^-1/2
        attention (muP): scores q k' / sqrt(d) become q k' sqrt(d_base) / d

    In muP the features of every layer move by as much as in the base model. In the limit of the neural tangent kernel
    (NTK) they hardly move in a wide network, and only the answer does.

    Helps: Finding a rate on a small model and keeping it for a large one.
    Hurts: Nothing at the base width, where the run is the same bit for bit; elsewhere the best rate of a model changes
        once.
    Cost: None: a few more groups in the optimizer.
    Choices: The width is that of the first block's output, and all widths of the model count as scaled together. Decay
        that an optimizer multiplies by the rate keeps its strength: it is divided by what the rate is multiplied by.
        The bias of the output has gradients of one size at every width and keeps its eps. Gains of norms start at one
        as ever. The start is a scaling of the model's own, whatever its distribution.

    Args:
        base_width: The width at which nothing changes, and at which the rate was found.
        parametrization: Maximal updates, or the limit of the neural tangent kernel.
        zero_init_output: Start the output weights at zero, as is often done with muP.
    """

    def __init__(
        self,
        base_width: Count = 64,
        parametrization: Literal["mup", "ntk"] = "mup",
        zero_init_output: bool = False,
    ) -> None:
        self.base_width, self.parametrization, self.zero_init_output = base_width, parametrization, zero_init_output

    def prepare_model(self, run: Run, model: nn.Module) -> nn.Module:
        anatomy = anatomy_of(model)
        r = width_of(anatomy) / self.base_width
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                kind = kind_of(anatomy, name, parameter)
                if kind == "output" and self.zero_init_output:
                    parameter.zero_()
                else:
                    parameter.mul_(r ** self.powers(kind).start)
        if self.parametrization == "mup" and r != 1:
            for site in anatomy.sites("attention"):
                rescale(site.module, r)
        run.note(f"The model is {r:.4g} times as wide as the base width of {self.base_width}.")
        return model

    def group_options(self, run: Run, model: nn.Module) -> dict[str, dict[str, Any]]:
        settings = run.recipe["optimizer"]
        anatomy = anatomy_of(model)
        r = width_of(anatomy) / self.base_width
        if r == 1:
            return {}
        options = {}
        for name, parameter in model.named_parameters():
            powers = self.powers(kind_of(anatomy, name, parameter))
            rate = r**powers.rate
            options[name] = {"lr": settings["lr"] * rate}
            if "eps" in settings:
                options[name]["eps"] = settings["eps"] * r**powers.eps
            if settings.get("weight_decay"):
                options[name]["weight_decay"] = settings["weight_decay"] / rate
        return options

    def powers(self, kind: str) -> Powers:
        return POWERS[self.parametrization][kind]

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        optimizer = recipe["optimizer"] or {}
        if "lr" not in optimizer or "betas" not in optimizer:
            return (
                "Its rates are for optimizers that bring every gradient to one size, as AdamW does; "
                "choose one that has betas."
            )
        try:
            width_of(anatomy)
        except ValueError as error:
            return str(error)
        if settings["parametrization"] == "mup":
            for site in anatomy.sites("attention"):
                if not hasattr(site.module, "scale"):
                    return f"{site.path} has no scale of its scores that can be set; choose another model."
        return None


def width_of(anatomy: Anatomy) -> int:
    """The size of the first block's output. Raises ValueError where the model has no blocks."""
    if not anatomy.blocks:
        raise ValueError("It tells a model's width from its first block, and this one has none; choose another.")
    inside = {id(module) for module in anatomy.blocks[0].modules()}
    sites = [site for site in anatomy.sites("weight") if id(site.module) in inside]
    if not sites:
        raise ValueError("The model's first block has no weights, so its width is not known; choose another.")
    return sites[-1].features


def kind_of(anatomy: Anatomy, name: str, parameter: Tensor) -> str:
    """What widening the model does to a parameter, with biases apart from the gains of norms."""
    role = anatomy.width_role(name)
    if role != "vector":
        return role
    owner, _, last = name.rpartition(".")
    module = anatomy.module.get_submodule(owner)
    if last != "bias":
        return "vector"
    if any(module is inner for inner in anatomy.head.modules()):
        return "output bias"
    weight = getattr(module, "weight", None)
    return "bias" if isinstance(weight, Tensor) and weight.dim() > 1 else "vector"


def rescale(attention: Any, r: float) -> None:
    """Scores by 1 / d in the place of 1 / sqrt(d), equal to the standard ones at the base width."""
    size = attention.features / attention.heads
    attention.scale = (size / r) ** 0.5 / size
