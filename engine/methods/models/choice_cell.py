"""A small convolutional network whose cells are searched, or written down."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from engine.fields import Count
from engine.kit.anatomy import Anatomy, example_input
from engine.kit.choice import OPERATIONS, image_choice
from engine.parts import Model, Offer, model

Edge = Literal["zero", "skip", "conv3", "conv1", "pool", "random"]


@model(
    id="choice-cell",
    name="Cell of choices",
    example={"task": {"use": "digits", "train_limit": 60}, "model": {"channels": 4}},
)
class ChoiceCell(Model):
    """A stem, one or more cells, and a head. In a cell each node adds up what the nodes before it send, and what is
    done on the way from one to the other is a choice between five operations, or the one that is written down.

        node_j = sum_(i < j) edge_ij(node_i),   node_0 = the cell's input
        edge = sum_o softmax(alpha)_o o(x),  o in {zero, skip, conv3, conv1, pool};   or one o

    Helps: searching an architecture inside a run, and training what was found: name its operations as the genotype.
    Hurts: an open choice costs all of its operations, and trained with its alpha by plain gradients it learns the
        alpha on the very samples that the weights fit.
    Cost: open, five operations an edge; with a genotype, one.
    Choices: the edges of a cell stand in the order 0-1, 0-2, 1-2, 0-3, ...; every cell has its own choices. A
        convolution is ReLU, convolution, batch normalization. "random" draws one of the five when the model is built.

    Args:
        channels: Channels in all cells.
        nodes: Nodes of a cell behind its input; two make three edges, three make six.
        cells: Cells, one behind the other.
        genotype: The operation of every edge, cell by cell; empty leaves all open.

    Raises:
        ValueError: For inputs that are no images, or a genotype of another length.
    """

    inputs = ("image",)
    outputs = ("classes", "values", "embedding")

    def __init__(
        self,
        offer: Offer,
        channels: Count = 8,
        nodes: Count = 2,
        cells: Count = 1,
        genotype: list[Edge] = [],  # noqa: B006 - the default is shown in the form; it is never changed
    ):
        super().__init__()
        if offer.input != "image":
            raise ValueError(f"Its operations are for images, and the task offers {offer.input} inputs.")
        edges = nodes * (nodes + 1) // 2
        if genotype and len(genotype) != edges * cells:
            raise ValueError(
                f"The genotype names {len(genotype)} operations, and {cells} cell{'s' * (cells > 1)} of {nodes} nodes "
                f"{'have' if cells > 1 else 'has'} {edges * cells} edges. Write one for each, or none to search."
            )
        self._offer = offer
        self.stem = nn.Sequential(
            nn.Conv2d(offer.shape[0], channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.blocks = nn.Sequential(
            *(Cell(channels, nodes, genotype[i * edges : (i + 1) * edges] or None) for i in range(cells))
        )
        self.pool = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(4 * channels, offer.size)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(self.stem(x))))

    def anatomy(self) -> Anatomy:
        return Anatomy(
            self,
            stem=self.stem,
            blocks=list(self.blocks),
            features=self.pool,
            head=self.head,
            example=example_input(self._offer),
        )


class Cell(nn.Module):
    """Nodes that add up what those before them send."""

    def __init__(self, channels: int, nodes: int, genotype: list[Edge] | None):
        super().__init__()
        self.nodes = nodes
        count = nodes * (nodes + 1) // 2
        self.edges = nn.ModuleList(_edge(channels, genotype[k] if genotype else None) for k in range(count))

    def forward(self, x: Tensor) -> Tensor:
        states, edges = [x], iter(self.edges)
        for _ in range(self.nodes):
            states.append(torch.stack([next(edges)(state) for state in states]).sum(0))
        return states[-1]


def _edge(channels: int, name: str | None) -> nn.Module:
    if name is None:
        return image_choice(channels)
    names = list(OPERATIONS)
    return OPERATIONS[names[int(torch.randint(len(names), (), device="cpu"))] if name == "random" else name](channels)
