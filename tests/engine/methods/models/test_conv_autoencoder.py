"""The autoencoder: shapes, what is in its middle, its anatomy, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from engine.kit.anatomy import Site
from engine.methods.models.conv_autoencoder import ConvAutoencoder
from engine.parts import Offer

IMAGES = Offer("image", (2, 8, 12), "values", 192)


@pytest.mark.parametrize("halvings", [1, 2])
def test_the_middle_is_a_small_grid_and_the_answer_an_image(halvings: int) -> None:
    net = ConvAutoencoder(IMAGES, width=6, latent=3, halvings=halvings)
    x = torch.randn(5, 2, 8, 12)
    z = net.encode(x)
    assert z.shape == (5, 3, 8 // 2**halvings, 12 // 2**halvings)
    assert net(x).shape == x.shape
    assert torch.equal(net(x), net.head(net.decoder(z)))


def test_the_layer_in_the_middle_gets_its_place_and_sees_the_features() -> None:
    seen: list[Any] = []

    class Middle(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            seen.append(z)
            return torch.zeros_like(z)

    def make(site: Site) -> nn.Module:
        assert (site.path, site.features) == ("quantizer", 3) and isinstance(site.module, nn.Identity)
        return Middle()

    net = ConvAutoencoder(IMAGES, width=6, latent=3, quantizer=make)
    x = torch.randn(4, 2, 8, 12)
    out = net(x)
    assert torch.equal(seen[0], net.encode(x))
    torch.testing.assert_close(out, out[:1].expand_as(out))  # nothing of the image passes zeros


def test_its_anatomy_holds_every_weight_once() -> None:
    anatomy = ConvAutoencoder(IMAGES, width=6, latent=3).anatomy()
    weights = [site.path for site in anatomy.sites("weight")]
    assert weights[0].startswith("stem") and weights[-1] == "head" and len(weights) == 6
    assert {anatomy.width_role(f"{path}.weight") for path in weights[1:-1]} == {"hidden"}


def test_what_it_cannot_answer_is_refused() -> None:
    for offer, settings, words in (
        (Offer("image", (1, 8, 8), "classes", 10), {}, "answers with as many values"),
        (Offer("vector", (64,), "values", 64), {}, "takes images"),
        (Offer("image", (1, 6, 6), "values", 36), {"halvings": 2}, "6 x 6 pixels cannot be halved 2 times"),
    ):
        with pytest.raises(ValueError, match=words):
            ConvAutoencoder(offer, **settings)
