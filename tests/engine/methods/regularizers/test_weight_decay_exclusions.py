"""Which parameters are spared, and that the optimizer then leaves them alone."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from engine.methods.regularizers.weight_decay_exclusions import WeightDecayExclusions
from tests.engine.methods.short import ready, train


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.inner = nn.ModuleList([weight_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4, affine=True)])
        self.debias = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight


BIASES = {"inner.0.bias", "debias.bias", "norm.bias", "inner.1.bias"}
NORMS = {"norm.weight", "norm.bias", "inner.1.weight", "inner.1.bias"}
TABLES = {"embedding.weight"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, BIASES | NORMS | TABLES),
        ({"norms": False, "embeddings": False}, BIASES),
        ({"biases": False, "embeddings": False}, NORMS),
        ({"biases": False, "norms": False}, TABLES),
        ({"biases": False, "norms": False, "embeddings": False}, set()),
    ],
)
def test_it_spares_the_chosen_kinds_alone(settings, expected):
    options = WeightDecayExclusions(**settings).group_options(None, _Model())
    assert options == {name: {"weight_decay": 0.0} for name in expected}


def test_in_a_run_strong_decay_shrinks_the_weights_but_not_what_is_spared():
    model = {"use": "mlp", "hidden": [8], "norm": "layer"}
    optimizer = {"use": "adamw", "lr": 1e-12, "weight_decay": 1e11}
    start = {n: p.detach().clone() for n, p in ready(model=model)[0].model.named_parameters()}
    run, _, _ = train(
        model=model, optimizer=optimizer, techniques=[{"use": "weight-decay-exclusions"}], budget={"steps": 5}
    )
    for name, p in run.model.named_parameters():
        share = 1.0 if name.endswith("bias") or ".norm." in name else 0.9**5
        torch.testing.assert_close(p.detach(), start[name] * share, rtol=1e-4, atol=1e-6)
