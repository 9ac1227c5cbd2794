"""Environments of gymnasium: act, see what comes of it, and collect rewards."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch

from engine.fields import Count, Whole
from engine.figures import bars, curve, line
from engine.kit.environments import Gymnasium, play
from engine.parts import Answering, Batch, Figure, Offer, Task, task

SHOWN = 8  # numbers of an observation that are drawn
EPISODE_SEED = 1_000_003  # of the episodes that are judged: never those of training, whose seeds are drawn


@task(
    id="gymnasium",
    name="Gymnasium environment",
    packages=("gymnasium",),
    example={
        "procedure": {"use": "a3c", "t_max": 3},
        "task": {"episodes": 2, "limit": 20},
        "model": {"hidden": [8]},
        "optimizer": {"use": "shared-rmsprop"},
    },
)
class GymnasiumTask(Task):
    """An environment that is learned by acting in it: a pole to balance, a car to swing out of a valley, a frozen lake
    to cross. It shows what is seen as a vector of numbers and pays a reward for each action.

        return of an episode = the sum of its rewards until it ends or is cut off

    Helps: learning from rewards; the classics of control and of tables run in a moment.
    Hurts: environments whose state cannot be saved (Box2D, MuJoCo) are refused, since a run could not be resumed.
    Cost: one action is some 10 to 50 millionths of a second here, whatever the device: environments run on the CPU.

    Args:
        environment_id: The environment by its name in gymnasium, such as CartPole-v1, Acrobot-v1, Pendulum-v1,
            FrozenLake-v1, CliffWalking-v1 or Taxi-v4.
        episodes: Episodes that each measurement plays, the same ones every time, taking the best actions.
        limit: Steps after which an episode is cut off; 0 takes the environment's own limit, or 1000 where it has none.

    Raises:
        ValueError: For a name that gymnasium does not know, and for environments that cannot be made or saved here.
    """

    metric = ("return", "max")
    has_objective = False
    stream = "none"
    judges = ("val", "test")

    def __init__(self, environment_id: str = "CartPole-v1", episodes: Count = 10, limit: Whole = 0):
        self.environment_id, self.episodes, self.limit = environment_id, episodes, limit
        one = self.environment(1)
        self.actions = one.actions
        self.offer = Offer("vector", one.shape, "actions", one.actions.size, about={"actions": one.actions})

    def load(self) -> None:
        """There is nothing to load: whoever trains makes its own environments."""

    def environment(self, count: int) -> Gymnasium:
        """Copies of the environment, to act in."""
        return Gymnasium(self.environment_id, count, self.limit)

    def judge(self, split: str, answer: Answering, rng: torch.Generator) -> dict[str, float]:
        """The mean return and length of episodes with the best actions; test has other ones than validation."""
        played = self._play(answer, rng.device, self.episodes, EPISODE_SEED + (split == "test"))
        returns = [sum(step["reward"] for step in steps) for steps in played]
        return {
            "return": sum(returns) / len(returns),
            "worst": min(returns),
            "length": sum(map(len, played)) / len(played),
        }

    def _play(self, answer: Answering, device: torch.device, count: int, seed: int) -> list[list[dict[str, Any]]]:
        def choose(seen: torch.Tensor) -> torch.Tensor:
            index = torch.arange(len(seen), device=device)
            return self.actions.best(answer(Batch({"observation": seen.to(device)}, None, index, "val")))

        return play(self.environment(count), choose, seed)

    def figures(self, answer: Answering, rng: torch.Generator) -> dict[str, Figure]:
        """The first test episode, step by step, and what all of them brought."""
        played = self._play(answer, rng.device, self.episodes, EPISODE_SEED + 1)
        first = played[0]
        steps = list(range(len(first)))
        seen = torch.stack([step["observation"] for step in first])
        if len(seen[0]) <= SHOWN:
            lines = [line(f"seen {i}", steps, column) for i, column in enumerate(seen.T)]
        else:  # one of many, as a one at its place
            lines = [line("largest entry", steps, seen.argmax(1))]
        if self.actions.discrete:
            lines.append(line("action", steps, [int(step["action"]) for step in first]))
        so_far = list(accumulate(step["reward"] for step in first))
        returns = sorted((sum(step["reward"] for step in each) for each in played), reverse=True)
        numbers = [str(i + 1) for i in range(len(returns))]
        title = f"One episode of {self.environment_id}"
        return {
            "episode": curve(title, *lines, x="step", y="what is seen, and done"),
            "reward": curve("Its rewards, summed up", line("reward so far", steps, so_far), x="step", y="reward"),
            "returns": bars("Test episodes, the best first", line("return", numbers, returns), x="episode", y="return"),
        }
