"""An optimizer that was itself trained, on problems without end, put to work on a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from engine.fields import Positive, Rate, SourceField
from engine.kit.optimizing import Bundle, ForeachOptimizer, listed
from engine.methods.solvers.l2o_pa import StructuredRule
from engine.parts import Task, optimizer

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy

TRAINED_BY = "l2o-pa"


@optimizer(
    id="learned-optimizer",
    name="Learned optimizer",
    paper="Towards Constituting Mathematical Structures for Learning to Optimize",
    arxiv="2305.18577",
    graph="never",
    example={"optimizer": {"source": "recipe:sources/small-learned-optimizer.toml"}},
)
class LearnedOptimizer(ForeachOptimizer):
    """Moves each weight as an optimizer that was trained on other problems says: a preconditioner and a momentum for
    every weight and step, from a small network that all weights share.

        z+ = w - P lr g;   w <- z+ + A (z+ - z);   z <- z+
        P, A = 2 sigmoid(LSTM(g, w)), each weight with a state of its own

    This is the rule of its training without the penalty: a learned, preconditioned momentum.

    Helps: Seeing what a learned optimizer does outside of what it was trained on.
    Hurts: A network's loss is not what it has seen: it may be no better than SGD with momentum, and a momentum near 2
        can diverge. Try small rates.
    Cost: A small network for every weight, some hundred times the work of SGD, and its state: with 2 layers of 20, 80
        numbers a weight.
    Choices: the rate takes the place of the step over L of its training. The states start as normal random numbers,
        from a fixed seed for each parameter.

    Args:
        params: the parameters or groups to optimize
        source: the trained optimizer: a run or recipe of the procedure that trains such
        lr: the length of a step where P is 1; 1 / L of the training, where L is the largest curvature
        gradient_scale: what gradients are multiplied by before the network sees them

    Raises:
        ValueError: when the source is no such optimizer, or one that needs gradients at two places
    """

    buffers: ClassVar[tuple[str, ...]] = ("z",)

    def __init__(self, params: ParamsT, source: SourceField, lr: Rate = 0.05, gradient_scale: Positive = 1.0) -> None:
        self._source = source
        self._rule: Any = None
        super().__init__(listed(params), {"lr": lr, "gradient_scale": gradient_scale})

    def attach(self, model: nn.Module, oracle: Any) -> None:
        """Takes the trained network. `model` and `oracle` are those of the training that begins; it needs neither."""
        rule = self._source.model()
        if not isinstance(rule, StructuredRule):
            raise ValueError(f"{self._source.label} holds no learned optimizer. Name a run of {TRAINED_BY}.")
        if "b" in rule.names:
            raise ValueError(f"{self._source.label} mixes two places (use_b), whose gradients a model does not have.")
        self._rule = rule

    def _first(self, state: dict[str, Any], parameter: Tensor, gradient: Tensor) -> None:
        super()._first(state, parameter, gradient)
        state["z"].copy_(parameter)
        every = [p for group in self.param_groups for p in group["params"]]
        number = next(i for i, each in enumerate(every) if each is parameter)
        rng = torch.Generator(parameter.device).manual_seed(number)
        for i, (h, c) in enumerate(self._fitting(state["z"]).lstm.start(parameter.numel(), rng)):
            state[f"h{i}"], state[f"c{i}"] = h, c

    def _fitting(self, like: Tensor) -> Any:
        """The network in the type and on the device of what it moves."""
        if self._rule is None:
            raise RuntimeError("The learned optimizer has no network yet: call attach first.")
        if next(self._rule.parameters()).dtype != like.dtype or next(self._rule.parameters()).device != like.device:
            self._rule = self._rule.to(like)
        return self._rule

    def update(self, bundle: Bundle) -> None:
        sizes = [value.numel() for value in bundle.values]
        w, g, z = (_flat(each) for each in (bundle.values, bundle.gradients, bundle.buffers("z")))
        rule = self._fitting(w)
        layers = range(len(rule.lstm.cells))
        before = [(torch.cat(bundle.buffers(f"h{i}")), torch.cat(bundle.buffers(f"c{i}"))) for i in layers]
        factors, after = rule.factors(g * bundle.group["gradient_scale"], w, before)
        z_next = w - factors.get("p", 1.0) * bundle.group["lr"] * g
        w_next = z_next + factors.get("a", 0.0) * (z_next - z)
        for targets, flat in ((bundle.values, w_next), (bundle.buffers("z"), z_next)):
            torch._foreach_copy_(targets, [p.view_as(t) for p, t in zip(flat.split(sizes), targets, strict=True)])
        for i, pair in enumerate(after):
            for name, whole in zip((f"h{i}", f"c{i}"), pair, strict=True):
                torch._foreach_copy_(bundle.buffers(name), list(whole.split(sizes)))

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        trained_by = settings["source"].recipe["procedure"]["use"]
        if trained_by != TRAINED_BY:
            return f"Its source was trained by {trained_by}; it takes one that {TRAINED_BY} has trained."
        return None


def _flat(some: list[Tensor]) -> Tensor:
    return torch.cat([each.flatten() for each in some])
