"""Environments as tasks: offers, episodes that are judged, always the same ones, and what is drawn of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.figures import problems
from engine.methods.tasks.gymnasium import GymnasiumTask
from engine.parts import Batch
from engine.training.preview import preview


def upright(batch: Batch) -> torch.Tensor:
    """Pushes towards where the pole falls: good for a while."""
    lean = batch.x[:, 2] + 0.3 * batch.x[:, 3]
    return torch.stack([-lean, lean], 1)


def unsteady(batch: Batch) -> torch.Tensor:
    """Looks at the lean alone, and overdoes it."""
    return torch.stack([-batch.x[:, 2], batch.x[:, 2]], 1)


def test_it_offers_what_is_seen_and_what_can_be_done() -> None:
    pole = GymnasiumTask()
    assert (pole.offer.input, pole.offer.shape, pole.offer.output, pole.offer.size) == ("vector", (4,), "actions", 2)
    pendulum = GymnasiumTask("Pendulum-v1")
    assert pendulum.offer.size == 1 and pendulum.actions.low == (-2.0,) and pendulum.actions.high == (2.0,)
    assert GymnasiumTask("Taxi-v4").offer.shape == (500,)
    assert pole.columns("train") == {} and pole.stream == "none" and not pole.has_objective


def test_the_same_episodes_are_judged_each_time_and_test_has_others() -> None:
    pole, rng = GymnasiumTask(episodes=5), torch.Generator()
    val, again, test = (pole.judge(split, unsteady, rng) for split in ("val", "val", "test"))
    assert val == again and val != test and val["worst"] < val["return"] == val["length"] < 100
    assert pole.judge("val", upright, rng) == {"return": 500.0, "worst": 500.0, "length": 500.0}
    falling = pole.judge("val", lambda batch: torch.tensor([[1.0, 0.0]]).expand(len(batch), -1), rng)
    assert falling["return"] < 12


def test_a_policy_that_walks_in_a_circle_is_cut_off() -> None:
    cliff = GymnasiumTask("CliffWalking-v1", episodes=1, limit=30)
    up: Any = lambda batch: torch.eye(4)[[0]].expand(len(batch), -1)  # noqa: E731
    assert cliff.judge("val", up, torch.Generator()) == {"return": -30.0, "worst": -30.0, "length": 30.0}


@pytest.mark.parametrize("id", ["CartPole-v1", "FrozenLake-v1", "Pendulum-v1"])
def test_an_episode_is_drawn(id: str) -> None:
    task = GymnasiumTask(id, episodes=3, limit=15)
    answer: Any = lambda batch: torch.ones(len(batch), task.offer.size)  # noqa: E731
    found = task.figures(answer, torch.Generator())
    assert set(found) == {"episode", "reward", "returns"}
    assert all(problems(figure) == [] for figure in found.values())
    if id == "CartPole-v1":
        assert [series["name"] for series in found["episode"]["series"]] == [
            "seen 0",
            "seen 1",
            "seen 2",
            "seen 3",
            "action",
        ]
        reward = found["reward"]["series"][0]["y"]
        assert reward == [float(i + 1) for i in range(len(reward))]
        assert max(found["returns"]["series"][0]["y"]) == found["returns"]["series"][0]["y"][0]


def test_names_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="Did you mean Acrobot-v1"):
        GymnasiumTask("Acrobat-v1")


def test_a_recipe_that_cannot_act_is_told_so_and_one_that_can_is_shown() -> None:
    recipe = '[task]\nuse = "gymnasium"\n[model]\nuse = "mlp"\nhidden = [8]\n[optimizer]\nuse = "sgd"\n'
    shown = preview(recipe)
    assert len(shown["problems"]) == 1 and "a3c" in shown["problems"][0]["message"]
    shown = preview(recipe + '[procedure]\nuse = "a3c"\n[budget]\ncount = "environment-steps"\namount = 500\n')
    assert shown["problems"] == [] and shown["data"]["splits"] == {} and shown["steps"] == 50
    assert shown["model"]["parameters"] == 4 * 8 + 8 + 8 * 3 + 3
