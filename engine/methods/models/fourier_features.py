"""Networks that see coordinates as waves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.fields import Count, Positive, Widths
from engine.kit.anatomy import Anatomy, example_input
from engine.kit.encodings import Waves, check_vectors, hidden_layers
from engine.parts import Model, Offer, model


@model(
    id="fourier-features",
    name="Fourier feature network",
    paper="Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains",
    arxiv="2006.10739",
    example={"task": {"use": "signal-at-coordinates", "samples": 32}, "model": {"frequencies": 8, "hidden": [8]}},
)
class FourierFeatures(Model):
    """Shows a network not the coordinates but many waves of them, so that it can learn functions that change fast. On
    bare coordinates a network learns the slow parts alone.

        e(x) = [sin 2 pi f_j . x, cos 2 pi f_j . x],  |f_j| = |N(0, sigma^2)|, direction even;   answer = MLP(e(x))

    Helps: pictures, shapes and fields as functions of coordinates.
    Hurts: a sigma that is too large: between the samples the answer is noise. One sigma holds for every place.
    Cost: a first layer as wide as there are waves.
    Choices: the waves are drawn once and not trained. The coordinates themselves are an option.

    Args:
        frequencies: How many waves; each has a sine and a cosine.
        sigma: How fast they are: waves in a unit of the coordinates.
        hidden: Units of each hidden layer.
        coordinates: Whether the network sees the coordinates too.

    Raises:
        ValueError: For a task whose inputs are no vectors of numbers.
    """

    def __init__(
        self,
        offer: Offer,
        frequencies: Count = 256,
        sigma: Positive = 20.0,
        hidden: Widths = [256, 256, 256],  # noqa: B006 - the default is shown in the form; it is never changed
        coordinates: bool = False,
    ):
        super().__init__()
        check_vectors(offer)
        self._offer = offer
        self.coordinates = coordinates
        self.waves = Waves(offer.features, frequencies, sigma)
        inputs = self.waves.channels + offer.features * coordinates
        self.blocks = hidden_layers(inputs, hidden)
        self.head = nn.Linear([inputs, *hidden][-1], offer.size)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.waves(x)
        return self.head(self.blocks(torch.cat([x, seen], 1) if self.coordinates else seen))

    def anatomy(self) -> Anatomy:
        return Anatomy(
            self,
            stem=self.waves,
            blocks=list(self.blocks),
            features=self.blocks[-1] if len(self.blocks) else self.waves,
            head=self.head,
            example=example_input(self._offer),
        )
