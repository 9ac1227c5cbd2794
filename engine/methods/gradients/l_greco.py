"""L-GreCo: how strongly to compress the gradient of each layer, worked out from what each layer loses by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from engine.fields import Count, Numbers, Positive
from engine.kit.knapsack import cheapest
from engine.kit.masks import top_k_mask
from engine.parts import Moves, Technique, technique

if TYPE_CHECKING:
    from engine.training.run import Role, Run
    from engine.training.workers import Workers

ID = "l-greco"
FULL = 32  # bits of a number that is sent as it is


# -- compressors: what arrives, and how many bits were sent ------------------------------------------------------------


def kept_count(n: int, density: float) -> int:
    """How many of n numbers a density keeps, one at least."""
    return min(max(round(density * n), 1), n)


def top_k(grad: Tensor, density: float) -> Tensor:
    """The numbers of largest size as they are, zero for the others."""
    kept = kept_count(grad.numel(), density)
    return grad if kept == grad.numel() else grad * top_k_mask(grad.abs(), kept)


def quantized(grad: Tensor, bits: float, rng: torch.Generator) -> Tensor:
    """Each number as one of ``2^(bits - 1) - 1`` steps to the largest, with its sign; rounded up or down at random, so
    that it is right on average."""
    if bits >= FULL:
        return grad
    steps = 2 ** (int(bits) - 1) - 1
    largest = grad.abs().max()
    unit = largest / steps
    scaled = grad / torch.where(unit > 0, unit, 1.0)
    drawn = torch.rand(grad.shape, generator=rng, device=rng.device).to(grad)
    return (scaled + drawn).floor() * unit


def orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of the columns."""
    return torch.linalg.qr(columns).Q


def bits_of(shape: Sequence[int], compressor: str, knob: float) -> int:
    """The size of one layer's message."""
    n = math.prod(shape)
    if compressor == "top-k":
        kept = kept_count(n, knob)
        return FULL * n if kept == n else kept * (FULL + max(math.ceil(math.log2(n)), 1))
    if compressor == "quantize":
        return FULL * n if knob >= FULL else n * int(knob) + FULL
    rows, columns = shape[0], n // shape[0]
    rank = int(knob)
    return FULL * n if _is_full(rows, columns, rank) else FULL * rank * (rows + columns)


def _is_full(rows: int, columns: int, rank: int) -> bool:
    """Whether two factors of a rank would be no smaller than the matrix, which is then sent as it is."""
    return rank >= min(rows, columns) or rank * (rows + columns) >= rows * columns


def knobs_around(compressor: str, reference: float, span: tuple[float, float], levels: int) -> list[float]:
    """The settings to choose from: from span[0] to span[1] times the reference, which is one of them."""
    low, high = reference * span[0], reference * span[1]
    if compressor == "top-k":
        high = min(high, 1.0)
        steps = [low * (high / low) ** (i / max(levels - 1, 1)) for i in range(levels)]
        return sorted({*steps, reference})
    least = 2 if compressor == "quantize" else 1
    whole = range(max(math.ceil(low), least), max(math.floor(high), least) + 1)
    return sorted({*map(float, whole), float(round(reference))})


def plan(
    sizes: Sequence[Sequence[float]], errors: Sequence[Sequence[float]], reference: int, alpha: float, buckets: int
) -> list[int]:
    """The setting of each layer with the least total size whose total error is at most alpha times the reference's.

    The reference for all where rounding leaves no such plan, or none that is smaller.
    """
    uniform = [reference] * len(sizes)
    limit = alpha * sum(row[reference] for row in errors)
    found = cheapest(sizes, errors, limit, buckets)
    if found is None:
        return uniform

    def size(choice: Sequence[int]) -> float:
        return sum(row[c] for row, c in zip(sizes, choice, strict=True))

    return found if size(found) < size(uniform) or alpha < 1 else uniform


# -- the technique -----------------------------------------------------------------------------------------------------


