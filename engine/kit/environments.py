"""Environments: several copies of a world that are stepped together, and can be saved in the middle of an episode.

A task that has one offers `environment(count)`; whoever trains on it steps it, and saves it by keeping it in an
attribute: `state` is plain data, `load` takes it in another process, and what follows is the same bit for bit.
"""

from __future__ import annotations

import difflib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LOG_TWO_PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Actions:
    """What can be done: one of `size` things, or, with `low` and `high`, `size` numbers between these.

    What a policy gives for it has `numbers` numbers: a logit for each thing, or a mean for each number, followed by
    the variance of each before softplus. All methods take them along the last axis.
    """

    size: int
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def discrete(self) -> bool:
        return not self.low

    @property
    def numbers(self) -> int:
        """How many numbers a policy gives."""
        return self.size if self.discrete else 2 * self.size

    def sample(self, given: Tensor, rng: torch.Generator) -> Tensor:
        """An action at random, as the policy says."""
        if self.discrete:
            rows = given.reshape(-1, self.size).softmax(-1)
            return torch.multinomial(rows, 1, generator=rng).view(given.shape[:-1])
        mean, variance = self._normal(given)
        noise = torch.randn(mean.shape, generator=rng, device=mean.device, dtype=mean.dtype)
        return mean + variance.sqrt() * noise

    def log_prob(self, given: Tensor, chosen: Tensor) -> Tensor:
        """The log-probability (density) of the chosen actions."""
        if self.discrete:
            return given.log_softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        mean, variance = self._normal(given)
        return -0.5 * ((chosen - mean).square() / variance + variance.log() + LOG_TWO_PI).sum(-1)

    def entropy(self, given: Tensor) -> Tensor:
        """How undecided the policy is, in nats."""
        if self.discrete:
            logs = given.log_softmax(-1)
            return -(logs.exp() * logs).sum(-1)
        return 0.5 * (self._normal(given)[1].log() + LOG_TWO_PI + 1).sum(-1)

    def best(self, answer: Tensor) -> Tensor:
        """The action of an answer: the thing that it prefers, or its numbers within their limits."""
        if self.discrete:
            return answer[..., : self.size].argmax(-1)
        return self.within(answer[..., : self.size])

    def within(self, numbers: Tensor) -> Tensor:
        low, high = (torch.tensor(v, dtype=numbers.dtype, device=numbers.device) for v in (self.low, self.high))
        return torch.minimum(torch.maximum(numbers, low), high)

    def _normal(self, given: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = given.split(self.size, dim=-1)
        return mean, F.softplus(raw) + 1e-6


@dataclass
class Moment:
    """What came of one step, for each copy: the reward, how the episode ended where it did, and what was seen then.

    `terminated`: the episode is over and there is nothing left to gain. `truncated`: a limit of time cut it off; it
    would have gone on, so what it would have brought must be estimated from `final`. `final` is what was seen after
    the step; the environment's `observation` is that of a new episode where one has ended. `ended` lists the return
    and the length of each episode that has.
    """

    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    final: Tensor
    ended: list[tuple[float, int]] = field(default_factory=list)


class Environment:
    """`count` copies of one world, stepped together; a copy whose episode has ended begins a new one by itself.

    A subclass sets `count`, `shape` (of one observation) and `actions`, and implements `_begin`, `_step`, `_save` and
    `_load`. Randomness belongs to the copies: it is part of their state.
    """

    count: int
    shape: tuple[int, ...]
    actions: Actions

    def __init__(self) -> None:
        self.observation = torch.zeros(self.count, *self.shape)
        self.returns = [0.0] * self.count
        self.lengths = [0] * self.count
        self._lock = threading.Lock()  # it may be saved while a worker acts in it

    def reset(self, seed: int) -> Tensor:
        """Begins anew: all that will happen depends on the seed and on the actions alone."""
        seeds = np.random.SeedSequence(seed).generate_state(self.count).tolist()
        self.observation = torch.stack([self._begin(i, seed) for i, seed in enumerate(seeds)])
        self.returns, self.lengths = [0.0] * self.count, [0] * self.count
        return self.observation

    def step(self, actions: Tensor) -> Moment:
        """Does one action in each copy."""
        with self._lock:
            return self._all_step(actions)

    def _all_step(self, actions: Tensor) -> Moment:
        chosen = actions.cpu()
        given = chosen.tolist() if self.actions.discrete else list(self.actions.within(chosen.float()).numpy())
        seen, rewards, over, cut, ended = [], [], [], [], []
        following = []
        for i, action in enumerate(given):
            observation, reward, terminated, truncated = self._step(i, action)
            self.returns[i] += reward
            self.lengths[i] += 1
            seen.append(observation)
            if terminated or truncated:
                ended.append((self.returns[i], self.lengths[i]))
                self.returns[i], self.lengths[i] = 0.0, 0
                observation = self._begin(i, None)
            following.append(observation)
            rewards.append(reward)
            over.append(terminated)
            cut.append(truncated and not terminated)
        final = torch.stack(seen)
        self.observation = torch.stack(following) if ended else final
        return Moment(torch.tensor(rewards), torch.tensor(over), torch.tensor(cut), final, ended)

    def state(self) -> dict[str, Any]:
        """All that what comes next depends on, as plain data and tensors."""
        with self._lock:
            kept = {"observation": self.observation, "returns": list(self.returns), "lengths": list(self.lengths)}
            return {**kept, "copies": [self._save(i) for i in range(self.count)]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state, which may come from another process."""
        self.observation = state["observation"].cpu()
        self.returns, self.lengths = list(state["returns"]), list(state["lengths"])
        for i, saved in enumerate(state["copies"]):
            self._load(i, saved)

    def _begin(self, i: int, seed: int | None) -> Tensor:
        """Begins an episode of copy i, with its own randomness, or with a new seed; returns what is seen."""
        raise NotImplementedError

    def _step(self, i: int, action: Any) -> tuple[Tensor, float, bool, bool]:
        """One action in copy i: what is seen, the reward, whether it is over, whether it was cut off."""
        raise NotImplementedError

    def _save(self, i: int) -> Any:
        raise NotImplementedError

    def _load(self, i: int, saved: Any) -> None:
        raise NotImplementedError


def has_environment(task: Any) -> bool:
    """Whether a task has one: `environment(count)` makes copies of it, `actions` says what can be done."""
    return callable(getattr(task, "environment", None)) and isinstance(getattr(task, "actions", None), Actions)


def play(environment: Environment, choose: Callable[[Tensor], Tensor], seed: int) -> list[list[dict[str, Any]]]:
    """One episode in each copy from a seed: for each, its steps as {observation, action, reward}.

    `choose` gives the actions for what is seen. Copies that are done go on, but what they do is not told.
    """
    seen = environment.reset(seed)
    told: list[list[dict[str, Any]]] = [[] for _ in range(environment.count)]
    going = set(range(environment.count))
    while going:
        actions = choose(seen).cpu()
        moment = environment.step(actions)
        over = (moment.terminated | moment.truncated).tolist()
        for i in sorted(going):
            told[i].append({"observation": seen[i], "action": actions[i], "reward": float(moment.reward[i])})
            if over[i]:
                going.discard(i)
        seen = environment.observation
    return told


# -- gymnasium ---------------------------------------------------------------------------------------------------------

DEFAULT_LIMIT = 1000  # steps of an episode where neither the environment nor anybody else says


def known(id: str) -> None:
    """Raises ValueError, with the nearest names, where gymnasium has no such environment."""
    import gymnasium

    names = list(gymnasium.registry)
    if id in names:
        return
    bare = {name.lower(): name for name in names}
    near = [bare[n] for n in difflib.get_close_matches(id.lower(), list(bare), 3, 0.5)]
    hint = f"Did you mean {' or '.join(near)}?" if near else 'Small ones are "CartPole-v1" and "FrozenLake-v1".'
    raise ValueError(f"There is no environment {id!r} in gymnasium. {hint}")


class Gymnasium(Environment):
    """Copies of an environment of gymnasium, by its id. Every kind of observation becomes a vector of numbers.

    Its limit of time is the environment's own where `limit` is 0, and 1000 steps where it has none. Raises ValueError
    for an id that gymnasium does not have, for one whose libraries are missing, for actions that are neither one of
    several nor numbers within limits, and for an environment whose state cannot be saved.
    """

    def __init__(self, id: str, count: int = 1, limit: int = 0, settings: Mapping[str, Any] | None = None):
        self.id, self.count = id, count
        self.worlds = [_made(id, limit, settings or {}) for _ in range(count)]
        world = self.worlds[0]
        self.actions, self._first = _actions(id, world.action_space)
        self._seen = _flat(world.observation_space)
        self.shape = (_width(id, world.observation_space),)
        self._fresh = [_layers_state(world) for world in self.worlds]
        super().__init__()
        self._begin(0, 0)
        _layers_state(world)  # what cannot be saved is told now, not at the first checkpoint

    def _begin(self, i: int, seed: int | None) -> Tensor:
        return self._seen(self.worlds[i].reset(seed=seed)[0])

    def _step(self, i: int, action: Any) -> tuple[Tensor, float, bool, bool]:
        given = action + self._first if self.actions.discrete else action
        observation, reward, terminated, truncated, _ = self.worlds[i].step(given)
        return self._seen(observation), float(reward), bool(terminated), bool(truncated)

    def _save(self, i: int) -> list[dict[str, Any]]:
        now = _layers_state(self.worlds[i])
        return [
            {name: value for name, value in layer.items() if name not in fresh or not _same(value, fresh[name])}
            for layer, fresh in zip(now, self._fresh[i], strict=True)
        ]

    def _load(self, i: int, saved: Any) -> None:
        now = _layers_state(self.worlds[i])
        for layer, have, fresh, told in zip(_layers(self.worlds[i]), now, self._fresh[i], saved, strict=True):
            for name in [name for name in have if name not in fresh and name not in told]:
                delattr(layer, name)
            for name, value in {**fresh, **told}.items():
                if name in told or not _same(have.get(name, _MISSING), value):
                    setattr(layer, name, _decode(value))


_MISSING = object()


def _made(id: str, limit: int, settings: Mapping[str, Any]) -> Any:
    """One environment. Raises ValueError with the reason where there is none."""
    import gymnasium

    known(id)
    own = gymnasium.registry[id].max_episode_steps
    try:
        return gymnasium.make(
            id, max_episode_steps=limit or own or DEFAULT_LIMIT, disable_env_checker=True, **dict(settings)
        )
    except (gymnasium.error.Error, ImportError, TypeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f"The environment {id!r} cannot be made here: {reason}.") from error


def _actions(id: str, space: Any) -> tuple[Actions, int]:
    """The actions of a space, and the number of the first where they are counted."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return Actions(int(space.n)), int(space.start)
    if isinstance(space, spaces.Box) and space.is_bounded():
        low, high = (tuple(np.asarray(v, dtype=float).ravel().tolist()) for v in (space.low, space.high))
        if len(space.shape) == 1:
            return Actions(len(low), low, high), 0
    raise ValueError(
        f"The environment {id!r} takes actions of the kind {type(space).__name__}; only one of several (Discrete) and "
        "a vector of numbers within limits (Box) can be chosen here."
    )


def _width(id: str, space: Any) -> int:
    from gymnasium import spaces

    try:
        return int(spaces.flatdim(space))
    except (NotImplementedError, ValueError) as error:
        raise ValueError(f"What the environment {id!r} shows, a {type(space).__name__}, has no fixed size.") from error


def _flat(space: Any) -> Callable[[Any], Tensor]:
    """Observations of a space as vectors: numbers as they are, one of several as a one at its place."""
    from gymnasium import spaces

    if isinstance(space, spaces.Box):
        return lambda seen: torch.from_numpy(np.array(seen, dtype=np.float32).ravel())
    return lambda seen: torch.from_numpy(np.asarray(spaces.flatten(space, seen), dtype=np.float32))


def _layers(world: Any) -> Iterator[Any]:
    """The wrappers of an environment, from the outside in, and the environment itself."""
    yield world
    while world is not world.unwrapped:
        world = world.env
        yield world


def _layers_state(world: Any) -> list[dict[str, Any]]:
    """What each layer keeps in its attributes, but for what never changes."""
    return [
        {
            name: _encode(value, f"{type(layer).__name__}.{name}")
            for name, value in vars(layer).items()
            if not _constant(value) and not (name == "env" and layer is not layer.unwrapped)
        }
        for layer in _layers(world)
    ]


def _constant(value: Any) -> bool:
    """Whether something only describes: spaces, specifications, code."""
    import gymnasium
    from gymnasium.envs.registration import EnvSpec

    code = (type, FunctionType, MethodType, BuiltinFunctionType, ModuleType)
    return isinstance(value, (gymnasium.Space, EnvSpec, *code))


def _encode(value: Any, where: str) -> Any:
    """Plain data and tensors that say the value to the bit."""
    if value is None or (isinstance(value, bool | float | str) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, int):
        return value if -(2**62) < value < 2**62 else {"int": str(value)}
    if isinstance(value, np.generic):
        return {"scalar": value.dtype.str, "value": _encode(value.item(), where)}
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "biuf":
            return {"array": torch.from_numpy(np.array(value, order="C", copy=True))}
        if value.dtype.kind in "SU":
            return {"characters": value.dtype.str, "value": value.astype(str).tolist()}
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return {"generator": type(bits).__name__, "state": _encode(dict(bits.state), where)}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_encode(each, where) for each in value]}
    if isinstance(value, dict):
        return {"dict": [[_encode(k, where), _encode(v, where)] for k, v in value.items()]}
    raise ValueError(
        f"The environment keeps a {type(value).__name__} in {where}, which cannot be saved as plain data, so a run on "
        "it could not be resumed. Classic control and toy text can be saved."
    )


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    mark = next(iter(value))
    content = value[mark]
    if mark == "int":
        return int(content)
    if mark == "scalar":
        return np.dtype(content).type(_decode(value["value"]))
    if mark == "array":
        return np.array(content.cpu().numpy(), copy=True)
    if mark == "characters":
        return np.asarray(value["value"]).astype(content)
    if mark == "generator":
        bits = getattr(np.random, content)()
        bits.state = _decode(value["state"])
        return np.random.Generator(bits)
    if mark == "dict":
        return {_decode(k): _decode(v) for k, v in content}
    return (list if mark == "list" else tuple)(_decode(each) for each in content)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


