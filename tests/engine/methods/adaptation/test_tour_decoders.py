"""The best of several tours: never longer than one, never shorter than the best there is, at the price that is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.errors import RecipeError
from engine.kit.routing import closest, every_start, greedy, is_tour, roll_out, tour_length
from engine.training.run import Run
from tests.engine.methods.short import ready

RECIPE: dict[str, Any] = {
    "task": {"use": "tsp", "points": 8, "instances": 40},
    "model": {"use": "attention-model", "width": 16, "heads": 4, "layers": 1, "hidden": 32},
    "procedure": {"use": "rl4co-attention-model"},
    "training": {"batch_size": 16, "evaluate_every": 0, "threads": 1},
}


def answering(**decoder: Any) -> Run:
    return ready(**RECIPE, **({"decoder": decoder} if decoder else {}))[0]


def lengths(run: Run) -> torch.Tensor:
    batch = next(run.batches("test"))
    tours = run.predict(batch)
    assert tours.shape == (40, 8) and is_tour(tours).all()
    found = tour_length(batch.x, tours)
    assert (found >= batch.meta["best"] - 1e-5).all()
    return found


def test_more_looks_never_make_a_tour_longer() -> None:
    plain = lengths(answering())
    one = lengths(answering(use="multistart", starts=1))
    assert torch.equal(plain, one)
    every = lengths(answering(use="multistart"))
    eight = lengths(answering(use="multistart", starts=1, augment=True))
    both = lengths(answering(use="multistart", augment=True))
    for shorter, longer in ((every, one), (eight, one), (both, every), (both, eight)):
        assert (shorter <= longer + 1e-5).all() and shorter.mean() < longer.mean()


def test_every_start_is_tried_and_the_best_is_taken() -> None:
    run = answering(use="multistart", starts=3)
    batch = next(run.batches("test"))
    with torch.no_grad():
        tours = roll_out(run.model.eval(), batch.x, greedy, every_start(40, 8, run.device, 3)).tours  # type: ignore[arg-type]
    assert torch.equal(run.predict(batch), closest(batch.x, tours))


def test_more_draws_are_better_and_a_cold_draw_is_greedy() -> None:
    few, many = (lengths(answering(use="tour-sampling", samples=n)).mean() for n in (2, 60))
    assert many < few - 0.1
    cold = lengths(answering(use="tour-sampling", samples=8, temperature=1e-4))
    assert torch.equal(cold, lengths(answering(use="multistart")))


def test_exchanges_shorten_the_policys_tour_and_the_nearest_points() -> None:
    batch = next(answering().batches("test"))
    plain, better = lengths(answering()), lengths(answering(use="two-opt"))
    assert (better <= plain + 1e-5).all() and better.mean() < plain.mean() - 0.1
    near = lengths(answering(use="two-opt", start="nearest", improve=False))
    torch.testing.assert_close(near, batch.meta["nearest"])
    every = lengths(answering(use="two-opt", start="nearest", starts=8, improve=False))
    assert (every <= near + 1e-5).all() and every.mean() < near.mean()
    assert lengths(answering(use="two-opt", start="nearest")).mean() < near.mean()
    run = answering(use="two-opt", start="nearest")
    run.evaluate("test")
    assert run.calls == 0 and run.decoder is not None and run.decoder.cost == 0


def test_every_tour_counts_as_a_call() -> None:
    for calls, decoder in (
        (16, {"use": "multistart", "starts": 2, "augment": True}),
        (5, {"use": "tour-sampling", "samples": 5}),
    ):
        run = answering(**decoder)
        run.evaluate("test")
        assert run.calls == calls * 40 and run.decoder is not None and run.decoder.cost == calls


def test_they_need_a_policy_that_builds_tours() -> None:
    with pytest.raises(RecipeError, match=r"points|tour"):
        ready(decoder={"use": "multistart"})
    with pytest.raises(RecipeError, match="has 8 points to start from"):
        answering(use="multistart", starts=9)
