"""Environments: what they show and end by, saved in the middle of episodes, and what rewards add up to."""

from __future__ import annotations

import io
import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from engine.kit.environments import Actions, Gymnasium, has_environment, n_step_returns, play
from engine.training.state import pack, unpack

CPU = torch.device("cpu")
SMALL = (
    *("CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1", "Acrobot-v1"),
    *("Blackjack-v1", "FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "Taxi-v4"),
)


def random_actions(environment: Gymnasium, steps: int, seed: int = 0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    actions = environment.actions
    if actions.discrete:
        return list(torch.randint(actions.size, (steps, environment.count), generator=rng))
    return list(2 * torch.rand(steps, environment.count, actions.size, generator=rng) - 1)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """As a checkpoint would hold it."""
    file = io.BytesIO()
    torch.save(pack(state, "here"), file)
    file.seek(0)
    found: dict[str, Any] = unpack(torch.load(file, weights_only=True), CPU)
    return found


def told(environment: Gymnasium, actions: list[Tensor]) -> list[Any]:
    return [(m.reward, m.terminated, m.truncated, m.final, m.ended) for m in map(environment.step, actions)]


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


@pytest.mark.parametrize("id", SMALL)
def test_what_follows_a_save_in_mid_episode_is_the_same_bit_for_bit(id: str) -> None:
    first = Gymnasium(id, 2, limit=37)
    first.reset(3)
    actions = random_actions(first, 150)
    told(first, actions[:50])
    saved = through_a_file(first.state())
    second = Gymnasium(id, 2, limit=37)
    second.reset(99)
    told(second, actions[:20])  # it has a past of its own
    second.load(saved)
    assert torch.equal(second.observation, first.observation)
    after, again = told(first, actions[50:]), told(second, actions[50:])
    assert equal(after, again)
    assert sum(len(moment[4]) for moment in after) > 2, "new episodes have begun since"


def test_it_does_what_gymnasium_does() -> None:
    ours = Gymnasium("CartPole-v1", 2, limit=30)
    seeds = np.random.SeedSequence(5).generate_state(2).tolist()
    theirs = [gymnasium.make("CartPole-v1", max_episode_steps=30) for _ in seeds]
    seen = [world.reset(seed=seed)[0] for world, seed in zip(theirs, seeds, strict=True)]
    assert torch.equal(ours.reset(5), torch.tensor(np.stack(seen)))
    returns, ended = [0.0, 0.0], []
    for actions in random_actions(ours, 80):
        moment = ours.step(actions)
        for i, world in enumerate(theirs):
            observation, reward, terminated, truncated, _ = world.step(int(actions[i]))
            returns[i] += float(reward)
            assert torch.equal(moment.final[i], torch.tensor(observation))
            assert (moment.reward[i], moment.terminated[i]) == (reward, terminated)
            assert bool(moment.truncated[i]) == (truncated and not terminated)
            if terminated or truncated:
                ended.append((returns[i], int(returns[i])))  # a reward of 1 a step
                returns[i] = 0.0
                observation, _ = world.reset()
                assert (returns[i], ours.lengths[i]) in moment.ended or moment.ended
            assert torch.equal(ours.observation[i], torch.tensor(observation))
        assert ours.returns == returns
    assert len(ended) > 3


def test_a_limit_of_time_cuts_off_and_a_fall_is_an_end() -> None:
    pole = Gymnasium("CartPole-v1", 1, limit=5)
    pole.reset(0)
    short = [pole.step(torch.tensor([i % 2])) for i in range(5)]
    assert [bool(m.truncated) for m in short] == [False] * 4 + [True]
    assert not any(bool(m.terminated) for m in short)
    assert not torch.equal(short[-1].final, pole.observation), "it shows the new episode, and tells the old one's end"
    pole = Gymnasium("CartPole-v1", 1)
    pole.reset(0)
    falling = [pole.step(torch.tensor([1])) for _ in range(15)]
    ends = [m for m in falling if m.ended]
    assert ends and all(bool(m.terminated) and not bool(m.truncated) for m in ends)
    assert abs(float(ends[0].final[0, 2])) > math.radians(12)


def test_what_is_one_of_several_is_seen_as_a_one_at_its_place() -> None:
    lake = Gymnasium("FrozenLake-v1", 3, settings={"is_slippery": False})
    assert lake.shape == (16,) and torch.equal(lake.reset(0), torch.eye(16)[[0, 0, 0]])
    lake.step(torch.tensor([2, 1, 2]))  # right, down, right
    assert lake.observation.argmax(1).tolist() == [1, 4, 1]


def test_an_unknown_name_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(ValueError, match=r"no environment 'Cartpole-v1'.*Did you mean CartPole-v1"):
        Gymnasium("Cartpole-v1")
    with pytest.raises(ValueError, match="Small ones are"):
        Gymnasium("zzzzzz")


class Keeping(gymnasium.Env):  # type: ignore[misc, type-arg]
    """Keeps what cannot be saved."""

    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self) -> None:
        self.engine = object()

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}


