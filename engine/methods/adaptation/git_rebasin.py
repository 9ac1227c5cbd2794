"""Merges two networks that were trained apart, after their hidden units were brought into the same order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from engine.fields import Count, Fraction, SourceField
from engine.kit.calibration import calibrate, norms_of
from engine.kit.matching import assign, match_weights, permuted
from engine.kit.tied import Group
from engine.parts import Batch, Procedure, Source, Task, procedure

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

ID = "git-rebasin"
State = dict[str, Tensor]


def mixed(one: Mapping[str, Tensor], other: Mapping[str, Tensor], share: float) -> State:
    """(1 - share) one + share other; what is no number (a count) is the first one's."""
    return {n: torch.lerp(t, other[n], share) if t.is_floating_point() else t for n, t in one.items()}


def barrier(losses: Sequence[float]) -> float:
    """How far the losses along a line, at equal steps, rise above the straight line between its ends."""
    last = max(len(losses) - 1, 1)
    return max(loss - (losses[0] + (losses[-1] - losses[0]) * i / last) for i, loss in enumerate(losses))


@procedure(
    id=ID,
    name="Git Re-Basin",
    paper="Git Re-Basin: Merging Models modulo Permutation Symmetries",
    arxiv="2209.04836",
    example={
        "task": {"use": "digits"},
        "model": {"use": "mlp", "hidden": [32, 32]},
        "procedure": {
            "use": ID,
            "first": "recipe:sources/small-digits.toml?seed=follow",
            "second": "recipe:sources/small-digits.toml",
            "points": 3,
        },
        "budget": {"steps": 0},
    },
)
class GitReBasin(Procedure):
    """Merges two networks of the same kind that were trained apart. The hidden units of the second are first put into
    the order in which they resemble those of the first, which changes nothing of what it computes.

        W_l -> P_l W_l P_(l-1)^T,   b_l -> P_l b_l;   layers that a sum joins share one P
        weights:      max sum over l of <W_l^A, P_l W_l^B P_(l-1)^T>, one P after the other until none gains
        activations:  P_l = argmax <P, Z_A^T Z_B>, Z the units' inputs to the nonlinearity on some data
        merged = (1 - share) A + share pi(B)
        barrier = max over lam of L((1 - lam) A + lam pi(B)) - ((1 - lam) L_A + lam L_B)

    Nothing is trained: the recipe has two sources and no budget.

    Helps: wide networks that were trained to their end: the way between them is then nearly flat.
    Hurts: narrow ones, and networks after few steps, between which a barrier stays.
    Cost: an assignment of cubic cost in the width for each layer and round; the barrier is `points` evaluations.
    Choices: a layer's bias counts as one more column. Normalization statistics move with their units, and are measured
        anew after each mixture. The barrier is that of the validation loss; beside it stands the one without any
        order, for comparison. Activations are taken before the nonlinearity and need one pass, since layers are then
        independent. Learning the order by gradient descent at the midpoint is not here.

    Args:
        first: The network whose order of units is kept.
        second: The network that is brought into that order.
        match: What is compared: the weights, the activations on training samples, or nothing, which merges as is.
        share: Share of the second network in the merged one.
        max_iter: The most rounds of matching weights.
        samples: Training samples on which activations are compared, and statistics measured anew.
        points: Mixtures, equally spaced, at which the barrier is measured.
        reset_bn: Measure normalization statistics anew after each mixture.
    """

    uses = ("model",)
    offers = ("output",)
    makes = ()
    trains = False

    def __init__(
        self,
        first: SourceField,
        second: SourceField,
        match: Literal["weights", "activations", "none"] = "weights",
        share: Fraction = 0.5,
        max_iter: Count = 100,
        samples: Count = 1000,
        points: Annotated[int, Field(ge=2)] = 25,
        reset_bn: bool = True,
    ):
        self.first: Source = first
        self.second: Source = second
        self.match, self.share, self.max_iter = match, share, max_iter
        self.samples, self.points, self.reset_bn = samples, points, reset_bn
        self.measured: dict[str, float] = {}

    def step(self, run: Run, batch: Batch) -> None:
        """Never called: there are no steps."""

    @torch.no_grad()
    def act(self, run: Run) -> None:
        one, other = self.first.model(), self.second.model()
        groups = run.anatomy.tied()
        orders = self.orders(run, one, other, groups)
        a, b = dict(one.state_dict()), dict(other.state_dict())
        moved = permuted(b, groups, orders)
        ways = {"matched": self.way(run, a, moved), "as they are": self.way(run, a, b)}
        self.measured = {
            "barrier": barrier(ways["matched"]),
            "barrier_unmatched": barrier(ways["as they are"]),
            "distance": _distance(a, moved),
            "distance_unmatched": _distance(a, b),
        }
        self._draw(run, ways)
        self.put(run, mixed(a, moved, self.share))

    # -- the order of units --------------------------------------------------------------------------------------------

    def orders(self, run: Run, one: nn.Module, other: nn.Module, groups: list[Group]) -> list[Tensor]:
        """For each group, the second network's units in the order of the first one's."""
        if self.match == "weights":
            found, heights = match_weights(one.state_dict(), other.state_dict(), groups, run.rng(ID), self.max_iter)
            run.note(
                f"Weights matched in {len(heights) - 1} rounds: inner product {heights[0]:.4g} to {heights[-1]:.4g}."
            )
            return found
        if self.match == "activations":
            return [assign(gains) for gains in self._likeness(run, one, other, groups)]
        return [torch.arange(group.size, device=run.device) for group in groups]

    def _likeness(self, run: Run, one: nn.Module, other: nn.Module, groups: list[Group]) -> list[Tensor]:
        """The inner products of the units' activations, summed over samples, places and the layers of a group."""
        layers = {m.name.rpartition(".")[0] for group in groups for m in group.members if m.side == "output"}
        totals = [torch.zeros(g.size, g.size, dtype=torch.float64, device=run.device) for g in groups]
        for batch in run.batches("train", limit=self.samples):
            seen = [_outputs(model, layers, batch) for model in (one, other)]
            for group, total in zip(groups, totals, strict=True):
                for member in dict.fromkeys(m for m in group.members if m.side == "output"):
                    path, _, name = member.name.rpartition(".")
                    if name == "weight":
                        channels = member.places(torch.arange(group.size, device=run.device))
                        za, zb = (each[path].index_select(1, channels) for each in seen)
                        total += za.T @ zb
        return totals

    # -- the way between -----------------------------------------------------------------------------------------------

    def way(self, run: Run, a: State, b: State) -> list[float]:
        """The validation loss of equally spaced mixtures."""
        split = "val" if run.columns_of("val").size else "train"
        found = []
        for i in range(self.points):
            share = i / (self.points - 1)
            self.put(run, mixed(a, b, share), between=0 < i < self.points - 1)
            found.append(run.evaluate(split)["loss"])
        return found

    def put(self, run: Run, state: State, between: bool = True) -> None:
        """Writes a mixture into the run's model; between the two networks its statistics are measured anew."""
        run.model.load_state_dict(state)
        if self.reset_bn and between and norms_of(run.model):
            with run.evaluating():
                calibrate(run.model, run.forward, run.batches("train", limit=self.samples))

    def _draw(self, run: Run, ways: Mapping[str, list[float]]) -> None:
        lam = [i / (self.points - 1) for i in range(self.points)]
        figure = {
            "kind": "curve",
            "title": "Loss between the two networks",
            "x": {"label": "share of the second network"},
            "y": {"label": "loss"},
            "series": [{"name": name, "x": lam, "y": losses} for name, losses in ways.items()],
        }
        run.recorder.sink.figure(ID, "barrier", figure, run.step)

    def result(self, run: Run) -> dict[str, float]:
        return dict(self.measured)

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        for name in ("first", "second"):
            source: Source = settings[name]
            theirs = source.recipe["model"]
            if theirs != recipe["model"]:
                differing = [n for n in {**theirs, **recipe["model"]} if theirs.get(n) != recipe["model"].get(n)]
                said = ", ".join(f"{n} = {theirs.get(n)!r}" for n in differing)
                return f"{source.label} has another structure than [model]: {said}. Write the same in [model]."
        try:
            groups = anatomy.tied()
        except ValueError as error:
            return str(error)
        return None if groups else "The model has no hidden units whose order could be changed."


def _distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return float(torch.stack([(t.double() - b[n].double()).square().sum() for n, t in a.items()]).sum().sqrt())


def _outputs(model: nn.Module, paths: set[str], batch: Batch) -> dict[str, Tensor]:
    """What the layers at some paths answer, channels last in two dimensions: [samples and places, channels]."""
    found: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    hooks = [modules[path].register_forward_hook(_keeper(found, path)) for path in paths]
    try:
        batch.call(model)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _keeper(found: dict[str, Tensor], path: str) -> Any:
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            rows = output.movedim(1, -1) if isinstance(module, nn.modules.conv._ConvNd) else output
            found[path] = rows.flatten(0, -2).double()

    return keep
