"""Folding a trained model into a plain one."""

from __future__ import annotations

from functools import partial

from torch import nn

from engine.kit.folding import merge_norms
from engine.kit.weight_maps import fold, maps
from engine.parts import Batch, Transform, Transformed, give_side, transform, with_side


@transform(name="Fold", example={"model": {"norm": "batch"}})
class Fold(Transform):
    """Makes a trained model plain: what was only there to train it well goes into the weights that are left.
    The outputs stay the same, up to rounding.

        layer with fold() -> what it folds to;   w <- map_n(... map_1(w));   W <- W gamma / sqrt(var + eps)

    Helps: Speed and size, whenever layers were reparametrized, masked or normalized over the batch.
    Hurts: Nothing, as long as the model is not trained on: a folded one has other parameters.
    Cost: A pass over the weights.

    Choices: Layers that can fold are replaced first, then every map on a weight becomes the weight, then norms over the
    batch go into the weights before them, or after them where these do not pad with zeros. Sums are made in float64.

    Args:
        norms: Whether norms over the batch go into the weights.
    """

    samples = 2

    def __init__(self, norms: bool = True):
        self.norms = norms

    def apply(self, model: nn.Module, sample: Batch) -> Transformed:
        mapped = len(maps(model))
        own = sum(callable(getattr(module, "fold", None)) for module in model.modules())
        plain = fold(model)
        give_side(with_side(plain), sample)
        merged = merge_norms(plain, partial(sample.call, plain)) if self.norms else []
        return Transformed(plain, {"layers": own, "maps": mapped, "norms": len(merged)})
