"""Learning without a signal from one block to the next, by taking noise off the label."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from engine.fields import Count, NonNegative
from engine.parts import Batch, Procedure, Task, procedure

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

ID = "noprop"


class NoiseSchedule:
    """How much of the label is left at each step of the chain: abar_0 = 0 (noise alone) up to abar_T (hardly any).

    Everything is a list of T + 1 numbers; the coefficients at index 0 are not used.
    """

    def __init__(self, steps: int, clip: tuple[float, float] = (1e-3, 0.99)):
        low, high = clip
        # cos^2((1 - t/T) pi/2) grows with t; unclipped its end would be 1 and the last block's weight infinite.
        raw = [math.cos((1 - t / steps) * math.pi / 2) ** 2 for t in range(steps + 1)]
        self.abar = [0.0] + [min(max(a, low), high) for a in raw[1:]]
        self.alpha = [before / after for before, after in zip(self.abar, self.abar[1:], strict=False)]
        self.snr = [a / (1 - a) for a in self.abar]
        pairs = list(zip(self.abar[:-1], self.abar[1:], self.alpha, strict=True))
        self.a = [0.0] + [math.sqrt(after) * (1 - alpha) / (1 - before) for before, after, alpha in pairs]
        self.b = [0.0] + [math.sqrt(alpha) * (1 - after) / (1 - before) for before, after, alpha in pairs]
        self.c = [0.0] + [(1 - after) * (1 - alpha) / (1 - before) for before, after, alpha in pairs]

    def weight(self, t: int) -> float:
        """By how much block t improves the signal-to-noise ratio."""
        return self.snr[t] - self.snr[t - 1]


class Denoiser(nn.Module):
    """One block: guesses the label's embedding from what it is given, the input and a noisy embedding."""

    def __init__(self, features: nn.Module, width: int, embed: int, hidden: int, classes: int):
        super().__init__()
        self.features = features
        self.noisy = nn.Sequential(nn.Linear(embed, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.joint = nn.Sequential(nn.Linear(width + hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, z: Tensor, embedding: Tensor, *inputs: Tensor) -> Tensor:
        """The mean of the classes' embeddings [K, D], by how likely the block holds each class to be."""
        logits = self.joint(torch.cat([self.features(*inputs).flatten(1), self.noisy(z)], 1))
        return logits.softmax(-1) @ embedding


class Shared(nn.Module):
    """What all blocks share: an embedding of each class, and the read-out that tells the class of an embedding."""

    def __init__(self, classes: int, embed: int, learned: bool):
        super().__init__()
        start = torch.randn(classes, embed) / math.sqrt(embed)
        if learned:
            self.embedding: Tensor = nn.Parameter(start)
        else:
            self.register_buffer("embedding", torch.eye(classes))
        self.read = nn.Linear(self.embedding.shape[1], classes)


class DenoisingChain(nn.Module):
    """T blocks in a row. Its answer runs a random embedding through them; `trace` gives the logits after each block."""

    def __init__(self, blocks: Sequence[Denoiser], shared: Shared, schedule: NoiseSchedule, noise: bool = True):
        super().__init__()
        self.blocks, self.shared = nn.ModuleList(blocks), shared
        self.schedule, self.noise = schedule, noise

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.trace(*inputs)[-1]

    def trace(self, *inputs: Tensor) -> list[Tensor]:
        """The read-out's logits of z_1 to z_T."""
        embedding = self.shared.embedding
        z = torch.randn((len(inputs[0]), embedding.shape[1]), device=embedding.device, dtype=embedding.dtype)
        logits = []
        for t, block in enumerate(self.blocks, 1):
            z = self.advance(t, z, block(z, embedding, *inputs))
            logits.append(self.shared.read(z))
        return logits

    def advance(self, t: int, z: Tensor, guess: Tensor) -> Tensor:
        """From z_(t-1) to z_t, given what the block takes the label's embedding for."""
        s = self.schedule
        z = s.a[t] * guess + s.b[t] * z
        return z + math.sqrt(s.c[t]) * torch.randn_like(z) if self.noise else z


@procedure(
    id=ID,
    name="NoProp",
    paper="NoProp: Training Neural Networks without Back-propagation or Forward-propagation",
    arxiv="2503.24322",
    precision="fp32",
    recommends={"optimizer": {"use": "adamw", "lr": 0.001, "weight_decay": 0.001}, "budget": {"epochs": 40}},
    example={"procedure": {"blocks": 2, "embed_dim": 4, "hidden": 8}},
)
class NoProp(Procedure):
    """Trains each block of a chain on its own: to guess the clean label from the input and a noisy label. No signal
    passes from block to block, forward or back. To answer, the chain takes pure noise and cleans it step by step.

        abar_t = cos^2((1 - t/T) pi/2), kept within the clip;  abar_0 = 0;  SNR(t) = abar_t / (1 - abar_t)
        z_(t-1) ~ N(sqrt(abar_(t-1)) u_y, 1 - abar_(t-1)),   uhat_t = softmax(block_t(z_(t-1), x)) W
        L_t = (T / 2) eta (SNR(t) - SNR(t-1)) |uhat_t - u_y|^2 + CE(read(z_T), y) + KL(q(z_0 | y) | N(0, 1))
        answer: z_0 ~ N(0, 1),   z_t = a_t uhat_t(z_(t-1), x) + b_t z_(t-1) + sqrt(c_t) e
        a_t = sqrt(abar_t) (1 - alpha) / (1 - abar_(t-1)),   b_t = sqrt(alpha) (1 - abar_t) / (1 - abar_(t-1))
        c_t = (1 - abar_t) (1 - alpha) / (1 - abar_(t-1)),   alpha = abar_(t-1) / abar_t

    u_y is row y of the embedding W, which all blocks and the read-out share and all move.

    Helps: where no backward pass through the whole network is possible or wanted; blocks could train side by side.
    Hurts: accuracy, some points below backpropagation; an answer differs a little from one asking to the next.
    Cost: a pass forward and back through one block for each of the T blocks, one after the other; memory of one block.
    Choices: each block sees the input through its own copy of the recipe's model without its head. With abar_0 = 0 the
        start of the chain is noise alone, so that the KL term is zero. The blocks take their steps one after the other
        in each batch, the shared weights with each of them. Only the discrete-time form is there.

    Args:
        blocks: Blocks of the chain (T).
        eta: Weight of the guessing beside the read-out.
        embedding: Whether the classes' embeddings are learned, or are the classes themselves, one number for each.
        embed_dim: Numbers in a learned embedding.
        hidden: Width of the layers inside a block.
        noise: Whether noise is added between the blocks when it answers; the start is random all the same.
        clip: Least and greatest share of the label that is left; the greatest is below 1.
    """

    offers = ("gradients",)
    makes = ("block*", "shared")
    divisible = False  # the shared weights move once for each block

    def __init__(
        self,
        blocks: Count = 5,
        eta: NonNegative = 0.1,
        embedding: Literal["learned", "one-hot"] = "learned",
        embed_dim: Count = 20,
        hidden: Count = 64,
        noise: bool = True,
        clip: tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[float, Field(gt=0, lt=1)]] = (1e-3, 0.99),
    ):
        if clip[0] >= clip[1]:
            raise ValueError(f"clip = {list(clip)} leaves nothing between its ends; write the smaller one first.")
        self.blocks, self.eta, self.embedding, self.embed_dim = blocks, eta, embedding, embed_dim
        self.hidden, self.noise, self.clip = hidden, noise, clip

    def setup(self, run: Run) -> None:
        shared = Shared(run.offer.size, self.embed_dim, self.embedding == "learned")
        embed = shared.embedding.shape[1]
        copies = [headless(run.model, run.anatomy) for _ in range(self.blocks)]
        blocks = [Denoiser(features, width, embed, self.hidden, run.offer.size) for features, width in copies]
        chain = DenoisingChain(blocks, shared, NoiseSchedule(self.blocks, self.clip), self.noise).to(run.device)
        run.model = chain
        for t, block in enumerate(blocks, 1):
            run.add_role(f"block{t}", block)
        run.add_role("shared", chain.shared)

    def step(self, run: Run, batch: Batch) -> None:
        for t in range(1, self.blocks + 1):
            guessing, reading = self.losses(run, batch, t)
            own, shared = run.roles[f"block{t}"].parameters, run.roles["shared"].parameters
            # One backward pass for both players: what is shared has a gradient from the guess as well.
            total = mean_of(guessing, batch.weight) + mean_of(reading, batch.weight)
            grads = torch.autograd.grad(total, [*own, *shared])
            run.update(f"block{t}", {"guess": carrying(guessing, own, grads[: len(own)])})
            run.update("shared", {"read": carrying(reading, shared, grads[len(own) :])})

    def losses(self, run: Run, batch: Batch, t: int) -> tuple[Tensor, Tensor]:
        """Of each sample: how far block t's guess is off, weighted, and the read-out's error at the chain's end."""
        chain: Any = run.model
        schedule, embedding, rng = chain.schedule, chain.shared.embedding, run.rng(ID)
        u = embedding[batch.target]
        z = noisy(u, schedule.abar[t - 1], rng)
        guess = chain.blocks[t - 1](z, embedding, *batch.inputs.values())
        weight = self.blocks / 2 * self.eta * schedule.weight(t)
        end = noisy(u, schedule.abar[-1], rng)
        reading = F.cross_entropy(chain.shared.read(end), batch.target, reduction="none")
        return weight * (guess - u).square().sum(-1), reading

    @torch.no_grad()
    def result(self, run: Run) -> dict[str, float]:
        """The accuracy that the chain has reached after each of its blocks, on the validation split."""
        chain: Any = run.model
        right = [0.0] * self.blocks
        with run.evaluating():
            for batch in run.batches("val"):
                for t, logits in enumerate(chain.trace(*batch.inputs.values())):
                    right[t] += float((logits.argmax(-1) == batch.target).sum())
        size = max(run.task.size("val"), 1)
        return {f"accuracy.{t}": count / size for t, count in enumerate(right, 1)}

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if task.offer.output != "classes":
            return f"It takes noise off a class, and the task offers {task.offer.output}."
        if task.stream == "whole":
            return "It puts noise on the label of every sample that it sees, and this task shows some without theirs."
        if recipe["training"]["accumulate"] > 1:
            return "The shared weights move once for each block, so a step cannot be split; write accumulate = 1."
        if not isinstance(anatomy.head, nn.Linear):
            return "It sees the input through the model without its head; choose a model that ends in a linear layer."
        return None


def noisy(u: Tensor, left: float, rng: torch.Generator) -> Tensor:
    """An embedding of which that share is left, the rest noise."""
    noise = torch.randn(u.shape, generator=rng, device=u.device, dtype=u.dtype)
    return math.sqrt(left) * u + math.sqrt(1 - left) * noise


def mean_of(values: Tensor, weight: Tensor | None) -> Tensor:
    """The mean over the samples, weighted where they have weights."""
    return values.mean() if weight is None else (values * weight).sum() / weight.sum()


def carrying(value: Tensor, parameters: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:
    """The value, with these as the gradient of its mean with respect to the parameters."""
    zero = torch.stack([((p - p.detach()) * g).sum() for p, g in zip(parameters, grads, strict=True)]).sum()
    return value.detach() + zero


def headless(model: nn.Module, anatomy: Anatomy) -> tuple[nn.Module, int]:
    """A copy of a model, with weights of its own, that gives what its head would be given; and how many numbers."""
    path = anatomy.path(anatomy.head)
    head: Any = anatomy.head
    features = copy.deepcopy(model)
    parent, _, name = path.rpartition(".")
    setattr(features.get_submodule(parent), name, nn.Identity())
    return features, head.in_features
