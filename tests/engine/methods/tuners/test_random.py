import torch

from engine.methods.tuners.random import Random

SPACE = {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "model.hidden": [[8], [16]]}


def started(space=SPACE, trials=20, seed=0):
    search = Random(space, trials)
    search.start(torch.Generator().manual_seed(seed))
    return search


def changes(asks):
    return [ask.changes for ask in asks]


def test_the_draws_depend_on_the_seed_and_not_on_how_many_are_asked_for_at_once():
    one, two, other = started(), started(), started(seed=1)
    whole = changes(one.ask(100))
    assert whole == changes([ask for _ in range(20) for ask in two.ask(1)])
    assert whole != changes(other.ask(20))
    assert len(whole) == one.total() == 20 and one.ask(1) == []
    assert all(1e-4 <= c["optimizer.lr"] <= 1e-2 for c in whole)
    assert {len(whole[0]), *(tuple(c["model.hidden"]) for c in whole)} == {2, (8,), (16,)}


def test_a_small_space_is_tried_once_through():
    search = started({"a": [1, 2, 3], "b": {"low": 1, "high": 2, "whole": True}}, trials=50)
    assert search.total() == 6
    seen = changes(search.ask(50))
    assert sorted((c["a"], c["b"]) for c in seen) == [(a, b) for a in (1, 2, 3) for b in (1, 2)]


def test_a_search_goes_on_from_its_state():
    first = started()
    first.ask(5)
    second = Random(SPACE, 20)
    second.start(torch.Generator().manual_seed(7))
    second.drawn = [dict(c) for c in first.drawn]
    second.rng.set_state(first.rng.get_state())
    assert first.ask(3) == second.ask(3)
