"""1cycle agrees with torch's, the range test finds where learning breaks, the estimate is exact on a quadratic."""

import pytest
import torch

from engine.methods.schedules.super_convergence import RangeTest, SuperConvergence, curvature_rate, smoothed
from engine.parts import Progress
from tests.engine.methods.short import ready, train


@pytest.mark.parametrize("anneal", ["linear", "cosine"])
@pytest.mark.parametrize(("steps", "up"), [(100, 0.45), (37, 0.3), (184, 0.45), (50, 0.5)])
def test_rate_and_momentum_are_those_of_torch_point_by_point(anneal, steps, up):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3, momentum=0.9)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=0.3,
        total_steps=steps,
        pct_start=up,
        three_phase=True,
        anneal_strategy="cos" if anneal == "cosine" else "linear",
        div_factor=10,
        final_div_factor=1000,
    )
    ours = SuperConvergence(up_fraction=up, anneal=anneal)
    for t in range(steps):
        options = ours.options(Progress(t, steps), 0.3)
        group = optimizer.param_groups[0]
        assert options["lr"] == pytest.approx(group["lr"], abs=1e-12)
        assert options["momentum"] == pytest.approx(group["momentum"], abs=1e-12)
        optimizer.step()
        if t + 1 < steps:
            theirs.step()


def test_the_corners_are_exact_and_momentum_mirrors_the_rate():
    ours = SuperConvergence(up_fraction=0.25)
    at = {step: ours.options(Progress(step, 200), 2.0) for step in (0, 49, 98, 199)}
    assert [o["lr"] for o in at.values()] == pytest.approx([0.2, 2.0, 0.2, 2e-4], abs=1e-9)
    assert [o["momentum"] for o in at.values()] == pytest.approx([0.95, 0.85, 0.95, 0.95], abs=1e-9)
    assert ours.factor(Progress(10**6, 200)) == pytest.approx(1e-4)
    assert "momentum" not in SuperConvergence(cycle_momentum=False).options(Progress(3, 200), 2.0)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_the_shortest_runs_stay_in_range(steps):
    for up in (0.05, 0.45, 0.5):
        factors = [SuperConvergence(up_fraction=up).factor(Progress(t, steps)) for t in range(steps)]
        assert all(1e-4 * (1 - 1e-9) <= f <= 1 for f in factors)


def test_an_open_end_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="budget of steps or epochs"):
        SuperConvergence().factor(Progress(3))


@pytest.mark.parametrize("optimizer", [{"use": "sgd", "lr": 0.3}, {"use": "adamw", "lr": 0.3}])
def test_in_a_run_the_optimizer_gets_rate_and_momentum(optimizer):
    run, memory, _ = train(optimizer=optimizer, schedule={"use": "super-convergence"}, budget={"steps": 20})
    assert max(memory.points["lr"][1]) == pytest.approx(0.3, rel=0.1)
    group = run.roles["main"].optimizer.param_groups[0]
    assert (group["betas"][0] if "betas" in group else group["momentum"]) == pytest.approx(0.95)


def test_the_range_test_finds_the_rate_that_breaks_learning_and_leaves_no_trace():
    run, _ = ready(model={"use": "mlp", "hidden": [8], "dropout": 0.2, "norm": "batch"})
    before = [t.clone() for t in run.model.state_dict().values()]
    draw, modes = torch.get_rng_state(), [m.training for m in run.model.modules()]
    finding = RangeTest(low=1e-3, high=1e5, steps=60).look(run)
    assert 1e-3 < finding.scalars["best"] < finding.scalars["diverges"] < 1e5
    curve = finding.figures["curve"]
    assert [len(series["y"]) for series in curve["series"]] == 2 * [len(curve["series"][0]["x"])]
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.state_dict().values(), strict=True))
    assert torch.equal(draw, torch.get_rng_state()) and modes == [m.training for m in run.model.modules()]
    again = RangeTest(low=1e-3, high=1e5, steps=60).look(run)
    assert again.scalars == finding.scalars


def test_the_range_tests_rates_reach_from_low_to_high():
    exponential, linear = RangeTest(0.01, 1.0, 3), RangeTest(0.01, 1.0, 3, spacing="linear")
    assert [exponential.rate(i) for i in range(3)] == pytest.approx([0.01, 0.1, 1.0])
    assert [linear.rate(i) for i in range(3)] == pytest.approx([0.01, 0.505, 1.0])
    assert smoothed([2.0, 2.0, 2.0], 0.9) == pytest.approx([2.0] * 3)
    assert smoothed([1.0, 3.0], 0.5) == pytest.approx([1.0, (0.25 * 1 + 0.5 * 3) / 0.75])


def test_the_range_test_refuses_a_range_that_does_not_rise():
    with pytest.raises(Exception, match="larger than low"):
        ready(probes=[{"use": "super-convergence-range-test", "low": 1.0, "high": 0.5}])


@pytest.mark.parametrize("curvature", [0.5, 4.0])
def test_the_estimate_is_one_over_the_curvature_of_a_quadratic(curvature):
    first = [torch.randn(5, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)]
    second = [w - 0.01 * curvature * w for w in first]
    third = [w - 0.01 * curvature * w for w in second]
    assert curvature_rate(first, second, third, 0.01).item() == pytest.approx(1 / curvature, rel=1e-9)


def test_the_estimate_in_a_run_is_that_of_two_plain_steps_on_the_batch_and_changes_nothing():
    settings = {"use": "super-convergence-rate", "every": 1, "smoothing": 0.0}
    run, memory, _ = train(techniques=[settings], budget={"steps": 2})
    plain, _, _ = train(budget={"steps": 2})
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), plain.model.parameters(), strict=True))
    fresh, _ = ready(techniques=[settings], budget={"steps": 2})
    batch = fresh.stream.next()
    path = [[p.detach().clone() for p in fresh.model.parameters()]]
    for _ in range(2):
        loss = fresh.objective(batch.call(fresh.model), batch)["task"].mean()
        gradients = torch.autograd.grad(loss, list(fresh.model.parameters()))
        with torch.no_grad():
            for p, g in zip(fresh.model.parameters(), gradients, strict=True):
                p -= 0.1 * g
        path.append([p.detach().clone() for p in fresh.model.parameters()])
    expected = curvature_rate(*path, 0.1).item()
    assert memory.points["super-convergence-rate/rate"][1][0] == pytest.approx(expected, rel=1e-4)
