"""What parts refuse, wherever they find out, reaches a person as their sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from engine import registry
from engine.errors import PartError, RecipeError
from engine.kit.cost import cost_of
from engine.parts import Offer
from engine.recipe import Recipe
from engine.training.assemble import filled, refusing
from engine.training.loop import refusals, train
from engine.training.preview import preview
from engine.training.recorder import Memory

CATALOG = registry.catalog()


def recipe(task: dict[str, Any], **more: Any) -> Recipe:
    return Recipe.of({"task": task, "model": {"use": "mlp"}, "budget": {"steps": 2}, **more})


def problems(made: Recipe) -> list[tuple[str, str]]:
    return [(problem["path"], problem["message"]) for problem in preview(made.text())["problems"]]


def test_a_constructor_that_refuses_its_settings_is_a_problem_of_the_preview() -> None:
    made = recipe({"use": "digits-two-targets"}, techniques=[{"use": "config-gradients", "weights": [1.0, -1.0]}])
    ((path, message),) = problems(made)
    assert path == "techniques.0" and "must all be greater than 0" in message


def test_what_a_part_finds_out_in_a_step_is_its_sentence() -> None:
    made = recipe({"use": "digits-two-targets"}, techniques=[{"use": "config-gradients", "weights": [1.0]}])
    with pytest.raises(PartError, match="weights has 1 numbers, and there are 2 terms"):
        train(filled(made, CATALOG), Memory())


def test_a_library_s_error_keeps_its_traceback() -> None:
    with pytest.raises(ValueError) as caught, refusals():
        torch.distributions.Normal(torch.tensor([0.0]), torch.tensor([-1.0]), validate_args=True)
    assert not isinstance(caught.value, PartError)


def test_a_task_whose_settings_leave_nothing_is_refused() -> None:
    ((path, message),) = problems(recipe({"use": "karate-club", "labelled": 0.001}))
    assert path == "task" and "no sample to train on" in message


def test_what_does_not_fit_into_memory_is_refused() -> None:
    with pytest.raises(RecipeError, match="more memory than there is"), refusing("model", "mlp"):
        torch.zeros(2**45)
    with pytest.raises(RecipeError, match="more memory than there is"), refusing("model", "mlp"):
        torch.zeros(2**40, 2**40)


def test_a_model_inside_another_part_is_asked_for_its_kinds() -> None:
    with pytest.raises(ValueError, match="mlp takes vector or image or nodes, and here it would have to take none"):
        registry.build({"use": "mlp"})(Offer("none", (), "design", 1, answer=(2, 2)))


def test_a_model_that_is_called_in_another_way_has_unknown_operations() -> None:
    assert cost_of(nn.Bilinear(2, 2, 2), torch.zeros(1, 2)).flops is None


def test_an_optimizer_that_asks_for_the_loss_again_needs_a_model_to_ask() -> None:
    made = Recipe.of(CATALOG.example("rarts"))
    made.set("procedure.architecture_optimizer", {"use": "lbfgs"})
    with pytest.raises(PartError, match="asks for the loss again at other weights"):
        train(filled(made, CATALOG), Memory())


@pytest.mark.parametrize(("task", "model"), [("transport-equation", "mlp"), ("python-text", "recurrent")])
def test_what_cannot_be_trained_without_derivatives_is_refused(task: str, model: str) -> None:
    made = Recipe.of(CATALOG.example(task))
    made.set("procedure", {"use": "deepzero"})
    made.set("model", {"use": model})
    assert [path for path, _ in problems(made)] == ["procedure"]


def test_nodes_without_a_label_are_refused_or_passed_over() -> None:
    made = Recipe.of(CATALOG.example("block-graph"))
    made.set("loss", {"use": "encouraging-loss"})
    assert train(filled(made, CATALOG), Memory()).state == "done"
    made.remove("loss")
    made.set("procedure", {"use": "noprop"})
    made.set("model", {"use": "mlp"})
    assert [path for path, _ in problems(made)] == ["procedure"]


def test_a_transformer_s_residual_can_be_differentiated_again() -> None:
    made = Recipe.of(CATALOG.example("transport-equation"))
    made.set("model", {"use": "transformer"})
    made.set("budget", {"steps": 2})
    assert train(filled(made, CATALOG), Memory()).state == "done"
