"""Tasks on the nodes of one graph: what each split holds and hides, and graphs with known counts."""

from __future__ import annotations

from typing import Any

import networkx
import pytest
import torch
from torch.nn import functional as F

from engine.errors import RecipeError
from engine.figures import problems
from engine.kit.nodes import HIDDEN
from engine.methods.tasks.node_classes import BlockGraph, HouseGraph, KarateClub
from tests.engine.methods.short import ready, train

SPLITS = ("train", "val", "test", "outer")


def loaded(task: Any) -> Any:
    task.load()
    return task


TASKS = {
    "blocks": lambda: BlockGraph(nodes=60, outer=0.1),
    "karate": lambda: KarateClub(outer=0.1),
    "houses": lambda: HouseGraph(base=20, houses=4, labelled=0.5, outer=0.1),
}


@pytest.mark.parametrize("kind", list(TASKS))
def test_every_split_sees_all_nodes_and_the_labels_of_its_own_alone(kind: str) -> None:
    task = loaded(TASKS[kind]())
    columns = [task.columns(split) for split in SPLITS]
    asked = torch.stack([each["mask"] for each in columns])
    assert bool((asked.sum(0) == 1).all()), "each node is asked for by one split"
    for split, each in zip(SPLITS, columns, strict=True):
        assert len(each["x"]) == task.graph.nodes and task.size(split) == int(each["mask"].sum()) > 0
        assert torch.equal(each["target"] == HIDDEN, ~each["mask"])
        assert torch.equal(each["target"][each["mask"]], task.target[each["mask"]])
    assert task.offer.about["graph"] is task.graph
    assert not problems(task.figure())


def test_blocks_are_joined_as_their_chances_say() -> None:
    graph = loaded(BlockGraph(inside=0.02, outside=0.08))
    edges, group = graph.graph.edges, graph.target
    assert group.bincount().tolist() == [100, 100, 100]
    assert 0.05 < float((group[edges[0]] == group[edges[1]]).float().mean()) < 0.2
    x = graph.columns("train")["x"]
    means = torch.stack([x[group == k].mean(0) for k in range(3)])
    assert 0.2 < float(means.std(0).mean()) < 0.6
    again = loaded(BlockGraph(inside=0.02, outside=0.08, split_seed=1))
    assert torch.equal(again.graph.edges, edges) and not torch.equal(
        again.columns("train")["mask"], graph.columns("train")["mask"]
    )


def test_the_club_is_that_of_networkx() -> None:
    task = loaded(KarateClub())
    assert len(task.graph.pairs()) == 78 and torch.equal(task.columns("val")["x"], torch.eye(34))
    assert task.target[0] == 0 and task.target[33] == 1 and task.target.sum() == 17


def test_houses_are_houses_and_hang_on_the_graph() -> None:
    task = loaded(HouseGraph(noise=0.0))
    motif, target = task.columns("train")["meta.motif"], task.target
    made = networkx.Graph(task.graph.edges[:, task.graph.pairs()].T.tolist())
    assert made.number_of_nodes() == 300 and networkx.is_connected(made)
    assert made.number_of_edges() == 5 * 145 + 30 * 6 + 30
    square = networkx.house_graph()
    for number in (1, 17, 30):
        members = (motif == number).nonzero().flatten().tolist()
        house = made.subgraph(members)
        assert networkx.is_isomorphic(house, square)
        assert sorted(target[members].tolist()) == [1, 1, 2, 2, 3]
        roof = next(i for i in members if target[i] == 3)
        assert sorted(target[list(house[roof])].tolist()) == [1, 1], "the roof is over the nodes of role 1"
        assert sum(len(list(made[i])) for i in members) == 2 * 6 + 1, "one edge leaves the house"
    assert target[motif == 0].sum() == 0
    noisy = loaded(HouseGraph(noise=0.1))
    assert len(noisy.graph.pairs()) == made.number_of_edges() + round(0.1 * made.number_of_edges())


def test_training_and_metrics_are_those_of_the_nodes_that_are_asked_for() -> None:
    run, _ = ready(task={"use": "block-graph", "nodes": 60}, model={"use": "gcn", "hidden": [8]})
    assert run.stream is not None and run.stream.batches == 1
    batch = run.stream.next()
    assert len(batch) == 60 and batch.x.shape == (60, 16)
    asked = batch.mask
    output = run.forward(batch)
    total = run.total(run.terms(output, batch), batch)
    assert torch.allclose(total, F.cross_entropy(output[asked], batch.target[asked]), atol=1e-6)
    columns = run.columns("test")
    right = (output.argmax(1) == columns["target"])[columns["mask"]].float().mean()
    assert run.evaluate("test")["accuracy"] == pytest.approx(float(right))


def test_other_losses_and_terms_see_the_same_nodes() -> None:
    """Smoothing replaces the task's term: hidden labels must have no part in it."""
    run, _ = ready(
        task={"use": "block-graph", "nodes": 60},
        model={"use": "gcn", "hidden": [8]},
        techniques=[{"use": "label-smoothing", "amount": 0.2}],
    )
    batch = next(run.batches("train"))
    output = run.forward(batch)
    total = run.total(run.terms(output, batch), batch)
    expected = F.cross_entropy(output[batch.mask], batch.target[batch.mask], label_smoothing=0.2)
    assert torch.allclose(total, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": {"use": "cnn"}}, "nodes"),
        ({"task": {"use": "two-moons"}}, "offers vector"),
        ({"task": {"use": "block-graph", "labelled": 0.8}}, "leave no node for the test"),
        ({"task": {"use": "house-graph", "base": 5}}, "write a larger base"),
        ({"training": {"accumulate": 2}}, "handed out whole"),
        ({"sampler": {"use": "poisson"}}, "leave .sampler. out"),
    ],
)
def test_what_does_not_fit_is_refused(changes: Any, sentence: str) -> None:
    recipe = {"task": {"use": "block-graph", "nodes": 60}, "model": {"use": "gcn", "hidden": [8]}, **changes}
    with pytest.raises(RecipeError, match=sentence):
        ready(**recipe)


def test_a_plain_network_answers_from_each_nodes_own_features() -> None:
    run, _ = ready(task={"use": "block-graph", "nodes": 60}, model={"use": "mlp", "hidden": [8]})
    batch = next(run.batches("train"))
    assert torch.allclose(run.model(batch.x)[7:9], run.model(batch.x[7:9]), atol=1e-6)
    assert run.evaluate("val")["loss"] > 0


def test_a_network_learns_the_blocks() -> None:
    _, _, outcome = train(
        task={"use": "block-graph"},
        model={"use": "gcn"},
        optimizer={"use": "adamw", "lr": 0.01},
        budget={"epochs": 60},
        training={"evaluate_every": 0},
    )
    assert outcome.metrics["test/accuracy"] > 0.85 and outcome.steps == 60
