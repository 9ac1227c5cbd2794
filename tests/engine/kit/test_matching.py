"""Matching: assignments against all permutations, permuted networks compute the same, copies are found again."""

from __future__ import annotations

from itertools import pairwise, permutations

import pytest
import torch

from engine import registry
from engine.kit.matching import assign, gain, match_weights, permuted, product
from engine.parts import Offer

IMAGE = Offer("image", (1, 8, 8), "classes", 10)
MODELS = [
    {"use": "mlp", "hidden": [12, 7]},
    {"use": "mlp", "hidden": [9, 9], "norm": "batch"},
    {"use": "cnn", "norm": "batch"},
]


def made(use: dict[str, object], seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = registry.build(registry.catalog() and _filled(use), IMAGE)
    for _ in range(2):  # running statistics that are not all alike
        model(torch.randn(16, 1, 8, 8))
    return model.eval()


def _filled(use: dict[str, object]) -> dict[str, object]:
    from engine.settings import fill_use

    return fill_use(use, registry.catalog())


def shuffled(model: torch.nn.Module, seed: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    groups = model.anatomy().tied()  # type: ignore[operator]
    orders = [torch.randperm(group.size, generator=rng) for group in groups]
    return orders, permuted(model.state_dict(), groups, orders)


def test_an_assignment_is_the_best_of_all_permutations() -> None:
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        table = torch.randn(5, 5, generator=rng)
        best = max(permutations(range(5)), key=lambda p: sum(table[i, j].item() for i, j in enumerate(p)))
        assert assign(table).tolist() == list(best)


@pytest.mark.parametrize("use", MODELS, ids=str)
def test_a_permuted_network_computes_the_same(use: dict[str, object]) -> None:
    model = made(use, 0)
    x = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    before = model(x)
    orders, state = shuffled(model, 2)
    assert orders and any(not torch.equal(state[n], t) for n, t in model.state_dict().items())
    model.load_state_dict(state)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("use", MODELS, ids=str)
def test_a_permuted_copy_is_found_again_exactly(use: dict[str, object]) -> None:
    model = made(use, 3)
    groups = model.anatomy().tied()  # type: ignore[operator]
    orders, state = shuffled(model, 4)
    found, heights = match_weights(model.state_dict(), state, groups, torch.Generator().manual_seed(5))
    for order, back in zip(orders, found, strict=True):
        assert torch.equal(order[back], torch.arange(len(order))), "each undoes the other"
    again = permuted(state, groups, found)
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    assert heights[-1] == pytest.approx(product(model.state_dict(), model.state_dict(), groups))


def test_the_inner_product_never_falls_and_each_order_is_a_permutation() -> None:
    a, b = made(MODELS[0], 0).state_dict(), made(MODELS[0], 1).state_dict()
    groups = made(MODELS[0], 0).anatomy().tied()  # type: ignore[operator]
    for seed in range(5):
        orders, heights = match_weights(a, b, groups, torch.Generator().manual_seed(seed))
        assert all(later >= earlier for earlier, later in pairwise(heights))
        assert heights[-1] > heights[0]
        assert all(sorted(order.tolist()) == list(range(len(order))) for order in orders)
        assert product(a, permuted(b, groups, orders), groups) == pytest.approx(heights[-1])


def test_the_gain_of_a_group_is_what_the_inner_product_changes_by() -> None:
    a, b = made(MODELS[1], 0).state_dict(), made(MODELS[1], 1).state_dict()
    groups = made(MODELS[1], 0).anatomy().tied()  # type: ignore[operator]
    for k, group in enumerate(groups):
        table = gain(a, b, group)
        before = product(a, b, groups)
        swap = torch.arange(group.size)
        swap[[0, 2]] = swap[[2, 0]]
        orders = [swap if i == k else None for i in range(len(groups))]
        change = product(a, permuted(b, groups, orders), groups) - before
        rows = torch.arange(group.size)
        assert change == pytest.approx(float(table[rows, swap].sum() - table.trace()), abs=1e-9)
