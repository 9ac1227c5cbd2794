"""Convolutional autoencoders, with or without something in their middle."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from engine.fields import Count, LayerPart
from engine.kit.anatomy import Anatomy, Site, example_input
from engine.parts import Model, Offer, model


@model(
    name="Convolutional autoencoder",
    example={"task": {"use": "reconstruction", "of": {"use": "digits"}}, "model": {"width": 4, "latent": 2}},
)
class ConvAutoencoder(Model):
    """Draws an image together into a small grid of features, and makes an image of them again. What it is trained to
    give back says what the features must keep.

        z = W_z h;   h = relu(conv(relu(conv(x) halved)) ...);   answer = conv(... conv(doubled conv(middle(z))))

    Helps: Compressing images, features without labels, and trying out what goes in the middle.
    Hurts: Tasks that ask for a class or a number: it answers with as many numbers as an image has.
    Cost: That of two small convolutional networks.

    Args:
        width: Channels of all layers but the middle.
        latent: Channels of the middle.
        halvings: How many times height and width are halved.
        quantizer: A layer in the middle, such as a quantizer of features.

    Raises:
        ValueError: For a task that does not take images and ask for as many values, and where the image cannot be
            halved so often.
    """

    inputs = ("image",)
    outputs = ("values",)

    def __init__(
        self,
        offer: Offer,
        width: Count = 32,
        latent: Count = 16,
        halvings: Count = 1,
        quantizer: LayerPart | None = None,
    ):
        super().__init__()
        if offer.input != "image" or offer.output != "values" or offer.size != offer.features:
            raise ValueError(
                "An autoencoder takes images and answers with as many values as an image has. Choose the "
                "reconstruction of images as the task."
            )
        if any(side % 2**halvings for side in offer.shape[1:]):
            size = " x ".join(map(str, offer.shape[1:]))
            raise ValueError(f"An image of {size} pixels cannot be halved {halvings} times. Write fewer halvings.")
        self._offer = offer
        self.stem = nn.Sequential(nn.Conv2d(offer.shape[0], width, 3, padding=1), nn.ReLU())
        self.encoder = nn.Sequential(*(_down(width) for _ in range(halvings)), nn.Conv2d(width, latent, 1))
        self.quantizer: Any = nn.Identity()
        if quantizer is not None:
            self.quantizer = quantizer(Site("quantizer", self.quantizer, self, "quantizer", "", latent))
        start = nn.Sequential(nn.Conv2d(latent, width, 3, padding=1), nn.ReLU())
        self.decoder = nn.Sequential(start, *(_up(width) for _ in range(halvings)))
        self.head = nn.Conv2d(width, offer.shape[0], 3, padding=1)

    def encode(self, x: Tensor) -> Tensor:
        """The features before the middle."""
        return self.encoder(self.stem(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decoder(self.quantizer(self.encode(x))))

    def anatomy(self) -> Anatomy:
        blocks = [*self.encoder, *self.decoder]
        return Anatomy(
            self,
            stem=self.stem,
            blocks=blocks,
            features=self.decoder,
            head=self.head,
            example=example_input(self._offer),
        )


def _down(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, width, 4, 2, 1), nn.ReLU())


def _up(width: int) -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
