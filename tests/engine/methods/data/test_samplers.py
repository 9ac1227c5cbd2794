"""The samplers against what they promise, counted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.methods.data.balanced import Balanced
from engine.methods.data.experiences import Experiences
from engine.methods.data.p_by_k import PByK
from engine.methods.data.poisson import Poisson
from engine.parts import Sampler
from engine.training.state import capture, restore

COUNTS = (70, 20, 7, 3)
TARGET = torch.repeat_interleave(torch.tensor([5, 1, 9, 2]), torch.tensor(COUNTS))[torch.randperm(100)]


def started(sampler: Sampler, batch_size: int, target: Tensor = TARGET, seed: int = 0, **meta: Tensor) -> Sampler:
    rng = torch.Generator().manual_seed(seed)
    sampler.start({"target": target, **meta}, len(target), batch_size, rng)
    return sampler


def epoch(sampler: Sampler) -> list[Tensor]:
    return [sampler.next() for _ in range(sampler.batches)]


MADE = {
    "balanced": lambda: started(Balanced(), 16),
    "p-by-k": lambda: started(PByK(each=4), 12),
    "experiences": lambda: started(Experiences(column="target", passes=2), 16),
    "poisson": lambda: started(Poisson(), 2),
}


@pytest.mark.parametrize("name", MADE)
def test_a_captured_sampler_goes_on_where_it_was(name: str) -> None:
    """Everywhere in an epoch and over its end: state and generator together are all that the next batches depend on."""
    sampler = MADE[name]()
    for _ in range(sampler.batches + 2):
        state, generator = capture(sampler), sampler._rng.get_state()
        fresh = MADE[name]()
        restore(fresh, state, torch.device("cpu"))
        fresh._rng.set_state(generator)
        expected = [sampler.next() for _ in range(2)]
        for index in expected:
            assert torch.equal(fresh.next(), index)
        restore(sampler, state, torch.device("cpu"))
        sampler._rng.set_state(generator)
        assert torch.equal(sampler.next(), expected[0])


@pytest.mark.parametrize("name", MADE)
def test_another_epoch_is_another_draw_from_all_samples(name: str) -> None:
    sampler = MADE[name]()
    first, second = torch.cat(epoch(sampler)), torch.cat(epoch(sampler))
    assert not torch.equal(first[:20], second[:20])
    assert int(first.min()) >= 0 and int(first.max()) < 100


def test_balanced_gives_each_group_and_each_of_its_samples_the_same_chance() -> None:
    sampler = started(Balanced(), 50)
    assert sampler.batches == 2
    drawn = torch.cat([index for _ in range(200) for index in epoch(sampler)])
    assert len(drawn) == 20000
    groups = torch.stack([(TARGET[drawn] == value).sum() for value in TARGET.unique()])
    assert (groups - 5000).abs().max() < 4 * (20000 * 0.25 * 0.75) ** 0.5
    rare = drawn[TARGET[drawn] == 2].bincount(minlength=100)
    rare = rare[rare > 0]
    assert len(rare) == 3 and (rare - rare.sum() / 3).abs().max() < 4 * (5000 * 2 / 9) ** 0.5
    assert len(drawn.unique()) == 100


def test_balanced_balances_the_column_that_it_is_told() -> None:
    group = (torch.arange(100) < 5).long()
    sampler = started(Balanced(column="group"), 100, group=group)
    share = torch.cat([sampler.next() for _ in range(50)]).lt(5).double().mean()
    assert float(share) == pytest.approx(0.5, abs=4 * (0.25 / 5000) ** 0.5)
    assert Balanced(column="group").needs == ("group",)
    with pytest.raises(ValueError, match="column target holds numbers, not groups"):
        started(Balanced(), 4, torch.rand(10))


def test_p_by_k_has_p_classes_of_k_different_samples() -> None:
    sampler = started(PByK(each=5), 15)
    assert sampler.batches == 7
    seen = []
    for index in [i for _ in range(30) for i in epoch(sampler)]:
        rows = index.view(3, 5)
        assert (TARGET[rows] == TARGET[rows[:, :1]]).all(), "a run of five is one class"
        assert len(TARGET[rows[:, 0]].unique()) == 3
        for row in rows:
            size = (TARGET[row[0]] == TARGET).sum()
            assert len(row.unique()) == min(5, int(size)), "all different where the class has enough"
        seen.append(TARGET[rows[:, 0]])
    counts = torch.stack([(torch.cat(seen) == value).sum() for value in TARGET.unique()])
    expected = 210 * 3 / 4
    assert (counts - expected).abs().max() < 4 * (210 * 0.75 * 0.25) ** 0.5


def test_p_by_k_goes_through_a_class_before_a_sample_comes_again() -> None:
    target = torch.repeat_interleave(torch.arange(3), 20)
    sampler = started(PByK(each=4), 12, target)
    counts = torch.cat(epoch(sampler)).bincount(minlength=60)
    assert counts.tolist() == [1] * 60, "every batch has all three classes: five batches are one pass"


def test_p_by_k_refuses_batches_that_cannot_be_filled() -> None:
    with pytest.raises(ValueError, match="no multiple of each = 4"):
        started(PByK(each=4), 10)
    with pytest.raises(ValueError, match="holds 5 classes, but target has 4"):
        started(PByK(each=4), 20)


def test_experiences_come_in_order_each_as_often_as_asked() -> None:
    sampler = started(Experiences(column="target", passes=2), 16)
    order = [1, 2, 5, 9]
    expected = [count for count in (20, 3, 70, 7) for _ in range(2)]
    assert sampler.batches == sum(-(-n // 16) for n in expected)
    for _ in range(2):
        batches, owners, ends = [], [], []
        for _ in range(sampler.batches):
            batches.append(sampler.next())
            owners.append(sampler.experience)
            ends.append(sampler.experience_ended)
        assert [int(TARGET[b[0]]) for b in batches] == [order[e] for e in owners]
        assert all((TARGET[b] == order[e]).all() for b, e in zip(batches, owners, strict=True))
        assert owners == sorted(owners) and sum(ends) == 4
        assert [e for e, end in zip(owners, ends, strict=True) if end] == [0, 1, 2, 3]
        assert torch.cat(batches).bincount().tolist() == [2] * 100
        first = torch.cat(batches)[:20]
        assert len(first.unique()) == 20 and not torch.equal(first, first.sort().values)


def test_poisson_is_an_independent_chance_for_each_sample_and_batch() -> None:
    sampler = started(Poisson(), 8)
    assert sampler.batches == 13
    hits = torch.zeros(13 * 400, 100, dtype=torch.float64)
    for row in hits:
        index = sampler.next()
        assert len(index.unique()) == len(index)
        row[index] = 1
    each = hits.mean(0)
    assert (each - 0.08).abs().max() < 4.5 * (0.08 * 0.92 / len(hits)) ** 0.5
    sizes = hits.sum(1)
    assert float(sizes.mean()) == pytest.approx(8, abs=0.2)
    assert float(sizes.var()) == pytest.approx(100 * 0.08 * 0.92, rel=0.1), "binomial, not fixed"
    together = (hits.T @ hits / len(hits)).fill_diagonal_(0)
    assert float(together.sum() / (100 * 99)) == pytest.approx(0.08**2, rel=0.02)


def test_poisson_has_empty_batches_and_whole_ones() -> None:
    rare = started(Poisson(), 1, torch.zeros(20))
    empty = sum(len(rare.next()) == 0 for _ in range(2000)) / 2000
    assert empty == pytest.approx((1 - 1 / 20) ** 20, abs=0.045)
    whole = started(Poisson(), 64, torch.zeros(20))
    assert whole.batches == 1 and whole.next().tolist() == list(range(20))
