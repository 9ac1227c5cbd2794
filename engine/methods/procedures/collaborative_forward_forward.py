"""Forward-forward learning whose layers know of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.fields import Positive
from engine.parts import Batch, Procedure, Task, procedure

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

ID = "collaborative-forward-forward"
TINY = 1e-8


def unit(h: Tensor) -> Tensor:
    """Each row at length 1."""
    return h / torch.linalg.vector_norm(h, dim=-1, keepdim=True).clamp_min(TINY)


class Layer(nn.Module):
    """One layer of the stack: a block that begins with a linear layer, and, in the first, weights for the label.

    The first layer computes W [x, label] + b, with the columns of W for the label in a matrix of their own.
    """

    def __init__(self, block: nn.Sequential, classes: int = 0):
        super().__init__()
        self.block = block
        self.labels: nn.Linear | None = None
        if classes:
            linear: Any = block[0]
            self.labels = nn.Linear(classes, linear.out_features, bias=False)
            bound = (linear.in_features + classes) ** -0.5
            nn.init.uniform_(self.labels.weight, -bound, bound)

    def forward(self, h: Tensor) -> Tensor:
        """From the layer below, at unit length."""
        return self.block(unit(h))

    def first(self, x: Tensor, labels: Tensor, every: bool = False) -> Tensor:
        """From inputs [B, D] and one-hot labels: one for each, or, with `every`, all K of them for each (B K rows)."""
        assert self.labels is not None
        length = (x.square().sum(-1, keepdim=True) + 1).sqrt()  # of [x, label]
        below, above = self.block[0](x / length), self.labels(labels)
        if every:
            return self.block[1:]((below.unsqueeze(1) + above / length.unsqueeze(1)).flatten(0, 1))
        return self.block[1:](below + above / length)


def goodness(h: Tensor, kind: str = "sum") -> Tensor:
    """The sum (or mean) of each row's squares."""
    squares = h.float().square() if h.dtype in (torch.float16, torch.bfloat16) else h.square()
    return squares.sum(-1) if kind == "sum" else squares.mean(-1)


def layer_losses(
    positive: Sequence[Tensor], negative: Sequence[Tensor], theta: float, collaborate: bool
) -> list[Tensor]:
    """A loss per layer and sample from all layers' goodness; each has a gradient for its own layer alone."""
    return [
        F.softplus(-own) + F.softplus(other)
        for own, other in zip(
            _margins(positive, theta, collaborate), _margins(negative, theta, collaborate), strict=True
        )
    ]


def _margins(good: Sequence[Tensor], theta: float, collaborate: bool) -> list[Tensor]:
    if not collaborate:
        return [each - theta for each in good]
    fixed = torch.stack([each.detach() for each in good])
    others = fixed.sum(0) - fixed  # gamma_k: the goodness of all layers but k
    return [each + gamma - theta for each, gamma in zip(good, others, strict=True)]


