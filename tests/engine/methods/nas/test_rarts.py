"""The relaxed search against its fixed point on a scalar problem, its copies, and the cell that comes out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine import registry
from engine.errors import RecipeError
from engine.kit.choice import choices, genotype
from engine.methods.nas.rarts import ID, RARTS, pull
from engine.parts import Batch, Model, Offer, Task, Terms, model, task
from engine.recipe import Recipe, merge
from engine.training import checkpoint
from engine.training.assemble import assemble, filled
from engine.training.loop import Trainer, train
from engine.training.recorder import Memory, Recorder
from engine.training.run import Run


@task(id="scalars", name="Scalars")
class Scalars(Task):
    """L_train = (w - a)^2,  L_outer = a w - 2 a + 1: solved as two levels, a = w = 1."""

    offer = Offer("vector", (1,), "values", 2)

    def load(self) -> None:
        self.one = torch.zeros(1, 1)

    def columns(self, split: str) -> dict[str, Tensor]:
        return {"x": self.one, "target": self.one}

    def objective(self, output: Any, batch: Batch) -> Terms:
        w, a = output
        return {"task": (w - a).square() if batch.split == "train" else a * w - 2 * a + 1}

    def metrics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        return {"accuracy": output[0]}


@model(id="scalar", name="Scalar")
class Scalar(Model):
    """One weight and one architecture parameter."""

    def __init__(self, offer: Offer, start: float = 0.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start))
        self.head = nn.Linear(1, 1)  # what an anatomy needs; it takes no part
        self.a = nn.Parameter(torch.tensor(0.5))

    def architecture(self) -> list[nn.Parameter]:
        return [self.a]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.w, self.a

    def anatomy(self) -> Any:
        from engine.kit.anatomy import Anatomy

        return Anatomy(self, stem=None, blocks=[], features=None, head=self.head)


@pytest.fixture
def scalars(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {**registry.classes(), "scalars": Scalars, "scalar": Scalar}
    monkeypatch.setattr(registry, "classes", lambda: found)


def scalar_run(weight: float, beta: float, rate: float, **more: Any) -> tuple[Run, Trainer]:
    sgd = {"use": "sgd", "lr": rate, "momentum": 0.0}
    recipe = {
        "task": {"use": "scalars"},
        "model": {"use": "scalar", **more},
        "optimizer": sgd,
        "training": {"evaluate_every": 0},
        "procedure": {"use": ID, "train_weight": weight, "beta": beta, "architecture_optimizer": sgd},
        "budget": {"steps": 10_000},
    }
    run = assemble(filled(Recipe.of(recipe)), Recorder(Memory()))
    return run, Trainer(run)


def where(run: Run) -> tuple[float, float, float]:
    copy: Any = run.roles["copy"].module
    return float(run.model.w.detach()), float(copy.w.detach()), float(run.model.a.detach())  # type: ignore


@pytest.mark.parametrize(("weight", "beta", "rate", "steps"), [(1.0, 1.0, 0.35, 700), (10.0, 10.0, 0.045, 1300)])
def test_the_fixed_point(scalars: None, weight: float, beta: float, rate: float, steps: int) -> None:
    """a = 2 / (2 - 1 / (2 weight) - 1 / beta), w = a (1 - 1 / (2 weight)), y = w - a / beta."""
    run, _ = scalar_run(weight, beta, rate)
    procedure = run.procedure
    batch = next(run.batches("train"))
    for _ in range(steps):
        run.batch = batch
        procedure.step(run, batch)
    a = 2 / (2 - 1 / (2 * weight) - 1 / beta)
    w = a * (1 - 1 / (2 * weight))
    assert where(run) == pytest.approx((w, w - a / beta, a), abs=1e-4)
    if weight == 1.0:
        assert a == pytest.approx(4.0)


def test_below_its_condition_it_runs_away(scalars: None) -> None:
    run, _ = scalar_run(0.4, 1.0, 0.05)
    batch = next(run.batches("train"))
    for _ in range(400):
        run.batch = batch
        run.procedure.step(run, batch)
    assert abs(where(run)[2]) > 50


def test_one_iteration_by_hand(scalars: None) -> None:
    """w moves at the old y, y at the new w, a at both new ones."""
    run, trainer = scalar_run(2.0, 0.7, 0.1, start=3.0)
    w = y = 3.0
    a = 0.5
    for _ in range(5):
        trainer._step()
        w = w - 0.1 * (2.0 * 2 * (w - a) + 0.7 * (w - y))
        y = y - 0.1 * (a + 0.7 * (y - w))
        a = a - 0.1 * (2.0 * -2 * (w - a) + (y - 2))
        assert where(run) == pytest.approx((w, y, a), rel=1e-5)


def test_small_steps_never_raise_the_relaxed_loss(scalars: None) -> None:
    run, trainer = scalar_run(1.0, 1.0, 0.02, start=-2.0)
    before = float("inf")
    for _ in range(200):
        trainer._step()
        w, y, a = where(run)
        relaxed = a * y - 2 * a + 1 + (w - a) ** 2 + 0.5 * (y - w) ** 2
        assert relaxed <= before + 1e-6
        before = relaxed


def test_the_pull() -> None:
    these, others = [torch.ones(2, requires_grad=True)], [torch.tensor([3.0, 0.0], requires_grad=True)]
    value = pull(these, others, 0.5)
    value.backward()
    assert float(value.detach()) == pytest.approx(1.25) and others[0].grad is None
    assert these[0].grad is not None and these[0].grad.tolist() == [-1.0, 0.5]


BASE: dict[str, Any] = {
    "task": {"use": "digits", "train_limit": 120},
    "model": {"use": "choice-cell", "channels": 4},
    "optimizer": {"use": "sgd", "lr": 0.05, "momentum": 0.9},
    "training": {"outer": 0.5, "batch_size": 30, "evaluate_every": 0},
    "procedure": {"use": ID},
    "budget": {"steps": 8},
}


def document(**patch: Any) -> dict[str, Any]:
    return filled(Recipe.of(merge(BASE, patch)))


def test_each_player_moves_its_own_and_no_pull_leaves_the_copies_apart() -> None:
    run = assemble(document(procedure={"beta": 0.0}), Recorder(Memory()))
    alphas = {id(c.alpha) for c in choices(run.model).values()}
    roles = {name: {id(p) for p in role.parameters} for name, role in run.roles.items()}
    assert roles["architecture"] == alphas and len(alphas) == 3
    assert not roles["main"] & roles["copy"] and not (roles["main"] | roles["copy"]) & alphas
    alone = assemble(document(procedure={"use": "backprop"}, training={"outer": 0.5}), Recorder(Memory()))
    for each in choices(alone.model).values():
        each.alpha.requires_grad_(False)
    for made in (run, alone):
        batch = made.stream.next()  # type: ignore[union-attr]
        made.batch = batch
        made.procedure.step(made, batch)
    for name, parameter in alone.model.named_parameters():
        if "alpha" not in name:
            assert torch.allclose(parameter, run.model.get_parameter(name), atol=1e-6), name
    assert not any(p.grad is not None for role in run.roles.values() for p in role.parameters)


def test_what_it_finds_is_a_recipe(tmp_path: Path) -> None:
    sink = Memory()
    outcome = train(document(), sink)
    names = outcome.found["model.genotype"]
    assert len(names) == 3 and sum(v for k, v in outcome.metrics.items() if k.startswith("result/share/")) == 1.0
    assert any("model.genotype = [" in str(event) for event in sink.events)
    recipe = Recipe.of(BASE)
    recipe.set("model.genotype", names)
    recipe.set("procedure", {"use": "backprop"})
    assert train(filled(recipe)).state == "done"


def test_retraining_is_training_what_was_found_from_the_start() -> None:
    """The last half is the plain run of the found network: the same start, and an optimizer without a past."""
    run = assemble(document(procedure={"retrain": 0.5}), Recorder(Memory()))
    trainer = Trainer(run)
    fresh = {n: t.clone() for n, t in run.model.state_dict().items()}
    for _ in range(4):
        trainer._step()
    assert all(c._kept < 0 for c in choices(run.model).values())
    alphas = {n: p.detach().clone() for n, p in run.model.named_parameters() if "alpha" in n}
    leaning = genotype(run.model)
    batch = run.stream.next()  # type: ignore[union-attr]
    run.batch = batch
    assert isinstance(run.procedure, RARTS)
    run.procedure.step(run, batch)
    assert genotype(run.model) == leaning and all(c._kept >= 0 for c in choices(run.model).values())
    slopes: dict[str, Tensor] = {}
    plain = assemble(document(), Recorder(Memory())).model
    plain.load_state_dict(fresh)
    for name, choice in choices(plain).items():
        choice.keep(choices(run.model)[name]._kept)
    torch.nn.functional.cross_entropy(plain(batch.x), batch.target).backward()
    for name, parameter in plain.named_parameters():
        now = run.model.get_parameter(name)
        if "alpha" in name:
            assert torch.equal(now, alphas[name]), "the architecture stays"
        elif parameter.grad is not None:
            slopes[name] = parameter.grad
            assert torch.allclose(now, parameter - 0.05 * parameter.grad, atol=1e-6), name
    assert slopes


def test_it_resumes_in_the_search_and_in_the_retraining(tmp_path: Path) -> None:
    whole = train(document(procedure={"retrain": 0.5}))
    for cut in (2, 6):

        def stop(trainer: Trainer, cut: int = cut) -> None:
            finished = trainer._finished
            trainer._finished = lambda: trainer.run.step >= cut or finished()  # type: ignore[method-assign]

        folder = tmp_path / str(cut)
        folder.mkdir()
        train(document(procedure={"retrain": 0.5}), None, folder, stop)
        state = checkpoint.newest(folder)
        assert state is not None and state["step"] == cut
        again = train(
            document(procedure={"retrain": 0.5}), None, None, lambda trainer, state=state: trainer.load(state)
        )
        assert again.weights == whole.weights and again.found == whole.found


def test_what_it_needs() -> None:
    for patch, words in (
        ({"training": {"outer": 0.0}}, r"training\.outer = 0\.2"),
        ({"model": {"genotype": ["skip", "conv3", "conv1"]}}, "leaves no choice open"),
        ({"training": {"accumulate": 2}}, "write accumulate = 1"),
        ({"procedure": {"retrain": 0.5}, "budget": {"steps": 0, "seconds": 1}}, "must know how long the run is"),
    ):
        with pytest.raises(RecipeError, match=words):
            train(document(**patch))
