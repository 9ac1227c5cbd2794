"""DeepZero: gradients of a whole network from forward passes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from engine.fields import Count, Rate
from engine.parts import Batch, Moves, Procedure, Task, Terms, procedure

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

ID = "deepzero"
Params = dict[str, Tensor]


# -- estimates of a gradient from values -------------------------------------------------------------------------------


def coordinatewise(
    value: Callable[[str, Tensor], Tensor],
    params: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    base: Tensor,
    mu: float,
    chunk: int,
) -> Params:
    """Forward differences along the kept coordinates of each tensor (flat indices), zero at the others.

    `value(name, moved)` are the losses with the tensor of that name replaced by each row of `moved`.
    """
    found = {}
    for name, tensor in params.items():
        flat = tensor.detach().flatten()
        grad = torch.zeros_like(flat)
        for index in kept[name].split(chunk):
            if not len(index):  # a layer of which nothing is probed now
                continue
            moved = flat.repeat(len(index), 1)
            moved[torch.arange(len(index), device=flat.device), index] += mu
            grad[index] = ((value(name, moved.view(-1, *tensor.shape)) - base) / mu).to(grad)
        found[name] = grad.view_as(tensor)
    return found


def unit_directions(params: Mapping[str, Tensor], count: int, rng: torch.Generator) -> Params:
    """Random directions, `count` for each tensor, each of length one."""
    found = {}
    for name, tensor in params.items():
        drawn = torch.randn((count, *tensor.shape), generator=rng, device=rng.device).to(tensor)
        lengths = torch.linalg.vector_norm(drawn.flatten(1), dim=1).view(-1, *[1] * tensor.dim())
        found[name] = drawn / lengths.clamp_min(torch.finfo(tensor.dtype).tiny)
    return found


def random_directions(
    value: Callable[[Params], Tensor],
    params: Mapping[str, Tensor],
    directions: Mapping[str, Tensor],
    base: Tensor,
    mu: float,
    chunk: int,
) -> Params:
    """The mean of ``(L(w + mu u) - L(w)) / mu u`` over directions u, all tensors moved at once.

    Over unit directions it is the gradient divided by the size of each tensor, on average.
    """
    count = len(next(iter(directions.values())))
    total = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
    for start in range(0, count, chunk):
        along = {name: u[start : start + chunk] for name, u in directions.items()}
        slopes = (value({name: params[name].detach() + mu * u for name, u in along.items()}) - base) / mu
        for name, u in along.items():
            total[name] += torch.tensordot(slopes.to(u), u, dims=1) / count
    return total


def layerwise_ratios(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, float]:
    """The share of each tensor that is left out when the scores of least size are, over all tensors together."""
    everything = torch.cat([score.abs().flatten() for score in scores.values()])
    dropped = round(sparsity * len(everything))
    out = torch.zeros(len(everything), dtype=torch.bool, device=everything.device)
    out[everything.argsort(stable=True)[:dropped]] = True
    pieces = out.split([score.numel() for score in scores.values()])
    return {name: float(piece.double().mean()) for name, piece in zip(scores, pieces, strict=True)}


def draw_kept(params: Mapping[str, Tensor], ratios: Mapping[str, float], rng: torch.Generator) -> dict[str, Tensor]:
    """Random flat indices to probe: ``n - round(ratio n)`` of each tensor that has a ratio, all of the others."""
    found = {}
    for name, tensor in params.items():
        n = tensor.numel()
        if name in ratios:
            kept = n - round(ratios[name] * n)
            found[name] = torch.randperm(n, generator=rng, device=rng.device)[:kept].sort().values.to(tensor.device)
        else:
            found[name] = torch.arange(n, device=tensor.device)
    return found


# -- losses of many perturbed networks ---------------------------------------------------------------------------------


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """A stretch in which passes leave running statistics alone; they normalize as they would otherwise."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update(dict.fromkeys(norm._buffers))
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)


