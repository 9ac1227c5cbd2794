"""The two-level loop against closed forms: lengths, frozen weights, the plain update, and what label noise does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import RecipeError
from engine.kit.curvature import flat, norm
from engine.kit.two_level import area_under_curve
from engine.methods.procedures.bo_rep import ID, BORep, NormalizedMomentum, Refining, project, stretches
from engine.parts import Batch, Progress
from engine.recipe import Recipe, merge
from engine.training import checkpoint
from engine.training.assemble import assemble, filled
from engine.training.loop import Trainer, train
from engine.training.recorder import Memory, Recorder
from engine.training.run import Run

BASE: dict[str, Any] = {
    "task": {"use": "digits", "train_limit": 80, "label_noise": 0.4},
    "model": {"use": "mlp", "hidden": []},
    "optimizer": {"use": "sgd", "lr": 0.05, "momentum": 0.0},
    "techniques": [{"use": "weight-penalty", "strength": 0.01}],
    "training": {"outer": 0.5, "batch_size": 100, "evaluate_every": 0},
    "procedure": {"use": ID, "eta": 0.25, "init_steps": 4, "interval": 3, "inner_steps": 2, "nu": 0.1},
    "budget": {"steps": 12},
}


def document(**patch: Any) -> dict[str, Any]:
    return filled(Recipe.of(merge(BASE, patch)))


def made(**patch: Any) -> tuple[Run, Trainer]:
    run = assemble(document(**patch), Recorder(Memory()))
    return run, Trainer(run)


def test_steps_of_one_length_along_the_momentum() -> None:
    x = [torch.zeros(3, requires_grad=True), torch.ones(2, requires_grad=True)]
    optimizer = NormalizedMomentum(x, lr=0.5, beta=0.8)
    rng, momentum, where = torch.Generator().manual_seed(1), torch.zeros(5), flat(x).detach().clone()
    for step in range(6):
        slope = torch.randn(5, generator=rng) * 10.0 ** (step - 3)
        momentum = slope if step == 0 else 0.8 * momentum + 0.2 * slope
        x[0].grad, x[1].grad = slope[:3].clone(), slope[3:].clone()
        optimizer.step()
        moved = flat(x).detach() - where
        assert float(moved.norm()) == pytest.approx(0.5, rel=1e-5)
        assert torch.allclose(moved, -0.5 * momentum / momentum.norm(), atol=1e-6)
        where = flat(x).detach().clone()
    x[0].grad, x[1].grad = torch.zeros(3), torch.zeros(2)
    NormalizedMomentum(x, lr=0.5).step()
    assert torch.equal(flat(x).detach(), where), "no slope, no step, and no division by zero"


def test_every_upper_step_has_the_length_eta_and_weights_stand_still_between_visits() -> None:
    run, trainer = made()
    procedure = run.procedure
    assert isinstance(procedure, BORep)
    for step in range(12):
        x, y = (
            flat([*procedure._upper.parameters()]).detach().clone(),
            flat(run.roles["main"].parameters).detach().clone(),
        )
        trainer._step()
        moved = float((flat([*procedure._upper.parameters()]).detach() - x).norm())
        still = torch.equal(flat(run.roles["main"].parameters), y)
        k = step - 4
        assert moved == pytest.approx(0.25 if k >= 0 else 0.0, rel=1e-5)
        assert still == (k >= 0 and not (k and k % 3 == 0)), f"step {step}"


def test_without_normalizing_it_is_momentum_descent() -> None:
    """beta = 0, an interval of 1: z <- z - nu (G_yy z - F_y), x <- x - eta (F_x - G_xy z), with y left where it was
    put, by dense matrices on the whole splits."""
    run, trainer = made(
        procedure={"beta": 0.0, "interval": 1, "init_steps": 0, "normalize": False, "eta": 2.0, "inner_steps": 1},
        optimizer={"lr": 1e-12},
    )
    procedure = run.procedure
    assert isinstance(procedure, BORep)
    train_batch, outer = next(run.batches("train")), next(run.batches("outer"))
    x = procedure._upper.logits  # type: ignore[attr-defined]
    weights = dict(run.model.named_parameters())
    sizes = [p.numel() for p in weights.values()]

    def at(y: torch.Tensor) -> Any:
        pieces = [part.view(p.shape) for part, p in zip(y.split(sizes), weights.values(), strict=True)]
        return dict(zip(weights, pieces, strict=True))

    def losses(y: torch.Tensor, batch: Batch) -> torch.Tensor:
        logits = torch.func.functional_call(run.model, at(y), (batch.x,))
        return torch.nn.functional.cross_entropy(logits, batch.target, reduction="none")

    def inner(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        penalty = 0.01 * at(y)["head.weight"].square().sum()
        return (torch.sigmoid(x[train_batch.index]) * losses(y, train_batch)).mean() + penalty

    y = flat(list(weights.values())).detach()
    slope = torch.func.grad(lambda y: losses(y, outer).mean())(y)
    z, where = torch.zeros_like(y), x.detach().clone()
    for _ in range(3):
        curved = torch.func.jvp(torch.func.grad(lambda y, at=where: inner(at, y)), (y,), (z,))[1]
        z = z - 0.1 * (curved - slope)
        mixed = torch.func.grad(lambda x, z=z: torch.func.grad(inner, 1)(x, y) @ z)(where)
        where = where + 2.0 * mixed
        trainer._step()
    assert torch.allclose(flat(procedure.z), z, atol=1e-6)
    assert torch.allclose(x.detach(), where, atol=1e-6) and not torch.allclose(
        where, torch.zeros_like(where), atol=1e-4
    )


def test_the_refinement_halves_its_rate_as_its_stretches_double() -> None:
    assert stretches(100) == [0, 10, 30, 70] and stretches(0) == [] and stretches(11) == [0, 10]
    curve = Refining(None, 100)
    rates = [curve.options(Progress(step, 500), 0.8)["lr"] for step in (0, 9, 10, 29, 30, 70, 99, 100, 400)]
    assert rates == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2, 0.1, 0.1, 0.8, 0.8])


def test_the_ball_holds_the_weights() -> None:
    center = [torch.ones(3), torch.zeros(2, 2)]
    inside, outside = [c + 0.1 for c in center], [c + 3.0 for c in center]
    expected = flat(outside) - flat(center)
    project(inside, center, 1.0)
    project(outside, center, 1.0)
    assert torch.allclose(flat(inside), flat(center) + 0.1)
    assert torch.allclose(flat(outside) - flat(center), expected / expected.norm())
    run, trainer = made(procedure={"radius": 1e-3}, optimizer={"lr": 5.0}, budget={"steps": 12})
    start = flat(run.roles["main"].parameters).detach().clone()
    for _ in range(4):
        trainer._step()
    assert float((flat(run.roles["main"].parameters) - start).detach().norm()) == pytest.approx(1e-3, rel=1e-3)


def test_weights_tell_wrong_labels_from_right_ones() -> None:
    patch: dict[str, Any] = {
        "task": {"train_limit": 600, "outer": 0.2},
        "training": {"outer": 0.0, "batch_size": 128},
        "optimizer": {"lr": 0.3},
        "procedure": {"eta": 0.5, "nu": 0.3, "init_steps": 70, "radius": 10.0, "interval": 2, "inner_steps": 3},
        "techniques": [{"use": "weight-penalty", "strength": 0.003}],
        "budget": {"steps": 250},
    }
    outcome = train(document(**patch))
    assert outcome.metrics["result/auc"] > 0.95


def test_a_learned_value_moves_to_where_the_outer_loss_falls() -> None:
    """A penalty far too strong for the task falls, step by step of one length."""
    tune = {"techniques.0.strength": {"low": 1e-4, "high": 10.0, "log": True}}
    sink = Memory()
    train(
        document(
            techniques=[{"use": "weight-penalty", "strength": 1.0}],
            procedure={"tune": tune, "eta": 0.05, "init_steps": 20, "radius": 10.0},
            optimizer={"lr": 0.1},
            budget={"steps": 61},
        ),
        sink,
    )
    strengths = sink.points["value/techniques.0.strength"][1]
    assert strengths[0] == pytest.approx(1.0, rel=1e-5) and strengths[-1] < 0.3


def test_it_resumes_within_the_refinement_and_within_an_interval(tmp_path: Path) -> None:
    whole = train(document())
    for cut in (3, 6):

        def stop(trainer: Trainer, cut: int = cut) -> None:
            trainer.run.end = cut

        folder = tmp_path / str(cut)
        folder.mkdir()
        train(document(), None, folder, stop)
        state = checkpoint.newest(folder)
        assert state is not None and state["step"] == cut
        again = train(document(), None, None, lambda trainer, state=state: trainer.load(state))
        assert again.weights == whole.weights and again.metrics == whole.metrics


def test_what_it_needs() -> None:
    with pytest.raises(RecipeError, match=r"training\.outer = 0\.2"):
        train(document(training={"outer": 0.0}))
    with pytest.raises(RecipeError, match="write accumulate = 1"):
        train(document(training={"accumulate": 2}))
    assert (
        float(norm([torch.ones(4)])) == 2.0 and float(area_under_curve(torch.arange(4.0), torch.arange(4) > 1)) == 1.0
    )
