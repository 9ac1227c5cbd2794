"""TGeo-KD: the loss at fixed shares, the geometry, the hypergradient, who learns what, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from engine.errors import RecipeError
from engine.methods.losses.tgeo_kd import Mixer, distance, look_ahead, triangle
from engine.recipe import Recipe, merge
from engine.training.assemble import assemble, filled
from engine.training.loop import Outcome, Trainer, train
from engine.training.preview import preview
from engine.training.recorder import Memory, Recorder

ID = "tgeo-kd"
TEACHER = "recipe:sources/small-digits.toml"
PART: dict[str, Any] = {"use": ID, "teacher": TEACHER, "hidden": 16}
BASE: dict[str, Any] = {
    "task": {"use": "digits", "train_limit": 300},
    "model": {"use": "mlp", "hidden": [12]},
    "optimizer": {"use": "sgd", "lr": 0.1, "momentum": 0.9},
    "training": {"batch_size": 32, "evaluate_every": 0, "outer": 0.2},
    "budget": {"steps": 12},
    "techniques": [PART],
}


def trained(**patch: Any) -> tuple[Trainer, Outcome]:
    kept: list[Trainer] = []
    outcome = train(filled(Recipe.of(merge(BASE, patch))), Memory(), None, kept.append)
    return kept[0], outcome


def test_the_distance_is_the_divergence_of_softened_answers() -> None:
    s, t = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    p, q = (t / 3).softmax(-1), (s / 3).softmax(-1)
    torch.testing.assert_close(distance(s, t, 3.0), 9 * (p * (p.log() - q.log())).sum(-1))
    assert float(distance(s, s, 3.0).abs().max()) < 1e-12


def test_the_sides_close_the_triangle_and_vanish_in_a_point() -> None:
    s, t, g = (torch.rand(6, 3, dtype=torch.float64) for _ in range(3))
    sg, tg, st = triangle(s, t, g).chunk(3, -1)
    torch.testing.assert_close(st + tg, sg)
    assert float(triangle(g, g, g).abs().max()) == 0


def test_a_share_of_nothing_is_training_without_a_teacher() -> None:
    alone, _ = trained(techniques=[{**PART, "init_alpha": 0.0, "update_every": 0}])
    plain, _ = trained(techniques=[])
    assert all(
        torch.equal(a, b) for a, b in zip(alone.run.model.parameters(), plain.run.model.parameters(), strict=True)
    )


def test_a_fixed_share_is_ordinary_distillation() -> None:
    """By hand: the same batches, the loss written out, SGD with momentum."""
    part = {**PART, "init_alpha": 0.3, "update_every": 0, "tau": 2.0}
    optimizer = {"use": "sgd", "lr": 0.1, "momentum": 0.0}
    ready = assemble(filled(Recipe.of(merge(BASE, {"techniques": [part], "optimizer": optimizer}))), Recorder(Memory()))
    teacher: Any = ready.techniques[0]._model  # type: ignore[attr-defined]
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.training
    model, stream = ready.model, ready.stream
    assert stream is not None
    for _ in range(12):
        batch = stream.next()
        out = model(batch.x)
        with torch.no_grad():
            target = (teacher(batch.x) / 2).softmax(-1)
        kd = 4 * F.kl_div((out / 2).log_softmax(-1), target, reduction="batchmean")
        loss = 0.3 * kd + 0.7 * F.cross_entropy(out, batch.target)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p -= 0.1 * g
    run, _ = trained(techniques=[part], optimizer=optimizer)
    for mine, theirs in zip(model.parameters(), run.run.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def small_problem() -> tuple[Any, ...]:
    """A student, a mixer, a batch and a held-out batch in double precision."""
    torch.manual_seed(0)
    student = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
    mixer = Mixer(9, 4, 0.4, torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        mixer.outer.weight.normal_(std=0.5)
    x, y, t = torch.randn(8, 5).double(), torch.randint(3, (8,)), torch.randn(8, 3).double()
    vx, vy = torch.randn(6, 5).double(), torch.randint(3, (6,))
    return student, mixer, x, y, t, vx, vy


def held_out_loss(student: Any, mixer: Any, x: Any, y: Any, t: Any, vx: Any, vy: Any, rate: float) -> torch.Tensor:
    out = student(x)
    seen = triangle(out.detach().softmax(-1), t.softmax(-1), F.one_hot(y, 3).double())
    share = mixer(seen)
    inner = (share * distance(out, t, 4.0) + (1 - share) * F.cross_entropy(out, y, reduction="none")).mean()
    names, parameters = zip(*student.named_parameters(), strict=True)
    ahead = look_ahead(inner, parameters, rate)
    return F.cross_entropy(functional_call(student, dict(zip(names, ahead, strict=True)), (vx,)), vy)


def test_the_hypergradient_is_that_of_finite_differences() -> None:
    problem, rate, step = small_problem(), 0.5, 1e-6
    mixer = problem[1]
    grads = torch.autograd.grad(held_out_loss(*problem, rate), list(mixer.parameters()))
    for parameter, grad in zip(mixer.parameters(), grads, strict=True):
        flat = parameter.data.view(-1)
        for i in range(min(flat.numel(), 6)):
            at = float(flat[i])
            values = []
            for sign in (1, -1):
                flat[i] = at + sign * step
                values.append(float(held_out_loss(*problem, rate)))
            flat[i] = at
            difference = (values[0] - values[1]) / (2 * step)
            assert float(grad.view(-1)[i]) == pytest.approx(difference, rel=1e-3, abs=1e-8)


def test_the_hypergradient_aligns_gradients_sample_by_sample() -> None:
    """-rate d/da_i of grad CE_held-out(theta')^T grad l(theta, a), through the mixer: the share of a sample rises where
    its distillation gradient helps the held-out samples more than its own label does."""
    student, mixer, x, y, t, vx, vy = problem = small_problem()
    rate = 0.5
    grads = torch.autograd.grad(held_out_loss(*problem, rate), list(mixer.parameters()))
    out = student(x)
    seen = triangle(out.detach().softmax(-1), t.softmax(-1), F.one_hot(y, 3).double())
    kd, ce = distance(out, t, 4.0), F.cross_entropy(out, y, reduction="none")
    parameters = list(student.parameters())
    with torch.no_grad():
        share = mixer(seen)
    ahead = look_ahead((share * kd + (1 - share) * ce).mean(), parameters, rate)
    names = [name for name, _ in student.named_parameters()]
    ends = [a.detach().requires_grad_() for a in ahead]
    outer = F.cross_entropy(functional_call(student, dict(zip(names, ends, strict=True)), (vx,)), vy)
    v = torch.autograd.grad(outer, ends)
    aligned = []
    for i in range(len(x)):
        g = torch.autograd.grad((kd - ce)[i] / len(x), parameters, retain_graph=True)
        aligned.append(sum((a * b).sum() for a, b in zip(v, g, strict=True)))
    slopes = -rate * torch.stack(aligned)  # type: ignore[arg-type]
    expected = torch.autograd.grad((mixer(seen) * slopes).sum(), list(mixer.parameters()))
    for mine, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_the_mixer_starts_at_its_share_and_learns_without_touching_the_student() -> None:
    trainer, _ = trained(budget={"steps": 1})
    net: Any = trainer.run.techniques[0].net  # type: ignore[attr-defined]
    assert float(net.outer.weight.abs().max()) > 0, "one step moved it"
    fresh = Mixer(60, 16, 0.3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(fresh(torch.randn(4, 60)), torch.full((4,), 0.3))
    # The first step of the student is the one with the share of the start: the look-ahead leaves no trace in it but
    # through the mixer, which moves by one step of Adam of its rate.
    still, _ = trained(budget={"steps": 1}, techniques=[{**PART, "omega_lr": 1e-12}])
    fixed, _ = trained(budget={"steps": 1}, techniques=[{**PART, "update_every": 0}])
    for a, b in zip(still.run.model.parameters(), fixed.run.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_running_statistics_are_those_of_the_students_own_batches() -> None:
    norm = {"model": {"use": "mlp", "hidden": [12], "norm": "batch"}, "budget": {"steps": 1}}
    trainers = [trained(**norm, techniques=t)[0] for t in ([PART], [])]
    buffers = [dict(t.run.model.named_buffers()) for t in trainers]
    assert buffers[0] and all(torch.equal(b, buffers[1][n]) for n, b in buffers[0].items())


def test_it_trusts_a_misled_teacher_least_where_it_is_wrong() -> None:
    """A teacher whose answers to a fifth of the samples are another class's: the share falls there."""

    class Misled(torch.nn.Module):
        def __init__(self, x: torch.Tensor, answers: torch.Tensor):
            super().__init__()
            self.x, self.answers = x.flatten(1), answers

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.answers[torch.cdist(x.flatten(1), self.x).argmin(1)]

    def mislead(trainer: Trainer) -> None:
        run, part = trainer.run, trainer.run.techniques[0]
        columns = run.columns("train")
        wrong = torch.zeros(len(columns["target"]), dtype=torch.bool)
        wrong[::5] = True
        said = torch.where(wrong, (columns["target"] + 1) % 10, columns["target"])
        part._model = Misled(columns["x"], 6.0 * F.one_hot(said, 10).float())  # type: ignore[attr-defined]
        part._means = part._mean_answers(run)  # type: ignore[attr-defined]
        trainer.wrong = wrong  # type: ignore[attr-defined]
        kept.append(trainer)

    kept: list[Trainer] = []
    plain = {"lr": 0.05, "momentum": 0.0}
    patch = {"techniques": [{**PART, "omega_lr": 0.03}], "budget": {"steps": 400}, "optimizer": plain}
    train(filled(Recipe.of(merge(BASE, patch))), prepare=mislead)
    run, part, wrong = kept[0].run, kept[0].run.techniques[0], kept[0].wrong  # type: ignore[attr-defined]
    columns = run.columns("train")
    with torch.no_grad():
        seen = part.geometry(run.model(columns["x"]), part._model(columns["x"]), columns["target"])  # type: ignore[attr-defined]
        share = part.net(seen)  # type: ignore[attr-defined]
    better = (share[~wrong].unsqueeze(0) > share[wrong].unsqueeze(1)).float().mean()
    assert float(better) > 0.7 and float(share[wrong].mean()) < float(share[~wrong].mean())


def test_what_it_refuses_beside_what_works() -> None:
    def problems(**patch: Any) -> dict[str, str]:
        return {p["path"]: p["message"] for p in preview(Recipe.of(merge(BASE, patch)).text())["problems"]}

    assert problems() == {} and problems(training={"outer": 0.0}, techniques=[{**PART, "update_every": 0}]) == {}
    assert "learns on the split outer" in problems(training={"outer": 0.0})["techniques.0"]
    assert "exactly 0 or 1" in problems(techniques=[{**PART, "init_alpha": 1.0}])["techniques.0"]
    found = problems(techniques=[{**PART, "teacher": "recipe:nowhere.toml"}])
    assert "there is no recipe file" in found["techniques.0.teacher"]
    with pytest.raises(RecipeError, match="does not take this task's inputs"):
        trained(task={"use": "two-moons"})
