"""Ablations: what is computed from the runs, and how a broken file is told."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from engine import registry
from engine.errors import AthanorError
from engine.recipe import Recipe, merge
from engine.training import evidence
from engine.training.assemble import filled
from engine.training.loop import train

RECIPE: dict[str, Any] = {
    "task": {"use": "two-moons", "samples": 200},
    "model": {"use": "mlp", "hidden": [8]},
    "optimizer": {"use": "sgd", "lr": 0.1},
    "training": {"evaluate_every": 0},
    "budget": {"epochs": 3},
}
ABLATION: dict[str, Any] = {
    "claim": "Momentum lowers the loss.",
    "metric": "test/loss",
    "better": "lower",
    "margin": 0.01,
    "seeds": [0, 3],
    "recipe": RECIPE,
    "baseline": {"optimizer": {"momentum": 0.0}},
    "method": {"optimizer": {"momentum": 0.9}},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(evidence, "FOLDER", tmp_path)
    return tmp_path


def write(folder: Path, id: str = "one", **changes: Any) -> None:
    ablation = {name: value for name, value in {**ABLATION, **changes}.items() if value is not None}
    (folder / f"{id}.toml").write_bytes(tomlkit.dumps(ablation).encode())


def loss_of(momentum: float, seed: int, metric: str = "test/loss") -> float:
    document = merge(RECIPE, {"optimizer": {"momentum": momentum}, "seed": seed})
    return train(filled(Recipe.of(document), registry.catalog())).metrics[metric]


def test_a_drawn_problem_takes_the_seed_too(folder: Path) -> None:
    write(folder, instances=["task.split_seed"])
    row = evidence.measure("one")
    for arm, momentum in (("baseline", 0.0), ("method", 0.9)):
        documents = [merge(RECIPE, {"optimizer": {"momentum": momentum}, "seed": s}) for s in (0, 3)]
        drawn = [merge(d, {"task": {"split_seed": d["seed"]}}) for d in documents]
        expected = [train(filled(Recipe.of(d), registry.catalog())).metrics["test/loss"] for d in drawn]
        assert row[arm]["values"] == expected
        assert expected[1] != loss_of(momentum, 3)


def test_before_and_after_may_be_two_metrics_of_a_run(folder: Path) -> None:
    write(folder, baseline={}, method={}, baseline_metric="val/loss", margin=-10)
    row = evidence.measure("one")
    assert row["method"]["values"] == [loss_of(0.9, seed) for seed in (0, 3)]
    assert row["baseline"]["values"] == [loss_of(0.9, seed, "val/loss") for seed in (0, 3)]
    assert row["metric"] == "test/loss" and row["baseline_metric"] == "val/loss"
    assert row["effect"] == row["method"]["mean"] - row["baseline"]["mean"] != 0


def test_mean_spread_effect_and_verdict(folder: Path) -> None:
    write(folder)
    row = evidence.measure("one")
    for arm, momentum in (("baseline", 0.0), ("method", 0.9)):
        values = [loss_of(momentum, seed) for seed in (0, 3)]
        assert row[arm]["values"] == values and row[arm]["n"] == 2
        assert row[arm]["mean"] == pytest.approx(sum(values) / 2)
        assert row[arm]["std"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    assert row["effect"] == row["method"]["mean"] - row["baseline"]["mean"] < -0.01
    assert (row["id"], row["metric"], row["holds"]) == ("one", "test/loss", True)
    assert row["seconds"] > 0

    write(folder, "two", better="higher")
    assert evidence.measure("two")["holds"] is False, "lower is not higher"
    write(folder, "three", margin=10.0)
    assert evidence.measure("three")["holds"] is False, "not by that much"
    write(folder, "four", better="higher", margin=-10.0)
    assert evidence.measure("four")["holds"] is True, "not worse by more than ten"


def test_each_arm_is_tuned_by_validation(folder: Path) -> None:
    choices = [1e-6, 0.3]
    write(folder, tune={"baseline": {"optimizer.lr": choices}}, seeds=[1])
    row = evidence.measure("one")
    scores = {}
    for lr in choices:
        recipe = Recipe.of(merge(RECIPE, {"optimizer": {"momentum": 0.0, "lr": lr}, "seed": 1}))
        scores[lr] = train(filled(recipe, registry.catalog())).metrics
    best = max(choices, key=lambda lr: scores[lr]["val/accuracy"])
    assert row["baseline_tuned"] == {"optimizer.lr": best} and "method_tuned" not in row
    assert row["baseline"]["values"] == [scores[best]["test/loss"]]
    assert row["baseline"]["std"] == 0.0 and row["method"]["values"] == [loss_of(0.9, 1)]


def test_errors_are_sentences(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder)
    with pytest.raises(AthanorError, match=r"There is no ablation 'two'\. There are: one\."):
        evidence.measure("two")
    write(folder, "lacking", claim=None, seeds=None)
    with pytest.raises(AthanorError, match=r"lacking.toml lacks claim, seeds\."):
        evidence.measure("lacking")
    write(folder, "more", clame="x")
    with pytest.raises(AthanorError, match=r"more.toml must not have clame\."):
        evidence.measure("more")
    write(folder, "metric", metric="test/beauty", seeds=[0])
    with pytest.raises(AthanorError, match=r"The ablation 'metric' asks for 'test/beauty'; its runs have .*test/loss"):
        evidence.measure("metric")
    write(folder, "part", method={"optimizer": {"use": "sdg"}}, seeds=[0])
    with pytest.raises(AthanorError, match=r"there is no optimizer .sdg.\. Did you mean .sgd.\?"):
        evidence.measure("part")
    (folder / "broken.toml").write_text("claim = ")
    with pytest.raises(AthanorError, match=r"broken\.toml"):
        evidence.measure("broken")
    assert evidence.main(["two"]) == 2
    assert capsys.readouterr().err.startswith("There is no ablation 'two'.")


def test_rows_are_printed_and_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, seeds=[0])
    assert evidence.main(["one", "--keep"]) == 0
    row = json.loads(capsys.readouterr().out)
    kept = dict(json.loads((folder / "one.json").read_text()))
    assert {key: kept[key] for key in row} == row and {"date", "machine"} <= set(kept)


def test_spread() -> None:
    values = [1.0, 2.0, 4.0]
    assert evidence.spread(values) == {"mean": 7 / 3, "std": statistics.stdev(values), "n": 3, "values": values}
    assert evidence.spread([5.0])["std"] == 0.0
