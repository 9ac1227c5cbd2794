"""The preview, against what is counted by hand and what a run of the same recipe does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine import registry
from engine.recipe import Recipe, merge
from engine.training.assemble import filled
from engine.training.loop import train
from engine.training.preview import fits, preview
from engine.training.recorder import Memory
from engine.workspace import RESOURCES

BASE: dict[str, Any] = {
    "task": {"use": "digits"},
    "model": {"use": "mlp", "hidden": [20, 10]},
    "optimizer": {"use": "sgd", "lr": 0.25, "momentum": 0.9},
    "training": {"batch_size": 50},
    "budget": {"epochs": 2},
}


def of(**patch: Any) -> dict[str, Any]:
    return preview(Recipe.of(merge(BASE, patch)).text())


@pytest.mark.parametrize("path", sorted((RESOURCES / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_the_starter_recipes_are_in_order(path: Path) -> None:
    found = preview(path.read_text(encoding="utf-8"))
    assert found["problems"] == []
    counted = "amount" in Recipe.load(path).get("budget", {})  # where steps use up unequally much, their number is open
    assert found["steps"] is None if counted and not found["steps"] else found["steps"] > 0
    assert found["data"]["figure"] or found["data"]["stream"] == "none", "what has samples shows some"
    assert found["model"]["parameters"] >= 0
    json.dumps(found)


def test_the_sizes_of_a_model() -> None:
    found = of()
    model = found["model"]
    counts = [(64 + 1) * 20, (20 + 1) * 10, (10 + 1) * 10]
    assert model["parameters"] == model["trainable"] == sum(counts)
    assert [layer["parameters"] for layer in model["layers"] if layer["parameters"]] == counts
    assert [layer["output"] for layer in model["layers"] if layer["parameters"]] == [[20], [10], [10]]
    assert model["flops"] == 2 * (64 * 20 + 20 * 10 + 10 * 10), "a multiply and an add for each weight"
    assert model["memory_bytes"] >= 4 * 4 * sum(counts)
    layers = {layer["path"] for layer in model["layers"]}
    assert set(found["sites"]["linear"]) <= layers and len(found["sites"]["linear"]) == 3


def test_a_preview_leaves_no_trace() -> None:
    import torch

    before = torch.get_rng_state()
    assert of() == of()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("schedule", [e.id for e in registry.catalog().of_kind("schedule")])
def test_the_curve_is_what_the_run_does(schedule: str) -> None:
    found = of(schedule={"use": schedule})
    sink = Memory()
    recipe = Recipe.of(merge(BASE, {"schedule": {"use": schedule}}))
    train(filled(recipe, registry.catalog()), sink)
    steps, rates = sink.points["lr"]
    assert found["steps"] == len(steps) == 2 * found["steps_per_epoch"]
    curve = found["schedule"]
    assert curve["steps"][0] == 0 and curve["steps"][-1] == steps[-1]
    assert curve["series"]["lr"] == pytest.approx([rates[step] for step in curve["steps"]], rel=1e-12)


def test_values_over_time_have_their_curve() -> None:
    over_time = {"value": 2.0, "schedule": {"use": "cosine"}}
    found = of(techniques=[{"use": "gradient-noise", "eta": over_time}])
    curve = found["schedule"]["series"]["gradient-noise.eta"]
    assert curve[0] == pytest.approx(2.0) and curve == sorted(curve, reverse=True) and curve[-1] < 0.01


def test_the_order_of_a_step_does_not_follow_the_recipes() -> None:
    names = ["switch-ema", "gradient-noise", "gradient-clipping", "elr", "pgd-adversarial-training", "replace"]
    techniques: list[dict[str, Any]] = [{"use": name} for name in names]
    techniques[-1]["layer"] = {"use": "weight-norm"}
    acting = [(row["position"], row["parts"]) for row in of(techniques=techniques)["order"]]
    assert acting == [
        ("model", ["replace"]),
        ("batch", ["pgd-adversarial-training"]),
        ("terms", ["elr"]),
        ("backward", []),
        ("unscale", []),
        ("clip", ["gradient-clipping"]),
        ("noise", ["gradient-noise"]),
        ("step", []),
        ("average", ["switch-ema"]),
        ("epoch", ["switch-ema"]),
    ]


def test_what_does_not_fit_a_section_is_told_with_the_reason() -> None:
    text = Recipe.of(merge(BASE, {"task": {"use": "python-text"}, "model": {"use": "transformer"}})).text()
    models = fits(text, "model")
    assert "tokens" in models["mlp"] and "transformer" not in models
    techniques = fits(text, "techniques")
    assert "tokens" in techniques["pgd-adversarial-training"]
    assert not {"gradient-clipping", "replace"} & set(techniques), "what needs a setting first is not refused for it"
    assert fits(text, "task") == {} == fits(text, "schedule")


def test_what_fits_is_judged_by_the_problems_that_it_adds() -> None:
    narrow, wide = (Recipe.of(merge(BASE, {"model": {"hidden": [width, width]}})) for width in (20, 16))
    assert "multiple of 8" in fits(narrow.text(), "techniques")["progressive-gradient-flow-nm"]
    assert "progressive-gradient-flow-nm" not in fits(wide.text(), "techniques")
    broken = Recipe.of(merge(BASE, {"task": {"use": "python-text"}}))
    assert fits(broken.text(), "techniques") == {}, "nothing can be judged before the model fits"


def test_an_open_budget_has_no_curve() -> None:
    found = of(budget={"epochs": 0, "seconds": 5}, schedule={"use": "constant"})
    assert found["problems"] == [] and found["steps"] is None and found["schedule"] == {"steps": [], "series": {}}


def test_a_space_that_cannot_be_searched_is_a_problem() -> None:
    assert of(search={"use": "grid", "space": {"optimizer.lr": [0.1, 0.2]}})["problems"] == []
    (problem,) = of(search={"use": "grid", "space": {"optimizer.lr": []}})["problems"]
    assert problem["path"] == "search" and problem["message"].startswith("'optimizer.lr' has an empty list")


@pytest.mark.parametrize(
    ("text", "path", "sentence"),
    [
        ("[task", "", "not valid TOML"),
        ('[task]\nuse = "digit"', "task.use", "Did you mean 'digits'?"),
        ('[task]\nuse = "two-moons"\n[model]\nuse = "cnn"', "model", ""),
    ],
)
def test_problems_come_first(text: str, path: str, sentence: str) -> None:
    found = preview(text)
    assert found["problems"][0]["path"] == path and sentence in found["problems"][0]["message"]