class Staged:
    """A network as a chain of stages, so that a change in one leaves what comes before it as it was.

    `start` passes a batch through and keeps the input of every stage, with the state of the random draws there;
    `losses` then computes from the changed stage on, for many changes at once.
    """

    def __init__(self, stages: Sequence[tuple[str, nn.Module]], objective: Callable[[Any, Batch], Terms]):
        self.stages = list(stages)
        self.objective = objective
        self.inputs: list[tuple[Any, ...]] = []
        self._draws: list[Tensor] = []
        self._batch: Batch | None = None

    @torch.no_grad()
    def start(self, batch: Batch) -> Tensor:
        """The loss of a batch at the weights as they are."""
        self._batch = batch
        self.inputs, self._draws = [], []
        inputs: tuple[Any, ...] = tuple(batch.inputs.values())
        for _, stage in self.stages:
            self.inputs.append(inputs)
            self._draws.append(_draw_state(batch.x.device))
            inputs = (stage(*inputs),)
        return self._loss(inputs[0])

    @torch.no_grad()
    def losses(self, moved: Mapping[str, Tensor]) -> Tensor:
        """The loss for each row of the moved parameters (by their names in the whole model), on the same draw."""
        first = min(self._stage_of(name) for name in moved)
        own = [_of_stage(moved, path) for path, _ in self.stages]
        device = self._batch.x.device if self._batch is not None else torch.device("cpu")

        def one(change: list[Params]) -> Tensor:
            inputs = self.inputs[first]
            for (_, stage), values in zip(self.stages[first:], change, strict=True):
                inputs = (functional_call(stage, values, inputs) if values else stage(*inputs),)
            return self._loss(inputs[0])

        before = _draw_state(device)
        _set_draw_state(self._draws[first], device)
        try:
            with frozen_statistics(nn.ModuleList([stage for _, stage in self.stages])):
                found: Tensor = vmap(one, randomness="same")(own[first:])
            return found
        finally:
            _set_draw_state(before, device)

    def _stage_of(self, name: str) -> int:
        return next(i for i, (path, _) in enumerate(self.stages) if not path or name.startswith(f"{path}."))

    def _loss(self, output: Any) -> Tensor:
        assert self._batch is not None
        terms = self.objective(output, self._batch).values()
        return torch.stack([_mean(term, self._batch.weight) for term in terms]).sum()


def _mean(term: Tensor, weight: Tensor | None) -> Tensor:
    if term.dim() == 0 or weight is None:
        return term.mean()
    return (term * weight).sum() / weight.sum()


def _of_stage(moved: Mapping[str, Tensor], path: str) -> Params:
    prefix = f"{path}." if path else ""
    return {name[len(prefix) :]: value for name, value in moved.items() if name.startswith(prefix)}


