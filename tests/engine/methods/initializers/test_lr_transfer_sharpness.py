"""The report on made-up tables with known answers, and the paper's claim on short real runs."""

from __future__ import annotations

import math

import pytest

from engine.methods.initializers.lr_transfer_sharpness import EDGE, LOSS, LrTransferSharpness
from engine.parts import Row
from engine.recipe import Recipe
from engine.training.assemble import filled
from engine.training.sweep import carry_out

WIDTHS, RATES = [16, 64], [0.5, 1.0, 2.0, 4.0]


def study(**settings) -> LrTransferSharpness:
    return LrTransferSharpness(**{"widths": WIDTHS, "rates": RATES, "look_at": 2.0, **settings})


def table(asks, best: dict[str, dict[int, float]], edge: dict[str, dict[int, float]]) -> list[Row]:
    """Runs whose loss is lowest at a known rate, and whose rate times sharpness ends at a known number."""
    rows = []
    for ask in asks:
        kind, width, rate, seed = ask.labels.values()
        loss = 1 + math.log2(rate / best[kind][width]) ** 2 + 0.1 * seed
        series = {LOSS: ([0, 1], [9.0, loss])}
        if ask.changes["probes"]:
            end = edge[kind][width] + (0.2 if seed else -0.2)
            series[EDGE] = ([10, 20, 30, 40], [0.1, 0.2, 0.3, end])
        rows.append(Row(ask.labels, {}, series=series))
    return rows


def base() -> dict:
    return filled(Recipe.of({"task": {"use": "digits"}, "model": {"use": "scaled-residual-mlp"}, "seed": 5}))


def test_drift_edge_and_spread_are_read_from_the_runs() -> None:
    asked = study(seeds=2)
    asks = asked.plan(base())
    assert len(asks) == 2 * 2 * 4 * 2 and {ask.changes["seed"] for ask in asks} == {5, 6}
    best = {"mup": {16: 2.0, 64: 2.0}, "ntp": {16: 4.0, 64: 1.0}}
    edge = {"mup": {16: 2.1, 64: 1.9}, "ntp": {16: 0.9, 64: 0.3}}
    rows = table(asks, best, edge)
    answer = asked.report(rows)
    assert answer.scalars == pytest.approx(
        {"mup drift": 0, "mup edge": 2.0, "mup spread": 0.1, "ntp drift": 2, "ntp edge": 0.6, "ntp spread": 1.0}
    )
    assert "In NTP the best rate is 4 at width 16 and 1 at 64" in answer.verdict
    loss = answer.figures["loss-ntp"]["series"][1]
    assert (loss["name"], loss["x"]) == ("width 64", [-1, 0, 1, 2]) and loss["y"][1] == pytest.approx(1.05)
    assert answer.figures["edge-mup"]["series"][0]["y"] == pytest.approx([0.1, 0.2, 0.3, 2.1])
    one = study(parametrization="ntp").report([row for row in rows if row.labels["parametrization"] == "ntp"])
    assert set(one.scalars) == {"drift", "edge", "spread"}, "no prefix where there is nothing to tell apart"


def test_a_run_that_diverged_is_the_worst_and_has_no_sharpness() -> None:
    asked = study(parametrization="mup")
    rows = table(asked.plan(base()), {"mup": {16: 4.0, 64: 4.0}}, {"mup": {16: 2.0, 64: 2.0}})
    for row in rows:
        if row.labels["rate"] == 4.0:
            row.state = "diverged"
    answer = asked.report(rows)
    assert answer.scalars["drift"] == 0 and "2 at width 16 and 2 at 64" in answer.verdict
    for row in rows:
        row.state = "diverged"
    assert asked.report(rows).scalars == {} and "no rate trains both widths" in asked.report(rows).verdict


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"widths": [64, 64]}, "at least two widths"),
        ({"rates": [1.0, 1.0, 2.0]}, "each of them once"),
        ({"look_at": 3.0}, "look_at = 3 is none of the rates 0.5, 1, 2, 4"),
    ],
)
def test_what_it_refuses(settings, words) -> None:
    with pytest.raises(ValueError, match=words):
        study(**settings)


def test_a_model_without_width_is_refused() -> None:
    document = filled(Recipe.of({"task": {"use": "digits"}, "model": {"use": "mlp"}}))
    with pytest.raises(ValueError, match="the model mlp has no width"):
        study().plan(document)


def test_in_mup_every_width_trains_at_the_edge_and_in_ntp_none_does() -> None:
    """Base rate 2, after 100 steps: rate times sharpness from 1.7 to 2.5 with a spread below 20 %; below 1.2 in NTP."""
    recipe = {
        "task": {"use": "digits", "target": "one-hot", "standardize": True, "train_limit": 256},
        "model": {"use": "scaled-residual-mlp"},
        "loss": {"use": "half-squared-error"},
        "optimizer": {"use": "sgd", "momentum": 0.0},
        "training": {"batch_size": 256, "evaluate_every": 100, "threads": 1},
        "budget": {"epochs": 0, "steps": 100},
    }
    recipe["study"] = {"use": "lr-transfer-sharpness", "widths": [64, 128], "rates": [2.0], "iterations": 12}
    found = carry_out(Recipe.of(recipe)).metrics
    assert 1.7 <= found["mup edge"] <= 2.5 and found["mup spread"] < 0.2
    assert found["ntp edge"] < 1.2
