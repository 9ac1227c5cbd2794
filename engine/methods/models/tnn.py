"""A language model without attention: long convolutions, gated."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from engine.fields import Count, Fraction
from engine.kit.anatomy import Anatomy, example_input
from engine.methods.layers.gated_toeplitz import GatedToeplitz
from engine.parts import Model, Offer, model


class Block(nn.Module):
    """A gated convolution over positions, then a gated layer over channels, each on the normalized state and added."""

    def __init__(self, mixer: nn.Module, width: int, hidden: int):
        super().__init__()
        self.norm1, self.mixer = nn.LayerNorm(width), mixer
        self.norm2 = nn.LayerNorm(width)
        self.gate, self.up, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.channels(x + self.mixer(self.norm1(x)))

    def channels(self, x: Tensor) -> Tensor:
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        mixed, state = self.mixer.step(self.norm1(x), state)  # type: ignore[operator]
        return self.channels(x + mixed), state


@model(
    id="tnn",
    name="Toeplitz network",
    paper="Accelerating Toeplitz Neural Network with Constant-time Inference Complexity",
    arxiv="2311.08756",
    recommends={
        "task": {"use": "python-text", "length": 128},
        "optimizer": {"use": "adamw", "lr": 0.003},
        "training": {"batch_size": 32},
    },
    example={
        "task": {"use": "python-text", "characters": 20000, "length": 16},
        "model": {"width": 8, "depth": 1, "rpe_dim": 4},
    },
)
class TNN(Model):
    """A language model that mixes positions by convolutions as long as the text, whose kernels a small network makes
    from distances. It trains on all positions at once, and can be turned into a recurrence to write.

        x <- x + W_o (act(W_u n) * (T act(W_v n))),  n = norm(x);   x <- x + W_3 (act(W_1 m) * W_2 m),  m = norm(x)
        (T u)_i = sum_(j <= i) t_(i-j) u_j;   t_i = decay^i MLP(i)

    Helps: long texts; writing them at a constant cost for each token, after the conversion.
    Hurts: what must be looked up by its content.
    Cost: L log L in the length; writing without the conversion costs more with every token.

    Args:
        width: Numbers in each position's state.
        depth: Blocks.
        decay: What a kernel is multiplied by for each further position.
        rpe_layers: Hidden layers of the network that makes a kernel.
        rpe_dim: Its width.
        expand: Channels of a convolution for each of the state's.
        expansion: Units of the gated layer over channels for each of the state's.

    Raises:
        ValueError: For a task that does not ask for the next token.
    """

    def __init__(
        self,
        offer: Offer,
        width: Count = 64,
        depth: Count = 2,
        decay: Fraction = 0.99,
        rpe_layers: Count = 3,
        rpe_dim: Count = 32,
        expand: Count = 1,
        expansion: Count = 2,
    ):
        super().__init__()
        if offer.input != "tokens" or offer.output != "next-token":
            raise ValueError(
                f"It tells the next token of a text, and the task offers {offer.input} in and {offer.output} out."
            )
        self._offer = offer
        site: Any = SimpleNamespace(features=width)
        self.stem = nn.Embedding(offer.vocabulary, width)
        self.blocks = nn.Sequential(
            *(
                Block(GatedToeplitz(site, decay, rpe_layers, rpe_dim, expand), width, expansion * width)
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, offer.size)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x))))

    def begin(self, text: Tensor) -> Any:
        """The states behind a text [B, L] that was read, which may be empty."""
        states = [block.mixer.start(len(text)) for block in self.blocks]  # type: ignore[union-attr, operator]
        for token in text.unbind(1):
            _, states = self.advance(states, token)
        return states

    def advance(self, state: Any, token: Tensor) -> tuple[Tensor, Any]:
        x, following = self.stem(token), []
        for block, each in zip(self.blocks, state, strict=True):
            x, each = block.step(x, each)  # type: ignore[operator]
            following.append(each)
        return self.head(self.norm(x)).log_softmax(-1), following

    def anatomy(self) -> Anatomy:
        blocks, example = list(self.blocks), example_input(self._offer)
        return Anatomy(self, stem=self.stem, blocks=blocks, features=self.norm, head=self.head, example=example)
