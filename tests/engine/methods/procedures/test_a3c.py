"""A3C: its gradient in closed form, what ends an episode, workers in step and in threads, and its siblings' targets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.errors import RecipeError
from engine.kit.environments import Actions, Environment
from engine.methods.procedures.a3c import A3C, EPSILONS, Rollout
from engine.parts import Batch
from tests.engine.methods.short import ready, resumed, train

RECIPE: dict[str, Any] = {
    "task": {"use": "gymnasium", "episodes": 2, "limit": 20},
    "model": {"use": "mlp", "hidden": [8], "activation": "tanh"},
    "optimizer": {"use": "shared-rmsprop", "lr": 0.01},
    "training": {"evaluate_every": 0, "threads": 1},
    "budget": {"steps": 12},
}


def recipe(**procedure: Any) -> dict[str, Any]:
    return {**RECIPE, "procedure": {"use": "a3c", **procedure}}


class Arms(Environment):
    """Each arm pays its own sum, and that was the episode."""

    def __init__(self, count: int, pays: tuple[float, ...] = (1.0, 3.0)):
        self.count, self.shape, self.actions, self.pays = count, (1,), Actions(len(pays)), pays
        super().__init__()

    def _begin(self, i: int, seed: int | None) -> Tensor:
        return torch.ones(1)

    def _step(self, i: int, action: int) -> tuple[Tensor, float, bool, bool]:
        return torch.ones(1), self.pays[action], True, False


class Bare:
    """What the procedure needs of a run, for a model that is called as it is."""

    def __init__(self, model: nn.Module, task: Any):
        self.model, self.task, self.device = model, task, torch.device("cpu")
        self.counts: dict[str, int] = {}
        self.streams: dict[str, torch.Generator] = {}

    def rng(self, name: str) -> torch.Generator:
        return self.streams.setdefault(name, torch.Generator().manual_seed(len(self.streams)))

    def forward(self, batch: Batch, model: nn.Module | None = None) -> Tensor:
        found: Tensor = (model or self.model)(batch.x)
        return found


def arms(**settings: Any) -> tuple[A3C, Any, nn.Linear]:
    """The two arms, acted in by a policy of three numbers: two logits and a value."""
    model = nn.Linear(1, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.3], [-0.4], [0.7]]))
    task = SimpleNamespace(actions=Actions(2), environment=Arms)
    part, run = A3C(**settings), Bare(model, task)
    part.setup(run)  # type: ignore[arg-type]
    return part, run, model


def test_the_gradient_averages_to_the_closed_form() -> None:
    """d/dz of -E[r] is -p_a (r_a - E[r]), that of -beta H is beta p (log p + H), and the critic's 2 c (V - E[r]);
    the mean over 20,000 pulls must be within 3 standard errors of it."""
    part, run, model = arms(workers=20000, t_max=1, entropy=0.1)
    played = part.play(run, 0, model)
    terms = part.terms(run, played, model)
    logits, value = model.weight[:2, 0].detach(), model.weight[2, 0].item()
    p = logits.softmax(0)
    pays = torch.tensor([1.0, 3.0])
    entropy = -(p * p.log()).sum()
    exact = -p * (pays - (p * pays).sum()) + 0.1 * p * (p.log() + entropy)
    each = torch.stack([(torch.eye(2)[a] - p) * -(pays[a] - value) for a in (0, 1)])[played.actions[0]]
    error = 3 * each.std(0) / 20000**0.5
    (found,) = torch.autograd.grad(sum(term.mean() for term in terms.values()), model.weight)  # type: ignore[arg-type]
    assert (found[:2, 0] - exact).abs().le(error).all()
    critic = 2 * 0.5 * (value - pays[played.actions[0]]).mean()
    assert float(found[2, 0]) == pytest.approx(float(critic), rel=1e-3)
    assert abs(float(found[2, 0]) - (value - float((p * pays).sum()))) < 3 * float(pays[played.actions[0]].std()) / 141


def test_a_rollout_of_one_step_is_the_one_step_actor_critic_and_sums_are_over_the_rollout() -> None:
    run, _ = ready(**recipe(workers=3, t_max=1, gamma=0.9, entropy=0.02, value_coefficient=0.3))
    part: Any = run.procedure
    model = run.model
    played = part.play(run, 0, model)
    found = part.terms(run, played, model)
    out, after = model(played.seen[0]), model(played.final[0])[:, -1].detach()
    target = played.rewards[0] + 0.9 * torch.where(played.terminated[0], 0.0, after)
    policy = torch.distributions.Categorical(logits=out[:, :2])
    error = target - out[:, 2]
    torch.testing.assert_close(found["policy"], -policy.log_prob(played.actions[0]) * error.detach())
    torch.testing.assert_close(found["value"], 0.3 * error.square())
    torch.testing.assert_close(found["entropy"], -0.02 * policy.entropy())
    played.entropy = None
    both = Rollout(*(torch.cat([v, v]) if isinstance(v, Tensor) else v for v in vars(played).values()))
    both.terminated[0] = True  # so that the first step's return does not see the second's
    both.rewards[0] = target
    twice = part.terms(run, both, model)
    torch.testing.assert_close(twice["value"], 2 * found["value"])
    torch.testing.assert_close(twice["entropy"], 2 * found["entropy"])


@pytest.mark.parametrize(("over", "cut"), [(True, False), (False, True), (False, False)])
def test_a_limit_of_time_bootstraps_and_an_end_does_not(over: bool, cut: bool) -> None:
    run, _ = ready(**recipe(workers=1, t_max=2, gamma=0.5))
    part: Any = run.procedure
    seen, final = torch.randn(2, 1, 4), torch.randn(2, 1, 4)
    flags = [torch.tensor([[flag], [False]]) for flag in (over, cut)]
    played = Rollout(seen, torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1), *flags, final, None, [])
    values, after = (run.model(x.flatten(0, 1))[:, 2:] for x in (seen, final))
    last = 1 + 0.5 * after[1]
    first = 1 + 0.5 * (torch.zeros(1) if over else after[0] if cut else last)
    expected = 0.5 * ((first - values[0]) ** 2 + (last - values[1]) ** 2)
    torch.testing.assert_close(part.terms(run, played, run.model)["value"], expected)
    gradient = torch.autograd.grad(part.terms(run, played, run.model)["value"].sum(), run.model.parameters())
    held = 0.5 * ((first.detach() - values[0]) ** 2 + (last.detach() - values[1]) ** 2)
    torch.testing.assert_close(gradient, torch.autograd.grad(held.sum(), run.model.parameters()))


def test_one_worker_in_a_thread_is_one_worker_in_step_bit_for_bit() -> None:
    alone, _, one = train(**recipe(workers=1))
    threaded, _, two = train(**recipe(workers=1, asynchronous=True))
    assert one.weights == two.weights and one.metrics == two.metrics
    assert alone.counts["environment-steps"] == threaded.counts["environment-steps"] == 60


def test_workers_in_threads_each_act_at_weights_of_their_own() -> None:
    run, memory = ready(**recipe(workers=3, asynchronous=True))
    part: Any = run.procedure
    seen: list[Tensor] = []
    whole = part.terms

    def kept(run: Any, played: Rollout, model: nn.Module) -> Any:
        seen.append(next(model.parameters()).detach().clone())
        assert model is not run.model
        return whole(run, played, model)

    part.terms = kept
    for _ in range(9):
        run.batch = batch = run.stream.next()  # type: ignore[union-attr]
        run.before_step()
        part.step(run, batch)
        run.step += 1
    assert run.counts["environment-steps"] == 45 and len(seen) >= 9
    assert len({tuple(each.flatten().tolist()) for each in seen}) >= 3, "the weights moved between rollouts"
    assert all(environment.count == 1 for environment in part.environments)
    del memory


def test_a_budget_of_frames_is_a_number_of_steps_and_the_rate_falls_to_its_end() -> None:
    changes = {"budget": {"count": "environment-steps", "amount": 120}, "schedule": {"use": "polynomial"}}
    run, memory, outcome = train(**{**recipe(workers=4, t_max=5), **changes})
    assert outcome.steps == 6 and run.counts["environment-steps"] == 120
    rates = memory.points["lr"][1]
    assert rates == pytest.approx([0.01 * (1 - k / 6) for k in range(6)])


def test_rewards_are_cut_where_asked() -> None:
    task = SimpleNamespace(actions=Actions(2), environment=lambda count: Arms(count, (-7.0, 0.25)))
    part, run = A3C(clip_rewards=True, workers=50, t_max=1), Bare(nn.Linear(1, 3), task)
    part.setup(run)  # type: ignore[arg-type]
    assert set(part.play(run, 0, run.model).rewards.flatten().tolist()) == {-1.0, 0.25}  # type: ignore[arg-type]


# -- siblings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["n-step-q", "one-step-q", "one-step-sarsa"])
def test_siblings_learn_towards_their_targets(algorithm: str) -> None:
    run, _ = ready(**recipe(algorithm=algorithm, workers=2, t_max=4, gamma=0.9, explore=0))
    part: Any = run.procedure
    with torch.no_grad():
        next(iter(run.model.parameters())).add_(0.1)  # the target is the model of before
    played = part.play(run, 0, run.model)
    ahead = part.target(played.final.flatten(0, 1)).detach().view(4, 2, 2)
    best = ahead.amax(-1)
    if algorithm == "one-step-sarsa":
        chosen = torch.cat([played.actions[1:], played.following[None]])
        best = ahead.gather(-1, chosen[..., None])[..., 0]
    returns = torch.zeros(4, 2)
    for t in reversed(range(4)):
        later = returns[t + 1] if algorithm == "n-step-q" and t < 3 else best[t]
        returns[t] = played.rewards[t] + 0.9 * torch.where(played.terminated[t], 0.0, later)
    assert not played.truncated.any()
    value = run.model(played.seen.flatten(0, 1)).view(4, 2, 2).gather(-1, played.actions[..., None])[..., 0]
    torch.testing.assert_close(part.terms(run, played, run.model)["value"], (returns - value).square().sum(0))
    if algorithm == "one-step-sarsa":
        again = part.play(run, 0, run.model)
        assert torch.equal(again.actions[0], played.following), "it does what it had expected to do"


def test_siblings_explore_less_and_less_each_to_a_share_of_its_own() -> None:
    run, _ = ready(**recipe(algorithm="one-step-q", workers=400, explore=1000))
    part: Any = run.procedure
    shares = {value: float((part.epsilons == value).float().mean()) for value in torch.tensor(EPSILONS).tolist()}
    assert list(shares.values()) == pytest.approx([0.4, 0.3, 0.3], abs=0.08)
    seen = torch.randn(400, 4)
    greedy = run.model(seen).argmax(-1)
    rng = torch.Generator().manual_seed(0)
    for count, chance in ((0, torch.ones(400)), (500, 0.5 + 0.5 * part.epsilons), (5000, part.epsilons)):
        run.counts["environment-steps"] = count
        other = [(part._choose(run, 0, run.model, seen, rng) != greedy).float() for _ in range(60)]
        expected = float(chance.mean()) / 2  # half of the random ones are the best
        assert float(torch.stack(other).mean()) == pytest.approx(expected, abs=0.02)


def test_the_target_follows_after_so_many_actions() -> None:
    run, _ = ready(**recipe(algorithm="n-step-q", workers=2, t_max=5, target_every=20))
    part: Any = run.procedure
    same = []
    for _ in range(4):  # ten actions a step
        run.batch = batch = run.stream.next()  # type: ignore[union-attr]
        run.before_step()
        part.step(run, batch)
        run.step += 1
        pairs = zip(part.target.parameters(), run.model.parameters(), strict=True)
        same.append(all(torch.equal(a, b) for a, b in pairs))
    assert same == [False, True, False, True]


def test_it_refuses_what_it_cannot_do() -> None:
    with pytest.raises(RecipeError, match="actions are numbers; choose the actor-critic"):
        ready(**{**recipe(algorithm="n-step-q"), "task": {"use": "gymnasium", "environment_id": "Pendulum-v1"}})
    with pytest.raises(RecipeError, match=r"actions|environment"):
        ready(procedure={"use": "a3c"})
    with pytest.raises(RecipeError, match="Did you mean CartPole-v1"):
        ready(**{**recipe(), "task": {"use": "gymnasium", "environment_id": "CartPole-v11"}})


def test_numbers_can_be_acted_with() -> None:
    pendulum = {"use": "gymnasium", "environment_id": "Pendulum-v1", "episodes": 1, "limit": 10}
    run, _, outcome = train(**{**recipe(workers=2, t_max=2), "task": pendulum})
    assert run.model.head.out_features == 3 and -200 < outcome.metrics["test/return"] < 0  # type: ignore[union-attr]


def test_it_learns_which_arm_pays() -> None:
    part, run, model = arms(workers=16, t_max=2, entropy=0.0)
    descent = torch.optim.SGD(model.parameters(), lr=0.05)
    before = model.weight[:2, 0].softmax(0)[1].item()
    for _ in range(60):
        terms = part.terms(run, part.play(run, 0, model), model)
        descent.zero_grad()
        sum(term.mean() for term in terms.values()).backward()  # type: ignore[union-attr]
        descent.step()
    after = model.weight[:, 0].detach()
    assert before < 0.4 and float(after[:2].softmax(0)[1]) > 0.9 and float(after[2]) == pytest.approx(3.0, abs=0.3)


def test_the_more_an_undecided_policy_is_worth_the_less_it_decides() -> None:
    left = []
    for worth in (0.0, 0.5, 10.0):
        part, run, model = arms(workers=16, t_max=1, entropy=worth)
        descent = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(80):
            played = part.play(run, 0, model)
            terms = part.terms(run, played, model)
            descent.zero_grad()
            sum(term.mean() for term in terms.values()).backward()  # type: ignore[union-attr]
            descent.step()
        left.append(float(played.entropy))  # type: ignore[arg-type]
    assert left[0] < left[1] - 0.01 and left[1] < left[2] - 0.1 and left[2] < 0.6932


RESUMED = {
    "sarsa": {"procedure": {"use": "a3c", "algorithm": "one-step-sarsa", "explore": 50, "target_every": 30}},
    "q": {"procedure": {"use": "a3c", "algorithm": "n-step-q", "workers": 3, "explore": 50, "target_every": 30}},
    "numbers": {"task": {"use": "gymnasium", "environment_id": "Pendulum-v1", "episodes": 1, "limit": 23}},
    "table": {"task": {"use": "gymnasium", "environment_id": "FrozenLake-v1", "episodes": 1, "limit": 23}},
    "thread": {"procedure": {"use": "a3c", "workers": 1, "asynchronous": True}},
}


@pytest.mark.parametrize("kind", list(RESUMED))
def test_it_goes_on_in_the_middle_of_an_episode(kind: str, tmp_path: Path) -> None:
    whole, again = resumed(tmp_path, 7, **{**recipe(workers=2), **RESUMED[kind]})
    assert whole.weights == again.weights and whole.metrics == again.metrics
