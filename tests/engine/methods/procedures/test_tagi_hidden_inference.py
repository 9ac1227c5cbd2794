"""TAGI: a step is Gaussian inference and nothing else, it learns digits and curves, and infers its inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.errors import RecipeError
from engine.kit.gaussian import Gaussian, backward, chain_of, forward, learn, observed
from engine.methods.procedures.tagi_hidden_inference import codes, surprise
from engine.parts import Offer
from engine.training.run import Run
from tests.engine.methods.short import ready, train

BASE: dict[str, Any] = {
    "task": {"use": "digits", "train_limit": 60, "standardize": True},
    "model": {"use": "mlp", "hidden": [10]},
    "procedure": {"use": "tagi-hidden-inference"},
    "training": {"batch_size": 12, "evaluate_every": 0},
    "budget": {"steps": 5},
}


def run_of(**changes: Any) -> Run:
    return ready(**{**BASE, "optimizer": {"use": "adamw"}, **changes})[0]


def trained(**changes: Any) -> tuple[Run, Any, Any]:
    return train(**{**BASE, "optimizer": {"use": "adamw"}, **changes})


def state(run: Run) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def test_answers_as_codes() -> None:
    assert codes(torch.tensor([2, 0]), Offer("vector", (1,), "classes", 3)).tolist() == [[-1, -1, 1], [1, -1, -1]]
    assert codes(torch.tensor([2.5, 0.5]), Offer("vector", (1,), "values", 1)).tolist() == [[2.5], [0.5]]


def test_surprise_is_the_density_of_a_gaussian() -> None:
    answer, y = Gaussian(torch.randn(4, 3), torch.rand(4, 3)), torch.randn(4, 3)
    normal = torch.distributions.Normal(answer.mean, (answer.var + 0.09).sqrt())
    assert torch.allclose(surprise(answer, y, 0.09), -normal.log_prob(y).sum(1), atol=1e-5)


def test_a_step_is_inference_with_the_cap_of_its_batch() -> None:
    run, twin = run_of(), run_of()
    assert run.stream is not None and twin.stream is not None
    batch = run.stream.next()
    run.before_step()
    run.procedure.step(run, batch)
    chain, same = chain_of(twin.model), twin.stream.next()
    x = same.x.flatten(1)
    seen = forward(chain, Gaussian(x, torch.zeros_like(x)))
    y = -torch.ones(12, 10)
    y[torch.arange(12), same.target] = 1
    deltas, _ = backward(chain, seen, observed(seen.answer, y, 0.3**2))
    learn(chain, deltas, 2.0)
    assert all(torch.equal(a, b) for a, b in zip(state(run).values(), state(twin).values(), strict=True))
    assert float(run.step_loss) == pytest.approx(float(surprise(seen.answer, y, 0.09).mean()), rel=1e-5)  # type: ignore[arg-type]
    assert torch.allclose(run.predict(batch), twin.model(same.x), atol=1e-5), "it answers with the means"


def test_nothing_is_differentiated_and_nothing_descended(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any, **more: Any) -> None:
        raise AssertionError("a gradient was asked for")

    monkeypatch.setattr(torch.Tensor, "backward", never)
    monkeypatch.setattr(torch.autograd, "grad", never)
    monkeypatch.setattr(torch.autograd, "backward", never)
    run, memory, outcome = trained()
    assert outcome.state == "done" and run.roles["main"].optimizer is None
    assert all(p.grad is None for p in run.model.parameters()) and "count/gradient-passes" not in outcome.metrics
    assert len(memory.points["train/loss"][1]) == 5


def test_noise_can_be_a_schedule_and_weights_count() -> None:
    schedule = {"value": 0.6, "schedule": {"use": "exponential", "decay": 0.5}}
    run = run_of(procedure={**BASE["procedure"], "sigma_v": schedule})
    part: Any = run.procedure
    assert part.noise(run) == pytest.approx(0.36)
    run.step = run.steps_per_epoch
    assert part.noise(run) == pytest.approx(0.09)
    task = {"use": "imbalanced-regression", "samples": 60, "reweight": True}
    weighted, plain = run_of(task=task), run_of(task={**task, "reweight": False})
    for made in (weighted, plain):
        assert made.stream is not None
        made.procedure.step(made, made.stream.next())
    assert not torch.equal(state(weighted)["head.weight"], state(plain)["head.weight"])


def test_it_learns_digits_and_turns_them_into_others() -> None:
    task = {"use": "digits", "standardize": True, "train_limit": 600}
    control = {"use": "imposed-label", "samples": 100, "direction": "random"}
    probes = [{"use": "imposed-label", "samples": 100}, {"use": "predictive-variance"}]
    changes: dict[str, Any] = {"task": task, "model": {"use": "mlp", "hidden": [50]}, "budget": {"epochs": 6}}
    _, memory, outcome = trained(**changes, probes=probes)
    assert outcome.metrics["test/accuracy"] > 0.92
    assert outcome.metrics["probe/imposed-label/turned"] > 0.8
    assert outcome.metrics["probe/predictive-variance/sd_wrong"] > outcome.metrics["probe/predictive-variance/sd_right"]
    assert {figure["name"] for figure in memory.figures} >= {"changed", "sureness"}
    _, _, aside = trained(**changes, probes=[control])
    assert aside.metrics["probe/imposed-label/turned"] < 0.05
    length = "probe/imposed-label/length"
    assert aside.metrics[length] == pytest.approx(outcome.metrics[length])


def test_it_is_less_sure_beyond_its_samples() -> None:
    changes: dict[str, Any] = {"task": {"use": "one-input"}, "probes": [{"use": "predictive-variance"}]}
    changes |= {"procedure": {**BASE["procedure"], "sigma_v": 0.05}, "budget": {"epochs": 20}}
    _, memory, outcome = trained(**changes, model={"use": "mlp", "hidden": [50]}, training={"batch_size": 4})
    found = {n.rpartition("/")[2]: v for n, v in outcome.metrics.items() if n.startswith("probe/predictive")}
    assert outcome.metrics["test/r2"] > 0.9 and found["sd_outside"] > 2 * found["sd_inside"]
    assert 0.7 < found["coverage"] <= 1
    band = next(figure for figure in memory.figures if figure["name"] == "band")["data"]["series"][0]
    assert all(low < y < high for low, y, high in zip(band["low"], band["y"], band["high"], strict=True))


def test_it_finds_the_top_of_a_hill_that_it_has_learned() -> None:
    changes: dict[str, Any] = {"task": {"use": "one-input", "curve": "hill"}, "budget": {"epochs": 40}}
    changes |= {"procedure": {**BASE["procedure"], "sigma_v": 0.05}, "training": {"batch_size": 16}}
    model = {"use": "mlp", "hidden": [50], "activation": "tanh"}
    _, _, outcome = trained(**changes, model=model, probes=[{"use": "zero-derivative"}])
    found = {n.rpartition("zero-derivative/")[2]: v for n, v in outcome.metrics.items() if "zero-derivative" in n}
    assert found["best_input.0"] == pytest.approx(0.3, abs=0.1) and found["best"] == pytest.approx(1, abs=0.1)
    assert found["slope_after"] < 0.05 * found["slope_before"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": {"use": "mlp", "hidden": [4], "norm": "batch"}}, "is a BatchNorm1d"),
        ({"model": {"use": "cnn"}}, "plain chains of layers"),
        ({"techniques": [{"use": "gradient-clipping"}]}, "does not make"),
        ({"techniques": [{"use": "label-smoothing"}]}, "does not offer"),
        ({"loss": {"use": "half-squared-error"}, "task": {"use": "one-input"}}, "brings its own objective"),
        ({"procedure": {"use": "tagi-hidden-inference", "sigma_v": 0.0}}, "must be above 0"),
        ({"training": {"batch_size": 12, "accumulate": 2}}, "takes its steps on whole batches"),
        ({"probes": [{"use": "zero-derivative"}]}, "has no bend"),
        ({"task": {"use": "one-input"}, "probes": [{"use": "imposed-label"}]}, "imposes a class"),
        ({"procedure": {"use": "backprop"}, "probes": [{"use": "predictive-variance"}]}, "moments"),
    ],
)
def test_what_does_not_fit_is_refused(changes: Any, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        run_of(**changes)
