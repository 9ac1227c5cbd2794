"""Workers that act in environments of their own and improve one policy together."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from engine.fields import Count, Fraction, NonNegative, Whole
from engine.kit.environments import Actions, Environment, has_environment, n_step_returns
from engine.parts import Batch, Moves, Offer, Procedure, Task, Terms, procedure

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

ID = "a3c"
RECENT = 20  # episodes whose mean return stands for how good the policy acts in training
EPSILONS = (0.1, 0.01, 0.5)  # what a worker's share of random actions falls to, and how likely each of them is
CHANCES = (0.4, 0.3, 0.3)


@dataclass
class Rollout:
    """Some steps [T, W] of some workers, with what came of each; `following` are the actions chosen next, if any."""

    seen: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    final: Tensor
    following: Tensor | None
    ended: list[tuple[float, int]]
    entropy: Tensor | None = None  # of the policy, on average


@dataclass
class Flight:
    """What a worker brings back from a rollout of its own: the terms, and their gradient at the weights it had."""

    played: Rollout
    terms: Terms
    gradients: list[Tensor | None]


@procedure(
    id=ID,
    name="A3C and its siblings",
    paper="Asynchronous Methods for Deep Reinforcement Learning",
    arxiv="1602.01783",
    nondeterministic="threads",
    recommends={
        "task": {"use": "gymnasium"},
        "model": {"use": "mlp", "hidden": [64], "activation": "tanh"},
        "optimizer": {"use": "shared-rmsprop", "lr": 3e-3},
        "schedule": {"use": "polynomial"},
        "techniques": [{"use": "gradient-clipping", "limit": 40.0}],
        "budget": {"count": "environment-steps", "amount": 120000},
    },
    example={
        "task": {"use": "gymnasium", "episodes": 2, "limit": 20},
        "model": {"hidden": [8]},
        "optimizer": {"use": "shared-rmsprop"},
    },
)
class A3C(Procedure):
    """Lets several workers act, each in a world of its own, a few steps at a time. What a few steps have brought, and
    what is expected afterwards, says which actions were better than thought: these become likelier. All workers
    improve one policy, and what they see differs enough that no memory of old experience is needed.

        R_t = r_t + gamma R_(t+1),   R_end = 0 where the world says it is over, else V(last seen), held fixed
        loss = sum over t_max steps of
               -log pi(a|s) (R - V(s), held fixed)  - entropy H(pi(.|s))  + value_coefficient (R - V(s))^2
        Q-learning:  loss = sum of (R - Q(s, a))^2,  R_end = max_a Q_target(last seen)

    Helps: learning to act without a store of experience; long rewards reach back several steps at once.
    Hurts: frames are used once: where acting is dear, methods that replay them need fewer. It depends on the rate.
    Cost: a forward pass an action, and one more pass, forward and backward, a rollout. Actions need the host at each
        step, on a GPU too. Workers in step share their passes: eight acted six times as fast as one. Threads share
        Python's lock: two acted a tenth faster than one; they are there for what stale weights do to learning.
    Choices: by default the workers act in step, and one update takes the mean of their gradients, each summed over its
        rollout; so every run repeats itself. Asynchronous workers are threads: each takes a copy of the weights, and
        its gradient is applied as it arrives, one after the other, to weights that others have moved since; with one
        worker this is the same as acting in step. A rollout goes on into the next episode, and its returns do not. An
        episode that a limit of time cut off counts what was expected; one that is over counts nothing more. Clip the
        gradient's norm at 40 and let the rate fall to 0 by a technique and a schedule. Policy and value share the
        model's body. Sarsa after a cut-off episode expects the best action.

    Args:
        algorithm: Actor and critic (A3C), or one of the siblings that learn the values of actions: Q-learning over
            several steps or one, or Sarsa, which expects the action that is taken next.
        workers: Worlds that are acted in.
        t_max: Steps of a rollout.
        gamma: What a reward is worth one step later.
        entropy: How much an undecided policy is worth: keeps it trying.
        value_coefficient: Weight of the critic's squared error.
        clip_rewards: Cut rewards to between -1 and 1, as for Atari games.
        asynchronous: Let the workers act in threads, each at weights of its own; runs then do not repeat themselves.
        target_every: Actions after which the values that siblings learn towards are brought up to date.
        explore: Actions over which a sibling's share of random ones falls from 1 to what its worker has drawn: 0.1,
            0.01 or 0.5.
    """

    inputs = ("vector",)
    outputs = ("actions",)
    brings_objective = True
    offers = ("gradients", "terms")
    divisible = False

    def __init__(
        self,
        algorithm: Literal["actor-critic", "n-step-q", "one-step-q", "one-step-sarsa"] = "actor-critic",
        workers: Count = 2,
        t_max: Count = 5,
        gamma: Fraction = 0.99,
        entropy: NonNegative = 0.01,
        value_coefficient: NonNegative = 0.5,
        clip_rewards: bool = False,
        asynchronous: bool = False,
        target_every: Count = 1000,
        explore: Whole = 10000,
    ):
        self.algorithm, self.workers, self.t_max, self.gamma = algorithm, workers, t_max, gamma
        self.entropy, self.value_coefficient, self.clip_rewards = entropy, value_coefficient, clip_rewards
        self.asynchronous, self.target_every, self.explore = asynchronous, target_every, explore
        self.environments: list[Environment] = []
        self.following: list[Tensor | None] = []  # Sarsa's next actions
        self.target: nn.Module | None = None
        self.epsilons: Tensor | None = None
        self.recent: list[float] = []
        self._critic = algorithm == "actor-critic"
        self._models: list[nn.Module] = []
        self._pool: ThreadPoolExecutor | None = None
        self._flying: dict[Future[Flight], int] = {}

    # -- what it needs ---------------------------------------------------------------------------------------------

    def offer(self, task: Task) -> Offer:
        """The model gives the policy's numbers and the expected return, or a value for each action."""
        if not has_environment(task):
            return task.offer
        actions: Actions = task.actions  # type: ignore[attr-defined]
        return replace(task.offer, output="values", size=actions.numbers + 1 if self._critic else actions.size)

    def pace(self) -> dict[str, float]:
        return {"environment-steps": float(self.t_max * (1 if self.asynchronous else self.workers))}

    def setup(self, run: Run) -> None:
        task: Any = run.task
        sizes = [1] * self.workers if self.asynchronous else [self.workers]
        seeds = torch.randint(2**31, (len(sizes),), generator=run.rng(f"{ID}/worlds"), device=run.device).tolist()
        self._actions: Actions = task.actions
        self.environments = [task.environment(size) for size in sizes]
        for environment, seed in zip(self.environments, seeds, strict=True):
            environment.reset(seed)
        self.following = [None] * len(sizes)
        if not self._critic:
            self.target = _copy(run.model)
            chances = torch.tensor(CHANCES, device=run.device)
            drawn = torch.multinomial(chances, self.workers, replacement=True, generator=run.rng(f"{ID}/epsilon"))
            self.epsilons = torch.tensor(EPSILONS, device=run.device)[drawn]
        if self.asynchronous:
            self._models = [copy.deepcopy(run.model) for _ in sizes]
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix=ID)

    def on_surgery(self, run: Run, moves: Moves) -> None:
        if self.target is not None:
            self.target = _copy(run.model)
        self._models = [copy.deepcopy(run.model) for _ in self._models]

    # -- the step --------------------------------------------------------------------------------------------------

    def step(self, run: Run, batch: Batch) -> None:
        if self.asynchronous:
            flight = self._land(run)
            run.count("gradient-passes")
            run.update("main", flight.terms, flight.gradients)
            self._told(run, flight.played)
            return
        played = self.play(run, 0, run.model)
        run.update("main", run.terms(None, batch, self.terms(run, played, run.model)))
        self._told(run, played)

    def play(self, run: Run, k: int, model: nn.Module) -> Rollout:
        """A rollout in the k-th environment, by the policy of a model."""
        environment, rng, at = self.environments[k], run.rng(f"{ID}/{k}"), run.device
        sarsa = self.algorithm == "one-step-sarsa"
        seen, actions, moments = [], [], []
        following = self.following[k]
        for _ in range(self.t_max):
            now = environment.observation.to(at)
            action = following if following is not None else self._choose(run, k, model, now, rng)
            seen.append(now)
            actions.append(action)
            moments.append(environment.step(action))
            following = self._choose(run, k, model, environment.observation.to(at), rng) if sarsa else None
        self.following[k] = following
        rewards = torch.stack([moment.reward for moment in moments]).to(at)
        return Rollout(
            torch.stack(seen),
            torch.stack(actions),
            rewards.clamp(-1, 1) if self.clip_rewards else rewards,
            torch.stack([moment.terminated for moment in moments]).to(at),
            torch.stack([moment.truncated for moment in moments]).to(at),
            torch.stack([moment.final for moment in moments]).to(at),
            following,
            [ended for moment in moments for ended in moment.ended],
        )

    @torch.no_grad()
    def _choose(self, run: Run, k: int, model: nn.Module, seen: Tensor, rng: torch.Generator) -> Tensor:
        """What to do next: as the policy says, or, of values, the best with some random actions among them."""
        given = self._ask(run, model, seen)
        if self._critic:
            return self._actions.sample(given[..., :-1], rng)
        assert self.epsilons is not None
        final = self.epsilons[k : k + 1] if self.asynchronous else self.epsilons
        done = min(run.counts.get("environment-steps", 0) / self.explore, 1.0) if self.explore else 1.0
        size = (len(seen),)
        random = torch.randint(self._actions.size, size, generator=rng, device=seen.device)
        chance = torch.rand(size, generator=rng, device=seen.device)
        return torch.where(chance < 1 + (final - 1) * done, random, given.argmax(-1))

    @staticmethod
    def _ask(run: Run, model: nn.Module, seen: Tensor) -> Tensor:
        """The model's numbers for what is seen [..., features], in full precision."""
        rows = seen.reshape(-1, seen.shape[-1])
        batch = Batch({"observation": rows}, None, torch.arange(len(rows), device=rows.device))
        answer: Tensor = run.forward(batch, None if model is run.model else model)
        return answer.float().view(*seen.shape[:-1], -1)

    def terms(self, run: Run, played: Rollout, model: nn.Module) -> Terms:
        """The terms of a rollout, one number a worker [W], summed over its steps."""
        with torch.no_grad():
            after = self._after(run, played, model)
            steps = 1 if self.algorithm.startswith("one-step") else 0
            returns = n_step_returns(played.rewards, played.terminated, played.truncated, after, self.gamma, steps)
        given = self._ask(run, model, played.seen)
        if not self._critic:
            value = given.gather(-1, played.actions.unsqueeze(-1)).squeeze(-1)
            return {"value": (returns - value).square().sum(0)}
        policy, value = given[..., :-1], given[..., -1]
        better = (returns - value).detach()
        entropy = self._actions.entropy(policy)
        played.entropy = entropy.detach().mean()
        return {
            "policy": -(self._actions.log_prob(policy, played.actions) * better).sum(0),
            "value": self.value_coefficient * (returns - value).square().sum(0),
            "entropy": -self.entropy * entropy.sum(0),
        }

    def _after(self, run: Run, played: Rollout, model: nn.Module) -> Tensor:
        """What is expected after each step [T, W]."""
        if self._critic:
            return self._ask(run, model, played.final)[..., -1]
        assert self.target is not None
        values = self._ask(run, self.target, played.final)
        best = values.amax(-1)
        if played.following is None:
            return best
        chosen = torch.cat([played.actions[1:], played.following.unsqueeze(0)])
        return torch.where(played.truncated, best, values.gather(-1, chosen.unsqueeze(-1)).squeeze(-1))

    def _told(self, run: Run, played: Rollout) -> None:
        """Counts, logs the episodes that have ended, and brings the target up to date."""
        before = run.counts.get("environment-steps", 0) // self.target_every
        run.count("environment-steps", played.rewards.numel())
        if played.entropy is not None:
            run.log("policy/entropy", played.entropy)
        if played.ended:
            returns = [brought for brought, _ in played.ended]
            run.log("episode/return", sum(returns) / len(returns))
            run.log("episode/length", sum(length for _, length in played.ended) / len(returns))
            self.recent = (self.recent + returns)[-RECENT:]
        if self.target is not None and before != run.counts["environment-steps"] // self.target_every:
            self.target.load_state_dict(run.model.state_dict())

    # -- workers in threads ----------------------------------------------------------------------------------------

    def _land(self, run: Run) -> Flight:
        """Sends every worker that waits on a rollout at the weights of now, and takes the first one that is back."""
        assert self._pool is not None
        flying = set(self._flying.values())
        for k, model in enumerate(self._models):
            if k not in flying:
                with torch.no_grad():
                    _take(model, run.model)
                self._flying[self._pool.submit(self._fly, run, k)] = k
        done, _ = wait(self._flying, return_when=FIRST_COMPLETED)
        first = next(future for future in self._flying if future in done)
        del self._flying[first]
        return first.result()

    def _fly(self, run: Run, k: int) -> Flight:
        model = self._models[k]
        played = self.play(run, k, model)
        terms = self.terms(run, played, model)
        parameters = [p for p in model.parameters() if p.requires_grad]
        found = torch.autograd.grad(run.total(terms, _NO_WEIGHTS), parameters, allow_unused=True)
        return Flight(played, {name: term.detach() for name, term in terms.items()}, list(found))

    # -- afterwards ------------------------------------------------------------------------------------------------

    def predict(self, run: Run, batch: Batch) -> Tensor:
        """How much each action is preferred, or the numbers to act with."""
        answer: Tensor = batch.call(run.model)
        return answer[..., : self._actions.size]

    def result(self, run: Run) -> dict[str, float]:
        """The mean return of the last episodes of training."""
        return {"recent-return": sum(self.recent) / len(self.recent)} if self.recent else {}

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if not has_environment(task):
            return "It acts in an environment, which this task does not have."
        actions: Actions = task.actions  # type: ignore[attr-defined]
        if settings.get("algorithm", "actor-critic") != "actor-critic" and not actions.discrete:
            return "It learns a value for each action, and here actions are numbers; choose the actor-critic."
        return None


_NO_WEIGHTS = Batch({}, None, torch.zeros(0, dtype=torch.long))


def _copy(model: nn.Module) -> nn.Module:
    """A copy that answers and does not learn."""
    return copy.deepcopy(model).requires_grad_(False)


def _take(model: nn.Module, source: nn.Module) -> None:
    """Gives a model the weights and statistics of another one like it."""
    for own, theirs in zip(model.state_dict().values(), source.state_dict().values(), strict=True):
        own.copy_(theirs)