def test_what_cannot_be_saved_is_said_at_once() -> None:
    gymnasium.register("Keeping-v0", entry_point=Keeping)
    try:
        with pytest.raises(ValueError, match=r"keeps a object in Keeping\.engine, which cannot be saved"):
            Gymnasium("Keeping-v0")
    finally:
        del gymnasium.registry["Keeping-v0"]


def test_play_tells_one_episode_of_each_copy_and_repeats_itself() -> None:
    pole = Gymnasium("CartPole-v1", 3)
    push = lambda seen: (seen[:, 2] > 0).long()  # noqa: E731 - towards where it falls
    one, two = play(pole, push, 7), play(pole, push, 7)
    lengths = [len(steps) for steps in one]
    assert lengths == [len(steps) for steps in two] and len(set(lengths)) > 1 and min(lengths) > 15
    assert all(torch.equal(a["observation"], b["observation"]) for a, b in zip(one[0], two[0], strict=True))
    assert all(step["reward"] == 1.0 for steps in one for step in steps)
    assert lengths != [len(steps) for steps in play(pole, push, 8)]


def test_only_a_task_with_an_environment_has_one() -> None:
    class Task:
        actions = Actions(2)

        def environment(self, count: int) -> Gymnasium:
            return Gymnasium("CartPole-v1", count)

    assert has_environment(Task()) and not has_environment(object())


# -- actions -----------------------------------------------------------------------------------------------------------


def test_one_of_several_is_a_categorical() -> None:
    given = torch.randn(4, 3, 5, dtype=torch.float64)
    theirs = torch.distributions.Categorical(logits=given)
    chosen = torch.randint(5, (4, 3))
    actions = Actions(5)
    torch.testing.assert_close(actions.log_prob(given, chosen), theirs.log_prob(chosen))
    torch.testing.assert_close(actions.entropy(given), theirs.entropy())
    assert torch.equal(actions.best(given), given.argmax(-1)) and actions.numbers == 5
    many = actions.sample(given[:1, :1].expand(4000, 3, -1), torch.Generator().manual_seed(0)).flatten()
    share = many.bincount(minlength=5) / len(many)
    assert (share - theirs.probs[0, 0]).abs().max() < 4 * (0.25 / len(many)) ** 0.5


def test_numbers_within_limits_are_normal() -> None:
    actions = Actions(2, (-1.0, 0.0), (1.0, 3.0))
    given = torch.randn(6, 4, dtype=torch.float64)
    deviation = (torch.nn.functional.softplus(given[:, 2:]) + 1e-6).sqrt()
    theirs = torch.distributions.Independent(torch.distributions.Normal(given[:, :2], deviation), 1)
    chosen = torch.randn(6, 2, dtype=torch.float64)
    torch.testing.assert_close(actions.log_prob(given, chosen), theirs.log_prob(chosen))
    torch.testing.assert_close(actions.entropy(given), theirs.entropy())
    assert actions.numbers == 4
    assert torch.equal(actions.best(torch.tensor([[5.0, -2.0, 0.0, 0.0]])), torch.tensor([[1.0, 0.0]]))
    drawn = actions.sample(given[:1].expand(20000, -1), torch.Generator().manual_seed(0))
    error = (drawn.mean(0) - given[0, :2]) / (deviation[0] / 20000**0.5)
    assert error.abs().max() < 4


# -- returns -----------------------------------------------------------------------------------------------------------


def test_returns_are_the_explicit_sums() -> None:
    """Steps: 0, 1 (over), 2 (cut off), 3, 4; gamma = 1/2."""
    rewards = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    over = torch.tensor([False, True, False, False, False])
    cut = torch.tensor([False, False, True, False, False])
    after = torch.tensor([100.0, 200.0, 300.0, 400.0, 500.0])
    bootstrapped = 16 + 500 / 2
    expected = [1 + 2 / 2, 2.0, 4 + 300 / 2, 8 + bootstrapped / 2, bootstrapped]
    assert n_step_returns(rewards, over, cut, after, 0.5).tolist() == expected
    over[4] = True
    assert n_step_returns(rewards, over, cut, after, 0.5).tolist() == [2.0, 2.0, 154.0, 16.0, 16.0]


def test_one_step_looks_one_step_ahead_and_windows_are_in_between() -> None:
    rng = torch.Generator().manual_seed(0)
    rewards, after = torch.randn(7, 3, generator=rng), torch.randn(7, 3, generator=rng)
    over, cut = torch.rand(7, 3, generator=rng) < 0.2, torch.rand(7, 3, generator=rng) < 0.2
    one = n_step_returns(rewards, over, cut, after, 0.9, steps=1)
    torch.testing.assert_close(one, rewards + 0.9 * torch.where(over, 0.0, after))

    def slow(t: int, w: int, left: int) -> float:
        """The return of step t of worker w, over at most so many rewards."""
        if over[t, w]:
            return float(rewards[t, w])
        if cut[t, w] or left == 1 or t == 6:
            return float(rewards[t, w] + 0.9 * after[t, w])
        return float(rewards[t, w]) + 0.9 * slow(t + 1, w, left - 1)

    for steps in (0, 1, 3, 7):
        expected = torch.tensor([[slow(t, w, steps or 99) for w in range(3)] for t in range(7)])
        torch.testing.assert_close(n_step_returns(rewards, over, cut, after, 0.9, steps), expected)