def _draw_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_draw_state(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def stages_of(model: nn.Module, anatomy: Anatomy, inputs: tuple[Any, ...]) -> list[tuple[str, nn.Module]]:
    """Stem, blocks and head with their paths, where one after the other they are the model; else the model whole."""
    chain = [m for m in (anatomy.stem, *anatomy.blocks, anatomy.head) if m is not None]
    named = [(anatomy.path(module), module) for module in chain]
    inside = [id(p) for module in chain for p in module.parameters()]
    if sorted(inside) != sorted(id(p) for p in model.parameters()):
        return [("", model)]  # a parameter beside the chain, or shared by two of its stages
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        with torch.no_grad():
            expected, got = model(*inputs), inputs
            for _, module in named:
                got = (module(*got),)
        same = isinstance(expected, Tensor) and isinstance(got[0], Tensor) and torch.equal(expected, got[0])
    except (RuntimeError, TypeError):  # the stages do not fit into each other
        same = False
    finally:
        for module in training:
            module.training = True
    return named if same else [("", model)]


# -- the procedure -----------------------------------------------------------------------------------------------------


@procedure(
    id=ID,
    name="DeepZero",
    paper="DeepZero: Scaling up Zeroth-Order Optimization for Deep Model Training",
    arxiv="2310.02025",
    precision="fp32",
    graph="never",
    recommends={
        "optimizer": {"use": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0005},
        "training": {"batch_size": 256},
    },
    example={
        "task": {"use": "two-moons", "samples": 80},
        "model": {"use": "mlp", "hidden": [6, 6], "norm": "batch", "dropout": 0.1},
        "procedure": {"mask_interval": 1, "grasp_directions": 4},
    },
)
class DeepZero(Procedure):
    """Trains a network without a backward pass: each weight is moved a little, and the change of the loss is its
    gradient. Only a random part of the weights is probed at a time; a layer that matters more is probed more densely.

        g_i = (L(w + mu e_i) - L(w)) / mu    for the probed i, else 0                          (coordinates)
        g = d mean_k (L(w + mu u_k) - L(w)) / mu u_k,   |u_k| = 1 in each tensor of size d     (directions)
        score = -w (H g),  from values at w and w + mu g;  a layer's ratio: its share of the smallest |score| over all

    Every mask_interval epochs other weights are drawn, in the layers' ratios. A weight that is not probed has a
    gradient of zero, and momentum and decay move it as ever. Biases and norms are always probed.

    Helps: models with a part that cannot be differentiated, hardware without a backward pass, simulators in the loop.
    Hurts: time: a step costs a forward pass for each probed weight. Differences drown in rounding where mu is tiny. On
        a small network, random directions at a lower rate come within a point or two for as many passes.
    Cost: probed weights + 1 forward passes a step, from the changed layer on; nothing is kept for a backward pass.
    Choices: all differences of a step use the same batch, dropout mask and batch statistics. The scores' H g comes from
        the same directions at both points. Weights with the largest |score| count, in either sign.

    Args:
        estimator: Move one coordinate after the other, or all at once along random directions.
        mu: How far a weight (or the whole of a tensor) is moved.
        sparsity: Share of the weights that are not probed, over all layers together.
        mask_interval: Epochs after which other weights are drawn.
        grasp_directions: Random directions for the scores that the layers' ratios come from; 0 gives all the same.
        directions: Directions in a step, where the estimator is directions.
        reuse: Keep the input of each layer, and compute only from the changed layer on.
        chunk: Changed networks that are computed together.
    """

    offers = ("gradients",)

    def __init__(
        self,
        estimator: Literal["coordinates", "directions"] = "coordinates",
        mu: Rate = 0.005,
        sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        mask_interval: Count = 5,
        grasp_directions: Annotated[int, Field(ge=0)] = 192,
        directions: Count = 192,
        reuse: bool = True,
        chunk: Count = 256,
    ):
        self.estimator, self.mu, self.sparsity = estimator, mu, sparsity
        self.mask_interval, self.grasp_directions = mask_interval, grasp_directions
        self.directions, self.reuse, self.chunk = directions, reuse, chunk
        self.ratios: dict[str, float] = {}
        self.kept: dict[str, Tensor] = {}
        self.drawn = -1  # the interval that `kept` was drawn for
        self._staged: Staged | None = None

    def step(self, run: Run, batch: Batch) -> None:
        if self._staged is None:
            whole = [("", run.model)]
            stages = stages_of(run.model, run.anatomy, tuple(batch.inputs.values())) if self.reuse else whole
            self._staged = Staged(stages, run.objective)
        role = run.roles["main"]
        params = {n: p for n, p in zip(role.names, role.parameters, strict=True) if p.requires_grad}
        base = self._staged.start(batch)
        run.count("oracle-calls")
        if self.estimator == "coordinates":
            self._redraw(run, params, base)
            grads = self._coordinates(run, params, base)
        else:
            grads = self._directions(run, params, base)
        run.update("main", {"task": base}, [grads.get(name) for name in role.names])

    def on_surgery(self, run: Run, moves: Moves) -> None:
        """Other weights: their ratios and the draw start anew."""
        self.ratios, self.kept, self.drawn, self._staged = {}, {}, -1, None

    def _coordinates(self, run: Run, params: Params, base: Tensor) -> Params:
        staged = self._staged
        assert staged is not None
        run.count("oracle-calls", sum(len(index) for index in self.kept.values()))

        def value(name: str, moved: Tensor) -> Tensor:
            return staged.losses({name: moved})

        return coordinatewise(value, params, self.kept, base, self.mu, self.chunk)

    def _directions(self, run: Run, params: Params, base: Tensor) -> Params:
        assert self._staged is not None
        run.count("oracle-calls", self.directions)
        along = unit_directions(params, self.directions, run.rng(ID))
        found = random_directions(self._staged.losses, params, along, base, self.mu, self.chunk)
        return {name: grad * grad.numel() for name, grad in found.items()}

    def _redraw(self, run: Run, params: Params, base: Tensor) -> None:
        """Draws the weights to probe, where an interval begins; before the first, the layers' ratios."""
        interval = run.step // run.steps_per_epoch // self.mask_interval
        if interval == self.drawn:
            return
        if self.drawn < 0:
            self.ratios = self._find_ratios(run, params, base)
        self.drawn = interval
        self.kept = draw_kept(params, self.ratios, run.rng(ID))

    def _find_ratios(self, run: Run, params: Params, base: Tensor) -> dict[str, float]:
        assert self._staged is not None
        weights = {name: tensor for name, tensor in params.items() if tensor.dim() > 1}
        if not self.grasp_directions or not self.sparsity:
            return dict.fromkeys(weights, self.sparsity)
        along = unit_directions(weights, self.grasp_directions, run.rng(ID))
        losses = self._staged.losses
        first = random_directions(losses, weights, along, base, self.mu, self.chunk)
        ahead = {name: w.detach() + self.mu * first[name] for name, w in weights.items()}
        there = losses({name: w.unsqueeze(0) for name, w in ahead.items()})[0]
        second = random_directions(losses, ahead, along, there, self.mu, self.chunk)
        run.count("oracle-calls", 2 * self.grasp_directions + 1)
        scores = {name: -w.detach() * (second[name] - first[name]) / self.mu for name, w in weights.items()}
        return layerwise_ratios(scores, self.sparsity)

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if any(hasattr(m, "aux_loss") for m in anatomy.module.modules()):
            return "It differences the objective alone, and the model's layers add losses of their own to it."
        if task.input_gradients:
            return "It has no derivatives, and the task takes them by its inputs. Choose another procedure."
        if any(isinstance(m, nn.RNNBase | nn.RNNCellBase) for m in anatomy.module.modules()):
            return (
                "It passes many copies of the weights at once, which torch's recurrent layers cannot. Choose another."
            )
        return None
