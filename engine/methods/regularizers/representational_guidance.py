"""A network whose hidden layers are drawn to those of another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from engine.fields import Count, ModelPart, NonNegativeOverTime, SourceField, Whole
from engine.kit.anatomy import anatomy_of
from engine.parts import Batch, Task, Technique, Terms, Value, technique

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

ID = "representational-guidance"
TERM = f"penalty:{ID}"
TINY = 1e-8


def linear_cka(a: Tensor, b: Tensor) -> Tensor:
    """How alike two layers tell the samples of a batch apart, from 0 to 1: centred kernel alignment of [n, p], [n, q].

    Turning or scaling either does not change it. A layer that answers the same for all samples has 0.
    """
    k, l = _centred_gram(a), _centred_gram(b)  # noqa: E741 - the paper's letters
    return (k * l).sum() / (torch.linalg.matrix_norm(k) * torch.linalg.matrix_norm(l) + TINY)


def _centred_gram(x: Tensor) -> Tensor:
    x = x.flatten(1).float()
    x = x - x.mean(0)
    return x @ x.T


def rsa(a: Tensor, b: Tensor) -> Tensor:
    """The correlation, over all pairs of samples, of how similar two layers find them (by angle)."""
    above = torch.triu_indices(len(a), len(a), 1, device=a.device)
    x, y = (_cosines(each)[above[0], above[1]] for each in (a, b))
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (torch.linalg.vector_norm(x) * torch.linalg.vector_norm(y) + TINY)


def _cosines(x: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(x.flatten(1).float(), dim=1, eps=TINY)
    return unit @ unit.T


SIMILARITIES = {"linear-cka": linear_cka, "rsa": rsa}


def even_map(guide: int, target: int) -> list[int]:
    """The target's layer for each of the guide's, evenly spaced by depth."""
    if guide == 1:
        return [0]
    return [min(round(i * (target - 1) / (guide - 1)), target - 1) for i in range(guide)]


@technique(
    id=ID,
    name="Guidance by another network",
    paper="Training the Untrainable: Introducing Inductive Bias via Representational Alignment",
    arxiv="2410.20035",
    graph="never",
    recommends={"training": {"batch_size": 128}},
    example={
        "techniques": [{"use": ID, "guide": {"use": "mlp", "hidden": [8]}}],
        "training": {"batch_size": 64},
    },
)
class RepresentationalGuidance(Technique):
    """Pulls the hidden layers of the network that is trained towards those of a second network, the guide, on the same
    samples. The guide is never trained here. Even one with random weights passes on what its architecture is good at.

        loss <- loss + alpha sum over pairs (i, l) of (1 - S(A_l, B_i))
        A_l: what layer l of the network answers to the batch;  B_i: what layer i of the guide does
        linear CKA:  K = A A', L = B B', both centred;  S = <K, L> / (|K| |L|)
        pairs: layer i of the guide's m with layer round(i (n - 1) / (m - 1)) of the network's n

    Helps: Networks that are hard to train on a problem, guided by one that is easy: deep ones without skips by ones
        with skips, fully connected ones by convolutions.
    Hurts: Small batches, in which all layers look alike; a network that is suited to the problem anyway. In deep
        networks without norms the pull can win against the task: they come to look like the guide and learn nothing.
    Cost: A forward pass of the guide, and two products of a batch with itself for each pair of layers.
    Choices: Layers are the blocks of both models. A guide that is deeper than the network meets some layer several
        times, and all of these count. The network's own pass in training mode is looked at; the guide is in evaluation
        mode. Batches below min_batch, such as the last of an epoch, are not guided.

    Args:
        guide: The guide's architecture, with random weights. None where `trained` names one.
        trained: A guide trained elsewhere.
        alpha: Weight of the sum; it may change over the run.
        metric: How likeness is measured: by linear CKA, or by the correlation of similarity matrices.
        off_after_steps: Steps after which the network is left alone; 0 guides to the end.
        noise_inputs: Shows the guide random inputs instead, a control that takes away what it could tell.
        min_batch: Samples that a batch must have.

    Raises:
        ValueError: When both kinds of guide are named, or none.
    """

    def __init__(
        self,
        guide: ModelPart | None = None,
        trained: SourceField | None = None,
        alpha: NonNegativeOverTime = 1.0,
        metric: Literal["linear-cka", "rsa"] = "linear-cka",
        off_after_steps: Whole = 0,
        noise_inputs: bool = False,
        min_batch: Count = 64,
    ) -> None:
        if (guide is None) == (trained is None):
            raise ValueError("It needs one guide: choose an architecture as `guide`, or name a run as `trained`.")
        self._given, self._trained = guide, trained
        self.alpha = Value.of(alpha)
        self.metric, self.off_after_steps = metric, off_after_steps
        self.noise_inputs, self.min_batch = noise_inputs, min_batch
        self._guide: nn.Module | None = None
        self._pairs: list[tuple[int, int]] = []  # of the guide's layer and the network's
        self._taken: dict[int, Tensor] = {}
        self._shown: dict[int, Tensor] = {}

    def setup(self, run: Run) -> None:
        self._guide = self._made(run)
        targets, guides = run.anatomy.blocks, anatomy_of(self._guide).blocks
        if not targets or not guides:
            raise ValueError("It compares the blocks of two models, and one of them has none; choose others.")
        self._pairs = list(enumerate(even_map(len(guides), len(targets))))
        for layer in {layer for _, layer in self._pairs}:
            targets[layer].register_forward_hook(partial(_keep_trained, self._taken, layer))
        for layer, block in enumerate(guides):
            block.register_forward_hook(partial(_keep, self._shown, layer))

    def _made(self, run: Run) -> nn.Module:
        if self._trained is not None:
            return self._trained.model()
        seed = torch.randint(2**62, (), generator=run.rng(f"{ID}/guide"), device=run.device)
        with torch.random.fork_rng([run.device] if run.device.type == "cuda" else []):
            torch.manual_seed(int(seed))
            made: nn.Module = self._given(run.offer)  # type: ignore[misc]
        return made.to(run.device).eval().requires_grad_(False)

    def guiding(self, run: Run, batch: Batch) -> bool:
        """Whether this batch is guided."""
        over = self.off_after_steps and run.step >= self.off_after_steps
        return not over and len(batch) >= self.min_batch

    def on_terms(self, run: Run, terms: Terms, output: Any, batch: Batch) -> Terms:
        taken = dict(self._taken)
        self._taken.clear()
        alpha = self.alpha.now(run.progress)
        if not self.guiding(run, batch) or (isinstance(alpha, float) and alpha == 0):
            return terms
        assert self._guide is not None
        x = batch.x
        if self.noise_inputs:
            x = torch.randn(x.shape, generator=run.rng(ID), device=x.device, dtype=x.dtype)
        with torch.no_grad():
            batch.with_x(x).call(self._guide)
        apart = unlikeness(self._pairs, taken, self._shown, self.metric)
        self._shown.clear()
        if run.wants_gradient_norm:
            run.log(f"{ID}/unlikeness", apart.detach())
        return {**terms, TERM: alpha * apart}

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if not anatomy.blocks:
            return "It pulls on a model's blocks, and this model has none; choose one with blocks."
        if settings["noise_inputs"] and task.offer.input == "tokens":
            return "It shows the guide random numbers, and the task offers tokens; switch noise_inputs off."
        batch = recipe["training"]["batch_size"] // recipe["training"]["accumulate"]
        if batch < settings["min_batch"]:
            least = settings["min_batch"]
            return f"In a batch of {batch} all layers look alike; write batch_size = {least}, or lower min_batch."
        return None


def unlikeness(
    pairs: Sequence[tuple[int, int]], network: Mapping[int, Tensor], guide: Mapping[int, Tensor], metric: str
) -> Tensor:
    """The sum over the pairs (guide's layer, network's layer) of one minus their likeness."""
    similarity = SIMILARITIES[metric]
    return torch.stack([1 - similarity(network[layer], guide[i]) for i, layer in pairs]).sum()


def _keep_trained(kept: dict[int, Tensor], layer: int, module: nn.Module, inputs: Any, output: Tensor) -> None:
    if module.training and torch.is_grad_enabled():
        kept[layer] = output


def _keep(kept: dict[int, Tensor], layer: int, module: nn.Module, inputs: Any, output: Tensor) -> None:
    kept[layer] = output