# -- what rewards add up to --------------------------------------------------------------------------------------------


def n_step_returns(
    rewards: Tensor, terminated: Tensor, truncated: Tensor, after: Tensor, gamma: float, steps: int = 0
) -> Tensor:
    """What each step of a rollout [T, ...] brought in the end, as far as the rollout shows, and estimated from there.

        R_t = r_t + gamma (0 where terminated, after_t where cut off or at the end, else R_(t+1))

    `after` estimates what was to come after each step. `steps` cuts every sum after that many rewards (1: one step);
    0 lets each run to the end of the rollout.
    """
    going = (~terminated).to(rewards.dtype) * gamma
    if steps == 1:
        return rewards + going * after
    length = len(rewards)
    if steps and steps < length:
        return _windows(rewards, terminated, truncated, after, gamma, steps)
    found = torch.empty_like(rewards)
    following = after[-1]
    for t in range(length - 1, -1, -1):
        found[t] = rewards[t] + going[t] * torch.where(truncated[t], after[t], following)
        following = found[t]
    return found


def _windows(rewards: Tensor, terminated: Tensor, truncated: Tensor, after: Tensor, gamma: float, steps: int) -> Tensor:
    """Every step's own rollout of that many steps."""
    rows = [slice(t, t + steps) for t in range(len(rewards))]
    return torch.stack([n_step_returns(rewards[r], terminated[r], truncated[r], after[r], gamma)[0] for r in rows])