@procedure(
    id=ID,
    name="Collaborative forward-forward",
    paper="Layer Collaboration in the Forward-Forward Algorithm",
    arxiv="2305.12393",
    recommends={
        "model": {"hidden": [256, 256, 256]},
        "optimizer": {"lr": 0.001},
        "training": {"batch_size": 64},
        "budget": {"epochs": 40},
    },
)
class CollaborativeForwardForward(Procedure):
    """Trains each layer on its own, without an error sent back: to answer strongly to an image with its true label and
    weakly to one with a wrong label. Each layer is told how strongly the others answer, so that they share the work.

        h_k = block_k(h_(k-1) / |h_(k-1)|),   h_0 = [x, one-hot label],   G_k = sum_j h_kj^2
        gamma_k = sum over the other layers of G_t, held fixed      (0 without collaboration)
        L_k = -log sigmoid(G_k + gamma_k - theta)   for the true label
              -log(1 - sigmoid(G_k + gamma_k - theta))   for a wrong one
        answer = the label with the largest sum_k G_k

    Each layer has an optimizer of its own and moves only by its own L_k.

    Helps: where no backward pass through the network is possible or wanted.
    Hurts: accuracy, some points below backpropagation; the answer costs a pass for each class. With a theta of its own
        (about 2) plain forward-forward does as well.
    Cost: two forward passes, and backward passes that end within a layer; no activations are kept across layers.
    Choices: it trains the blocks of the recipe's model; the label enters by weights of its own beside the first
        layer's, and the model's head is not used. All layers move at once, from one forward pass. theta stands against
        the sum over layers: about 2 a layer. The mean of squares starts below 0.01 for inputs of unit length, and with
        a theta of 2 it hardly learns.

    Args:
        theta: Goodness above which a sample counts as true.
        goodness: Whether a layer's goodness is the sum or the mean of its squares.
        collaborate: Whether a layer knows the others' goodness; without it this is plain forward-forward.
    """

    uses = ("model", "optimizer")
    offers = ("gradients", "terms")
    makes = ("layer*",)  # one role a layer, none of which stands for the whole model
    keeps_parameters = True  # its labels' weights are as wide as the first block

    def __init__(self, theta: Positive = 6.0, goodness: Literal["sum", "mean"] = "sum", collaborate: bool = True):
        self.theta, self.goodness, self.collaborate = theta, goodness, collaborate
        self._layers: list[Layer] = []
        self._classes = 0

    def setup(self, run: Run) -> None:
        self._classes = run.offer.size
        blocks: Any = run.anatomy.blocks
        self._layers = [Layer(block, 0 if k else self._classes).to(run.device) for k, block in enumerate(blocks)]
        for k, layer in enumerate(self._layers):
            run.add_role(f"layer{k}", layer)

    def step(self, run: Run, batch: Batch) -> None:
        rng = run.rng(ID)
        shift = torch.randint(1, self._classes, batch.target.shape, generator=rng, device=batch.target.device)
        labels = torch.cat([batch.target, (batch.target + shift) % self._classes])
        x = batch.x.flatten(1)
        with run.autocast():
            good = self.run_up(torch.cat([x, x]), F.one_hot(labels, self._classes).to(x.dtype))
        halves = [each.chunk(2) for each in good]
        losses = layer_losses([p for p, _ in halves], [n for _, n in halves], self.theta, self.collaborate)
        for k, each in enumerate(losses):
            run.update(f"layer{k}", {"task": each})

    def run_up(self, x: Tensor, labels: Tensor, every: bool = False) -> list[Tensor]:
        """The goodness of every layer; no gradient passes from one layer to the one below."""
        h = self._layers[0].first(x, labels, every)
        good = [goodness(h, self.goodness)]
        for layer in self._layers[1:]:
            h = layer(h.detach())
            good.append(goodness(h, self.goodness))
        return good

    def predict(self, run: Run, batch: Batch) -> Tensor:
        """The total goodness of each label, as logits."""
        x = batch.x.flatten(1)
        labels = torch.eye(self._classes, device=x.device, dtype=x.dtype)
        return torch.stack(self.run_up(x, labels, every=True)).sum(0).view(len(x), self._classes)

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if task.offer.output != "classes" or task.offer.input == "tokens":
            return "It tries every class as a label beside numbers; choose a task with numbers in and classes out."
        blocks = anatomy.blocks
        fits = all(isinstance(b, nn.Sequential) and len(b) > 1 and isinstance(b[0], nn.Linear) for b in blocks)
        if not blocks or not fits:
            return "It trains a stack of fully connected layers; choose a model whose blocks each begin with one."
        firsts: list[Any] = [block[0] for block in blocks]  # type: ignore[index]
        widths = [(linear.in_features, linear.out_features) for linear in firsts]
        if widths[0][0] != task.offer.features or any(a[1] != b[0] for a, b in pairwise(widths)):
            return "It needs each block's inputs to be the outputs of the block before, the first one's the task's."
        return None
