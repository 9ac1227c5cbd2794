"""The study of two arms across sizes: its plan, its choice of rates, and what it says of curves that are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from engine import registry
from engine.errors import RecipeError
from engine.figures import problems
from engine.kit.scaling import predict
from engine.methods.probes.scaling_crossover import ScalingCrossover
from engine.parts import Answer, Row
from engine.recipe import Recipe
from engine.training.assemble import build_study, filled, planned

SIZES = [16, 28, 48, 84, 147, 256]
SMALL = np.log(np.array([3.0, 0.5, 1.0]))  # better at large sizes
LARGE = np.log(np.array([6.0, 0.9, 1.233]))
BASE: dict[str, Any] = {
    "task": {"use": "two-moons"},
    "model": {"use": "mlp", "hidden": [8]},
    "optimizer": {"use": "adamw"},
    "study": {"use": "scaling-crossover", "size": "model.hidden.0", "sizes": [4, 8, 16, 32]},
}


def plan_of(**study: Any) -> list[Any]:
    document = filled(Recipe.of({**BASE, "study": {**BASE["study"], **study}}), registry.catalog())
    return planned(document, build_study(document))


def rows(study: ScalingCrossover, one: np.ndarray, other: np.ndarray, noise: float = 0.002, seed: int = 0) -> list[Row]:
    """What runs with these curves would show."""
    rng = np.random.default_rng(seed)
    made = []
    for size in study.sizes:
        for name, law in zip(study._names, (one, other), strict=True):
            for k in range(study.seeds):
                loss = float(predict(law, np.array([float(size)]))[0] * np.exp(noise * rng.standard_normal()))
                series = {"train/loss": (list(range(20)), [loss] * 20)}
                metrics = {"val/loss": loss, "test/loss": loss}
                made.append(Row({"size": size, "arm": name, "seed": k}, metrics, series=series))
    return made


def answer(one: np.ndarray, other: np.ndarray, **settings: Any) -> Answer:
    study = ScalingCrossover(sizes=SIZES, bootstrap=100, **settings)
    return study.report(rows(study, one, other))


def test_the_plan_has_a_run_for_each_size_value_rate_and_seed() -> None:
    asks = plan_of(seeds=2, rates=[0.01, 0.1], arms={"optimizer.weight_decay": [0.0, 0.1, 1.0]})
    assert len(asks) == 4 * 3 * 2 * 2 == len({ask.id for ask in asks})
    first = asks[0]
    assert first.labels == {"size": 4, "arm": "weight_decay 0", "seed": 0, "rate": 0.01}
    assert first.changes == {
        "model.hidden.0": 4, "optimizer.weight_decay": 0.0, "seed": 0, "optimizer.lr": 0.01, "budget.epochs": 1.0,
        "budget.steps": 0,
    }  # fmt: skip
    many = plan_of(seeds=2, passes="multi_epoch")
    assert len(many) == 16 and not any("budget" in path for ask in many for path in ask.changes)
    assert {ask.changes["seed"] for ask in many} == {0, 1}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sizes": [4, 4, 8, 16]}, "each size"),
        ({"arms": {"optimizer.weight_decay": [0.1]}}, "two or more"),
        ({"arms": {"optimizer.weight_decay": [0.1, 0.0], "optimizer.lr": [0.1, 0.01, 0.001]}}, "equally many"),
        ({"size": "model.width"}, "no setting 'model.width'"),
    ],
)
def test_what_cannot_be_studied_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        plan_of(**settings)


def test_a_crossover_inside_is_found_and_said() -> None:
    found = answer(SMALL, LARGE)
    assert found.scalars["crossover"] == pytest.approx(63.9, rel=0.15)
    assert found.scalars["crossover low"] < found.scalars["crossover"] < found.scalars["crossover high"]
    assert found.scalars["refits with a crossover"] > 0.9 and found.scalars["A wins beyond"] > 0.9
    assert found.verdict.startswith("weight_decay 0.1 has the lower loss up to about 6")
    assert "weight_decay 0 from there on (inside the sizes that were trained; bootstrap range" in found.verdict
    table = {rule: holds for rule, _, holds in found.figures["rules"]["rows"]}
    assert table["What wins at the smallest size wins at every size"] == "no"
    assert all(problems(figure) == [] for figure in found.figures.values())
    swapped = answer(LARGE, SMALL)
    assert swapped.verdict.startswith("weight_decay 0 has the lower loss up to about 6")
    assert swapped.scalars["A wins beyond"] < 0.1


def test_a_crossover_beyond_is_called_an_extrapolation() -> None:
    later = np.log(np.array([6.0, 0.9, 1.06]))
    found = answer(SMALL, later, seeds=8)
    assert found.scalars["crossover"] > 256 and "an extrapolation" in found.verdict


def test_curves_beside_each_other_report_none() -> None:
    worse = SMALL + np.array([math.log(1.03), 0, math.log(1.03)])
    found = answer(SMALL, worse)
    assert "crossover" not in found.scalars and found.scalars["gain"] == pytest.approx(-0.03, abs=0.003)
    assert (
        found.verdict.startswith("No crossover is reported from 16 to 2.56e+03")
        and "weight_decay 0 has" in found.verdict
    )


def test_a_range_that_says_little_is_called_so() -> None:
    study = ScalingCrossover(sizes=SIZES, bootstrap=100)
    verdicts = [study.report(rows(study, SMALL, SMALL, noise=0.05, seed=seed)).verdict for seed in range(6)]
    reported = [verdict for verdict in verdicts if "bootstrap range" in verdict]
    assert reported and sum("may as well be equal" in verdict for verdict in reported) > len(reported) / 2
    assert "may as well" not in answer(SMALL, LARGE).verdict


def test_each_size_takes_its_best_rate_by_the_validation_and_reports_the_test() -> None:
    study = ScalingCrossover(sizes=[1, 2, 4, 8], rates=[0.1, 1.0], seeds=2, bootstrap=10)
    table = []
    for ask_size in study.sizes:
        for arm in study._names:
            for rate, val, test in ((0.1, 0.5, 0.9), (1.0, 0.6, 0.7)):
                for k in range(2):
                    metrics = {"val/loss": val, "test/loss": test + 0.001 * k}
                    state = "diverged" if (rate, ask_size, arm, k) == (0.1, 8, study._names[0], 1) else "done"
                    table.append(Row({"size": ask_size, "arm": arm, "rate": rate, "seed": k}, metrics, state))
    chosen = [study._best(table, size, study._names[:1])[0].labels["rate"] for size in study.sizes]
    assert chosen == [0.1, 0.1, 0.1, 1.0], "a rate with a run that diverged is not taken"
    assert study._stable(table, table[0]) == 1.0
    found = study.report(table)
    assert found.scalars["gain at the largest"] == pytest.approx(1 - 0.9005 / 0.7005)
    rule = next(row for row in found.figures["rules"]["rows"] if "largest that trains" in row[0])
    assert rule[1:] == ["in 1 of 8 cases", "no"]


def test_the_second_arm_takes_its_best_value() -> None:
    study = ScalingCrossover({"optimizer.weight_decay": [0.0, 0.1, 1.0]}, sizes=[1, 2, 4, 8], seeds=2, bootstrap=10)
    table = [
        Row({"size": size, "arm": arm, "seed": k}, {"val/loss": loss, "test/loss": loss})
        for size in study.sizes
        for arm, loss in zip(study._names, (1.0, 0.9 if size < 4 else 1.2, 0.95), strict=True)
        for k in range(2)
    ]
    found = study.report(table)
    assert found.scalars["gain"] == pytest.approx((0.1 + 0.1 + 0.05 + 0.05) / 4)


def test_a_size_without_a_result_is_named() -> None:
    study = ScalingCrossover(sizes=SIZES, bootstrap=10)
    table = [row for row in rows(study, SMALL, LARGE) if row.labels["size"] != 84]
    assert study.report(table).verdict == (
        "At size 84 no run with weight_decay 0 gave a loss, so there is nothing to compare."
    )


def test_regimes_follow_from_the_passes_and_the_gap() -> None:
    once, often = (ScalingCrossover(sizes=SIZES, bootstrap=10, passes=p) for p in ("single_pass", "multi_epoch"))
    for study, word in ((once, "scaling-limited"), (often, "between")):
        table = study.report(rows(study, SMALL, LARGE)).figures["rules"]["rows"]
        assert any(f"36 of 36 runs are {word}" in row[1] and row[2] == "yes" for row in table)
    overfitted = rows(often, SMALL, LARGE)
    for row in overfitted:
        row.series["train/loss"] = (list(range(20)), [0.01] * 20)
    found = often.report(overfitted)
    assert "generalization-limited" in str(found.figures["rules"]) and found.scalars["train-val gap"] > 0.9