@technique(
    id=ID,
    name="L-GreCo",
    paper="L-GreCo: Layerwise-Adaptive Gradient Compression for Efficient and Accurate Deep Learning",
    arxiv="2210.17357",
    precision="fp32",
    recommends={"training": {"workers": 4}},
    example={
        "techniques": [{"use": ID, "period_steps": 2, "acc_steps": 2, "reference": 0.3}],
        "training": {"workers": 2, "batch_size": 32},
    },
)
class LGreco(Technique):
    """Compresses what each worker sends, and gives every layer a strength of its own: the message gets as small as it
    can while the error over all layers stays what one strength for all would make.

        min sum_l size_l(c_l)   so that   sum_l e_l(c_l) <= alpha sum_l e_l(reference),   e_l(c) = |G_l - C(G_l, c)|
        each worker and layer:  m <- m + g;  send C(m);  m <- m - C(m)        (error feedback)

    G_l is the mean gradient of the last steps before a plan. The plan comes from dynamic programming over the error, in
    buckets; it is made anew every period, and is the reference for all layers before the first.

    Helps: Slow links between workers, and networks whose layers differ much in width.
    Hurts: Layers that are all alike: there is nothing to shift between them. The same total error is not the same
        accuracy: on small digits a message a seventh smaller cost nearly two points.
    Cost: Every period a few compressions of each layer and a table of layers x settings x buckets. Error feedback
        keeps a copy of the gradients for each worker.
    Choices: Biases, norms and other vectors are sent as they are. What is counted as sent is the message as it is
        defined here (kept numbers with their places, whole numbers of bits, two thin factors); what travels between
        processes here are the decompressed tensors. Low rank is one step of power iteration from a warm start, the
        factors averaged between workers. A plan that is not smaller than the reference is not taken.

    Args:
        compressor: Keep the largest numbers, round to few bits, or send two thin factors of each matrix.
        reference: The setting for all layers that is known to do: a density, a number of bits, or a rank.
        knobs: The settings to choose from, for every compressor alike; empty takes those around the reference.
        span: How far around the reference the settings go, as factors.
        levels: How many densities are tried in that span; bits and ranks are all whole numbers in it.
        alpha: The error that is allowed, as a multiple of the reference's.
        period_steps: Steps between plans.
        acc_steps: Steps before a plan whose mean gradient it is made for.
        error_power: Count errors as lengths (1) or as squared lengths (2).
        error_feedback: Add what was not sent to the next step's gradient.
        buckets: Steps that the error is rounded up to; more are finer and slower.

    Raises:
        ValueError: For settings that the compressor cannot have.
    """

    def __init__(
        self,
        compressor: Literal["top-k", "quantize", "low-rank"] = "top-k",
        reference: Positive = 0.01,
        knobs: Numbers = [],  # noqa: B006 - the default is shown in the form; it is never changed
        span: tuple[Positive, Positive] = (0.5, 2.0),
        levels: Count = 9,
        alpha: Positive = 1.0,
        period_steps: Count = 500,
        acc_steps: Count = 10,
        error_power: Literal[1, 2] = 1,
        error_feedback: bool = True,
        buckets: Annotated[int, Field(ge=10, le=1000000)] = 10000,
    ) -> None:
        self.compressor, self.reference, self.knobs, self.span = compressor, reference, knobs, span
        self.levels, self.alpha, self.period_steps, self.acc_steps = levels, alpha, period_steps, acc_steps
        self.error_power, self.error_feedback, self.buckets = error_power, error_feedback, buckets
        self._settings = sorted({*(knobs or knobs_around(compressor, reference, span, levels)), reference})
        self._check()
        self.chosen: list[float] = []  # the setting of each tensor that is compressed
        self.residuals: list[list[Tensor]] = []  # by worker here, then by tensor
        self.factors: list[Tensor] = []  # of each tensor, where low rank starts from
        self.sums: list[Tensor] = []
        self.summed = 0

    def _check(self) -> None:
        least, most = {"top-k": (0.0, 1.0), "quantize": (2.0, float(FULL)), "low-rank": (1.0, math.inf)}[
            self.compressor
        ]
        whole = self.compressor != "top-k"
        for knob in self._settings:
            if not least <= knob <= most or knob == 0 or (whole and knob != round(knob)):
                takes = {"top-k": "densities up to 1", "quantize": "2 to 32 bits", "low-rank": "ranks from 1"}
                raise ValueError(f"{knob:g} is no setting of {self.compressor}, which takes {takes[self.compressor]}.")

    def reduce(self, run: Run, role: Role, shards: list[list[Tensor]]) -> list[Tensor]:
        places = [i for i, p in enumerate(role.parameters) if p.dim() > 1]
        if not self.chosen:
            self._begin(run, role, shards, places)
        sent = [[shard[i] for i in places] for shard in shards]
        if self.error_feedback:
            sent = [list(torch._foreach_add(m, g)) for m, g in zip(self.residuals, sent, strict=True)]
        bits = [bits_of(role.parameters[i].shape, self.compressor, c) for i, c in zip(places, self.chosen, strict=True)]
        plain = [i for i in range(len(role.parameters)) if i not in places]
        whole = sum(role.parameters[i].numel() for i in plain) * FULL
        arrived, mean = self._send(run, sent, math.ceil((sum(bits) + whole) / 8))
        if self.error_feedback:
            self.residuals = [list(torch._foreach_sub(m, c)) for m, c in zip(sent, arrived, strict=True)]
        rest = run.workers.mean([[shard[i] for i in plain] for shard in shards], bytes=0)
        found = dict(zip(places, mean, strict=True)) | dict(zip(plain, rest, strict=True))
        self._learn(run, role, shards, places)
        if run.wants_gradient_norm:
            everything = FULL * sum(p.numel() for p in role.parameters)
            run.log(f"{ID}/ratio", everything / (sum(bits) + whole))
        return [found[i] for i in range(len(role.parameters))]

    def on_surgery(self, run: Run, moves: Moves) -> None:
        """Other layers: what was left over belongs to none of them, and the next plan is theirs."""
        self.chosen, self.residuals, self.factors, self.sums, self.summed = [], [], [], [], 0

    def _begin(self, run: Run, role: Role, shards: list[list[Tensor]], places: list[int]) -> None:
        self.chosen = [self.reference] * len(places)
        self.residuals = [[torch.zeros_like(shard[i]) for i in places] for shard in shards]
        if self.compressor == "low-rank":
            most = int(max(self._settings))
            flats = [role.parameters[i].flatten(1) for i in places]
            rng = run.rng(ID)
            self.factors = [
                torch.randn((f.shape[1], min(most, *f.shape)), generator=rng, device=rng.device).to(f) for f in flats
            ]

    def _send(self, run: Run, sent: list[list[Tensor]], size: int) -> tuple[list[list[Tensor]], list[Tensor]]:
        """What arrives of each worker's tensors, and the mean over all workers."""
        if self.compressor == "low-rank":
            return self._low_rank(run.workers, sent, size)
        rng = run.rng(ID)
        if self.compressor == "top-k":
            arrived = [[top_k(t, c) for t, c in zip(own, self.chosen, strict=True)] for own in sent]
        else:
            arrived = [[quantized(t, c, rng) for t, c in zip(own, self.chosen, strict=True)] for own in sent]
        return arrived, run.workers.mean(arrived, bytes=size)

    def _low_rank(
        self, workers: Workers, sent: list[list[Tensor]], size: int
    ) -> tuple[list[list[Tensor]], list[Tensor]]:
        """One step of power iteration on the mean matrix, of which only thin products are exchanged."""
        shapes = [t.flatten(1).shape for t in sent[0]]
        thin = [
            None if _is_full(shape[0], shape[1], int(c)) else int(c)
            for shape, c in zip(shapes, self.chosen, strict=True)
        ]
        first = [
            [t if r is None else t.flatten(1) @ q[:, :r] for t, r, q in zip(own, thin, self.factors, strict=True)]
            for own in sent
        ]
        left = workers.mean(first, bytes=size)
        bases = [p if r is None else orthonormal(p) for p, r in zip(left, thin, strict=True)]
        second = [
            [p if r is None else t.flatten(1).T @ p for t, r, p in zip(own, thin, bases, strict=True)] for own in sent
        ]
        right = workers.mean(second, bytes=0)
        found = []
        for i, (p, q, r) in enumerate(zip(bases, right, thin, strict=True)):
            if r is None:
                found.append(left[i])
            else:
                self.factors[i][:, :r] = q
                found.append((p @ q.T).view_as(sent[0][i]))
        whole = [[t if r is None else m for t, r, m in zip(own, thin, found, strict=True)] for own in sent]
        return whole, found

    # -- the plan --------------------------------------------------------------------------------------------------

    def _learn(self, run: Run, role: Role, shards: list[list[Tensor]], places: list[int]) -> None:
        """Gathers the mean gradient of the last steps of a period, and makes a plan at its end."""
        done = run.step + 1
        if (-done) % self.period_steps >= self.acc_steps:
            return
        mean = run.workers.mean([[shard[i] for i in places] for shard in shards], bytes=0)
        if self.summed:
            torch._foreach_add_(self.sums, mean)
        else:
            self.sums = [g.clone() for g in mean]
        self.summed += 1
        if done % self.period_steps == 0:
            gradients = list(torch._foreach_div(self.sums, self.summed))
            self.chosen = run.workers.agree(self.choose(gradients, run.rng(ID)))
            self.sums, self.summed = [], 0

    def choose(self, gradients: Sequence[Tensor], rng: torch.Generator) -> list[float]:
        """The setting of each layer for these gradients."""
        sizes, errors = self.measure(gradients, rng)
        reference = self._settings.index(self.reference)
        return [self._settings[c] for c in plan(sizes, errors, reference, self.alpha, self.buckets)]

    def measure(self, gradients: Sequence[Tensor], rng: torch.Generator) -> tuple[list[list[float]], list[list[float]]]:
        """Size and error of every layer at every setting."""
        sizes: list[list[float]] = [[bits_of(g.shape, self.compressor, c) for c in self._settings] for g in gradients]
        lost = torch.stack(
            [torch.stack([(g - self._alone(g, c, rng)).norm() for c in self._settings]) for g in gradients]
        )
        return sizes, (lost**self.error_power).double().tolist()

    def _alone(self, grad: Tensor, knob: float, rng: torch.Generator) -> Tensor:
        """What is left of one tensor at a setting, without the other workers."""
        if self.compressor == "top-k":
            return top_k(grad, knob)
        if self.compressor == "quantize":
            return quantized(grad, knob, rng)
        matrix = grad.flatten(1)
        if _is_full(matrix.shape[0], matrix.shape[1], int(knob)):
            return grad
        start = torch.randn((matrix.shape[1], int(knob)), generator=rng, device=rng.device).to(matrix)
        basis = orthonormal(matrix @ orthonormal(matrix.T @ (matrix @ start)))
        return (basis @ (basis.T @ matrix)).view_as(grad)
