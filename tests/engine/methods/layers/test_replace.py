"""The technique that puts layers in: where, and what it says when it cannot."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from engine.methods.layers.layer_norm import LayerNorm
from engine.methods.layers.replace import Replace
from engine.methods.layers.weight_norm import WeightNorm
from engine.methods.models.mlp import MLP
from engine.parts import Offer
from engine.registry import Factory

IMAGE = Offer("image", (1, 8, 8), "classes", 10)


class Notes:
    """What the technique needs of a run here: a place for its message."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def replaced(model: nn.Module, layer: type, sites: str = "", **settings: Any) -> tuple[nn.Module, str]:
    notes = Notes()
    model = Replace(Factory(layer, settings), sites).prepare_model(notes, model)  # type: ignore[arg-type]
    return model, notes.texts[0]


def test_without_sites_it_goes_where_the_role_fits() -> None:
    model, said = replaced(MLP(IMAGE, hidden=[8, 8], norm="batch"), LayerNorm)
    assert [type(block.norm) for block in model.blocks] == [LayerNorm, LayerNorm]
    assert said == "Replaced 2 modules: blocks.0.norm, blocks.1.norm."
    model, _ = replaced(MLP(IMAGE, hidden=[8]), WeightNorm)
    assert isinstance(model.blocks[0].linear, WeightNorm) and isinstance(model.head, WeightNorm)


def test_sites_and_settings_are_kept_to() -> None:
    model, _ = replaced(MLP(IMAGE, hidden=[8, 8]), WeightNorm, "weight, not last", mean_only_bn=True)
    assert isinstance(model.blocks[1].linear, WeightNorm) and type(model.head) is nn.Linear
    assert model.blocks[1].linear.bias is not None
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_the_anatomy_sees_through_what_was_put_in() -> None:
    model, _ = replaced(MLP(IMAGE, hidden=[8, 8]), WeightNorm)
    anatomy = model.anatomy()
    assert [site.path for site in anatomy.sites("linear")] == [
        "blocks.0.linear.layer",
        "blocks.1.linear.layer",
        "head.layer",
    ]
    again, _ = replaced(model, LayerNorm, "activation")
    assert [site.role for site in again.anatomy().all_sites() if site.role][:3] == ["linear", "norm", "activation"]


def test_reasons() -> None:
    anatomy = MLP(IMAGE, hidden=[8]).anatomy()

    def reason(layer: type, sites: str) -> str | None:
        return Replace.requires({"layer": Factory(layer, {}), "sites": sites}, None, anatomy, {})  # type: ignore[arg-type]

    assert reason(WeightNorm, "") is None
    assert "nothing can be replaced. It has activation, linear" in str(reason(LayerNorm, ""))
    assert "At blocks.0.activation: weight normalization needs a linear" in str(reason(WeightNorm, "activation"))
    assert "'noms' is neither a role" in str(reason(LayerNorm, "noms"))
    settings = {"layer": {"use": "some-layer"}, "sites": "noms"}
    assert "'noms' is neither a role" in str(Replace.requires(settings, None, anatomy, {}))  # type: ignore[arg-type]
