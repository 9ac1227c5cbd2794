"""Guidance: the likeness of layers against naive sums, which layers meet, and what must be left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import pearsonr
from torch import Tensor

from engine.errors import RecipeError
from engine.methods.regularizers.representational_guidance import TERM, even_map, linear_cka, rsa, unlikeness
from engine.training.loop import Trainer
from tests.engine.methods.short import ready, train

DEEP = {"use": "mlp", "hidden": [16, 12, 8]}
BATCH = {"batch_size": 32}


def guided(**settings: Any) -> list[dict[str, Any]]:
    given = {"guide": {"use": "mlp", "hidden": [10, 10]}, "min_batch": 32} | settings
    return [{"use": "representational-guidance", **given}]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


def slow_cka(a: Tensor, b: Tensor) -> float:
    n = len(a)
    h = torch.eye(n, dtype=torch.float64) - 1 / n
    k, other = (h @ x.double() @ x.double().T @ h for x in (a, b))
    product = sum(float(k[i, j] * other[i, j]) for i in range(n) for j in range(n))
    return product / (float(k.square().sum()) * float(other.square().sum())) ** 0.5


def test_linear_cka_is_the_normalized_product_of_centred_grams() -> None:
    a, b = numbers(20, 7), numbers(20, 4, seed=1)
    assert float(linear_cka(a, b)) == pytest.approx(slow_cka(a, b), abs=1e-6)
    assert float(linear_cka(a, a)) == pytest.approx(1, abs=1e-6)
    assert 0 <= float(linear_cka(a, b)) <= 1


def test_turning_and_scaling_do_not_change_it_and_other_maps_do() -> None:
    a = numbers(30, 6)
    turn = torch.linalg.qr(numbers(6, 6, seed=2)).Q
    assert float(linear_cka(a, 3 * a @ turn + 5)) == pytest.approx(1, abs=1e-5)
    stretched = a @ torch.diag(torch.tensor([10.0, 1, 1, 1, 1, 1]))
    assert float(linear_cka(a, stretched)) < 0.9


def test_a_layer_that_answers_alike_has_no_likeness_and_a_gradient() -> None:
    dead = torch.zeros(10, 3, requires_grad=True)
    value = linear_cka(dead, numbers(10, 5))
    value.backward()
    assert value.item() == 0 and torch.isfinite(dead.grad).all()  # type: ignore[arg-type]


def test_images_count_flat() -> None:
    images = numbers(12, 3, 4, 4)
    assert float(linear_cka(images, images.flatten(1))) == pytest.approx(1, abs=1e-6)


def test_rsa_is_the_correlation_of_cosine_similarities() -> None:
    a, b = numbers(9, 5), numbers(9, 3, seed=1)
    cosine = torch.nn.functional.cosine_similarity
    pairs = [(i, j) for i in range(9) for j in range(i + 1, 9)]
    lists = [[float(cosine(x[i], x[j], dim=0)) for i, j in pairs] for x in (a, b)]
    assert float(rsa(a, b)) == pytest.approx(pearsonr(*lists).statistic, abs=1e-5)


@pytest.mark.parametrize(
    ("guide", "target", "pairs"),
    [(3, 5, [0, 2, 4]), (1, 4, [0]), (5, 3, [0, 0, 1, 2, 2]), (2, 2, [0, 1]), (4, 1, [0, 0, 0, 0])],
)
def test_layers_meet_evenly_by_depth(guide: int, target: int, pairs: list[int]) -> None:
    assert even_map(guide, target) == pairs


def test_every_pair_counts() -> None:
    network, guide = (
        {0: numbers(10, 4), 1: numbers(10, 3, seed=1)},
        {0: numbers(10, 5, seed=2), 1: numbers(10, 2, seed=3)},
    )
    expected = sum(1 - slow_cka(network[layer], guide[i]) for i, layer in [(0, 0), (1, 0), (1, 1)])
    assert float(unlikeness([(0, 0), (1, 0), (1, 1)], network, guide, "linear-cka")) == pytest.approx(
        expected, abs=1e-5
    )


def test_without_weight_or_time_it_is_plain_training_bit_for_bit() -> None:
    plain, _, _ = train(model=DEEP, training=BATCH)
    for settings in ({"alpha": 0.0}, {"min_batch": 32, "off_after_steps": 0, "alpha": 0.0, "metric": "rsa"}):
        run, _, _ = train(model=DEEP, training=BATCH, techniques=guided(**settings))
        assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), run.model.parameters(), strict=True))


def test_it_ends_after_its_steps_and_leaves_out_small_batches() -> None:
    for off, guided_at in ((10, [0]), (11, [0, 10])):
        settings = guided(off_after_steps=off, min_batch=48)
        _, memory, _ = train(model=DEEP, training={"batch_size": 48}, budget={"steps": 12}, techniques=settings)
        assert memory.points[f"train/term/{TERM}"][0] == guided_at
    run, _ = ready(model=DEEP, training={"batch_size": 48}, techniques=guided(min_batch=48))
    sizes = [len(run.stream.next()) for _ in range(2)]
    assert sizes[0] == 48 > sizes[1]
    for batch in run.batches("train", 48):
        assert ("penalty" in str(run.terms(run.forward(batch), batch))) is (len(batch) == 48)


def test_the_pull_makes_layers_alike_and_leaves_the_guide_alone() -> None:
    run, memory = ready(
        model=DEEP, training={"batch_size": 84}, optimizer={"use": "adamw", "lr": 0.01}, budget={"steps": 200},
        techniques=guided(alpha=5.0),
    )  # fmt: skip
    (part,) = run.techniques
    before = {name: value.clone() for name, value in part._guide.state_dict().items()}
    Trainer(run).train()
    assert all(torch.equal(value, before[name]) for name, value in part._guide.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in part._guide.parameters()) and not part._guide.training
    _, values = memory.points["representational-guidance/unlikeness"]
    assert values[-1] < 0.5 * values[0]


def test_a_guide_that_is_the_network_itself_has_nothing_to_say() -> None:
    run, _ = ready(model=DEEP, training=BATCH, techniques=guided(guide=DEEP))
    (part,) = run.techniques
    part._guide.load_state_dict(run.model.state_dict())
    batch = run.stream.next()
    terms = run.terms(run.forward(batch), batch)
    assert terms[TERM].item() == pytest.approx(0, abs=1e-5)


def test_one_guide_is_needed_and_a_batch_worth_comparing() -> None:
    with pytest.raises(RecipeError, match="It needs one guide"):
        ready(model=DEEP, training=BATCH, techniques=[{"use": "representational-guidance", "min_batch": 2}])
    with pytest.raises(RecipeError, match="write batch_size = 64"):
        ready(model=DEEP, training=BATCH, techniques=guided(min_batch=64))
