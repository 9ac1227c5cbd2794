"""The feature space: rank and cosines of known matrices, and what the expansion adds."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from engine.errors import RecipeError
from engine.figures import problems
from engine.methods.probes.feature_space import FeatureSpace, cosine, numerical_rank, spectrum
from tests.engine.methods.short import ready

HETEROPHILOUS = {"use": "block-graph", "inside": 0.02, "outside": 0.08}


def test_rank_and_cosines_of_known_matrices() -> None:
    q, _ = torch.linalg.qr(torch.randn((9, 4), generator=torch.Generator().manual_seed(0)).double())
    made = q * torch.tensor([4.0, 2.0, 1e-2, 1e-6])
    assert torch.allclose(spectrum(made), torch.tensor([1, 0.5, 2.5e-3, 2.5e-7]).double(), rtol=1e-6)
    assert [numerical_rank(made, t) for t in (0.6, 0.1, 1e-3, 1e-9)] == [1, 2, 3, 4]
    assert cosine(q) == pytest.approx(0, abs=1e-12)
    half = torch.tensor([[1.0, 1.0, 0.0], [0.0, -1.0, 0.0]])
    assert cosine(half) == pytest.approx(math.sqrt(0.5)), "its sign does not count, and a column of zeros neither"
    assert cosine(half[:, :1]) == 0 and numerical_rank(torch.zeros(3, 2), 1e-3) == 0


def test_the_expansion_has_more_directions_and_columns_that_differ_more() -> None:
    for task in ({"use": "block-graph"}, HETEROPHILOUS):
        run, _ = ready(task=task, model={"use": "gcn"})
        found = FeatureSpace().look(run).scalars
        assert found["rank/expanded"] > found["rank/plain"]
        assert found["cosine/expanded"] < found["cosine/plain"]


def test_powers_draw_features_together() -> None:
    run, _ = ready(task=HETEROPHILOUS, model={"use": "gcn"})
    finding = FeatureSpace(order=8).look(run)
    plain = next(s for s in finding.figures["rank"]["series"] if s["name"] == "plain")
    assert plain["x"] == list(range(9)) and plain["y"][0] == 16
    gains = [b - a for a, b in pairwise(plain["y"])]
    assert gains[0] > 0 and gains[-1] < gains[0], "later powers add less"
    assert not any(problems(figure) for figure in finding.figures.values())


def test_without_structure_the_first_space_is_the_features_alone() -> None:
    run, _ = ready(task={"use": "house-graph"}, model={"use": "gcn"})
    finding = FeatureSpace(order=2, structure_rank=0).look(run)
    ranks: dict[str, Any] = {s["name"]: s["y"] for s in finding.figures["rank"]["series"]}
    assert ranks["plain"][0] == ranks["expanded"][0] == 1, "all features are the same"


def test_tasks_without_a_graph_are_refused() -> None:
    with pytest.raises(RecipeError, match="powers of a graph"):
        ready(probes=[{"use": "feature-space"}])
