"""The two questions about a digit, their losses and what counts as right."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from engine.methods.tasks.digits_two_targets import DigitsTwoTargets
from engine.training.data import Columns


def loaded(**settings: object) -> DigitsTwoTargets:
    made = DigitsTwoTargets(**settings)  # type: ignore[arg-type]
    made.load()
    return made


def test_the_questions_follow_from_the_digit() -> None:
    odd, large = loaded(), loaded(second="large")
    for split in ("train", "val", "test"):
        digits = odd.columns(split)["target"]
        assert torch.equal(odd.columns(split)["meta.second"], digits % 2)
        assert torch.equal(large.columns(split)["meta.second"], (digits >= 5).long())
    assert sum(odd.size(split) for split in ("train", "val", "test")) == 1797


def test_terms_and_metrics() -> None:
    made = loaded(scale=3.0)
    batch = next(Columns(made, "train", torch.device("cpu")).in_order(40))
    output = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    terms = made.objective(output, batch)
    assert list(terms) == ["class", "second"]
    torch.testing.assert_close(terms["class"].mean(), F.cross_entropy(output[:, :10], batch.target))
    torch.testing.assert_close(terms["second"].mean(), 3 * F.cross_entropy(output[:, 10:], batch.meta["second"]))
    right = torch.full((40, 12), -1.0)
    right[torch.arange(40), batch.target] = 1.0
    right[torch.arange(40), 10 + batch.meta["second"]] = 1.0
    assert {name: float(v.mean()) for name, v in made.metrics(right, batch).items()} == {
        "accuracy": 1.0, "second-accuracy": 1.0, "both": 1.0,
    }  # fmt: skip
    right[:, 10:] = -right[:, 10:]
    assert {name: float(v.mean()) for name, v in made.metrics(right, batch).items()} == {
        "accuracy": 1.0, "second-accuracy": 0.0, "both": 0.0,
    }  # fmt: skip
