"""The travelling salesman: fixed instances with their best tours, fresh ones in training, gaps by hand, and figures."""

from __future__ import annotations

import pytest
import torch

from engine.figures import problems
from engine.kit.routing import is_tour, tour_length
from engine.methods.tasks.tsp import SPREAD, Tsp, instances
from engine.parts import Batch
from tests.engine.methods.short import train


def loaded(**settings: object) -> Tsp:
    task = Tsp(**settings)  # type: ignore[arg-type]
    task.load()
    return task


def batch(task: Tsp, split: str = "test") -> Batch:
    columns = task.columns(split)
    meta = {name.removeprefix("meta."): column for name, column in columns.items() if name.startswith("meta.")}
    return Batch(
        {"points": columns["points"]}, columns["target"], torch.arange(len(columns["points"])), split, meta=meta
    )


def test_fixed_instances_are_the_same_each_time_and_differ_between_splits() -> None:
    one, two = loaded(), loaded()
    for split in ("val", "test"):
        assert torch.equal(one.columns(split)["points"], two.columns(split)["points"])
        assert is_tour(one.columns(split)["target"]).all()
    assert not torch.equal(one.columns("val")["points"], one.columns("test")["points"])
    assert not torch.equal(one.columns("val")["points"], loaded(split_seed=1).columns("val")["points"])
    assert one.columns("train") == {}


def test_training_draws_afresh_from_its_generator() -> None:
    task, rng = loaded(points=7), torch.Generator().manual_seed(0)
    first, second = task.draw(5, rng)["points"], task.draw(5, rng)["points"]
    assert first.shape == (5, 7, 2) and not torch.equal(first, second)
    assert torch.equal(task.draw(5, torch.Generator().manual_seed(0))["points"], first)


def test_the_gap_is_to_the_best_tour_and_nearest_neighbours_have_one() -> None:
    task = loaded()
    all = batch(task)
    best = task.metrics(all.target, all)
    assert best["gap"].abs().max() < 1e-6 and 0.05 < best["nearest-gap"].mean() < 0.2
    some = torch.arange(10).expand(100, -1)
    found = task.metrics(some, all)
    torch.testing.assert_close(found["gap"], tour_length(all.x, some) / all.meta["best"] - 1)
    torch.testing.assert_close(found["length"], tour_length(all.x, some))


def test_points_in_clusters_are_closer_together_and_test_may_differ() -> None:
    rng = torch.Generator().manual_seed(0)
    spread, close = (instances(50, 20, kind, rng) for kind in ("uniform", "clusters"))
    nearest = [torch.cdist(x, x).add(torch.eye(20)).amin(-1).mean() for x in (spread, close)]
    assert nearest[1] < 0.6 * nearest[0] and close.min() >= 0 and close.max() <= 1 and SPREAD < 0.1
    task = loaded(test_distribution="clusters")
    assert task.columns("test")["meta.best"].mean() < 0.8 * task.columns("val")["meta.best"].mean()


@pytest.mark.parametrize("points", [5, 20])
def test_its_figures_show_tours_beside_the_best(points: int) -> None:
    task = loaded(points=points, instances=4)
    answer = lambda asked: torch.arange(points).expand(len(asked), -1)  # noqa: E731
    found = task.figures(answer, torch.Generator())
    assert len(found) == 2
    for figure in (*found.values(), task.figure()):
        assert problems(figure) == []
    left = found["tour 0"]["edges"][:points]
    assert left == [[i, (i + 1) % points] for i in range(points)]
    best = task.columns("test")["target"][0].tolist()
    assert found["tour 0"]["edges"][points][0] == points + best[0]


def test_the_test_may_have_more_points_than_training() -> None:
    task = loaded(points=5, test_points=9, instances=4)
    assert task.columns("val")["points"].shape == (4, 5, 2) and task.columns("test")["points"].shape == (4, 9, 2)
    assert is_tour(batch(task).target).all() and task.offer.size == 5
    run, _, outcome = train(
        task={"use": "tsp", "points": 5, "test_points": 9, "instances": 4},
        model={"use": "attention-model", "width": 8, "heads": 2, "layers": 1, "hidden": 16},
        procedure={"use": "rl4co-attention-model"},
        decoder={"use": "multistart"},
        budget={"steps": 2},
    )
    assert outcome.metrics["test/gap"] >= 0 and outcome.metrics["decoder/calls"] == 9
    assert run.predict(batch(task)).shape == (4, 9)
    with pytest.raises(ValueError, match="3 points or more"):
        Tsp(test_points=2)
