"""The loop against plain PyTorch written by hand, and its switches: accumulation, precision, early stop, divergence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from engine import registry
from engine.catalog import Catalog
from engine.errors import AthanorError, RecipeError
from engine.parts import Batch, Progress
from engine.recipe import Recipe, merge
from engine.training import checkpoint
from engine.training.assemble import assemble, filled, total_steps
from engine.training.data import Columns, Shuffled
from engine.training.loop import Outcome, Trainer, train
from engine.training.recorder import Memory, Recorder

CATALOG: Catalog = registry.catalog()
BASE: dict[str, Any] = {
    "task": {"use": "two-moons"},
    "model": {"use": "mlp", "hidden": [16]},
    "optimizer": {"use": "sgd", "lr": 0.1, "momentum": 0.9},
    "training": {"batch_size": 50},
    "budget": {"epochs": 2},
}


def document(**patch: Any) -> dict[str, Any]:
    return filled(Recipe.of(merge(BASE, patch)), CATALOG)


def run(sink: Memory | None = None, folder: Path | None = None, **patch: Any) -> Outcome:
    return train(document(**patch), sink, folder)


def by_hand(recipe: dict[str, Any]) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The same run, as a person would write it, from the same start and in the same order."""
    made = assemble(recipe, Recorder(Memory()))
    model, stream = made.model, made.stream
    assert stream is not None and made.steps is not None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    losses = []
    for _ in range(made.steps):
        batch = stream.next()
        loss = F.cross_entropy(model(batch.x), batch.target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model.state_dict(), losses


def test_it_is_the_plain_loop() -> None:
    sink = Memory()
    outcome = run(sink)
    weights, losses = by_hand(document())
    assert outcome.weights == checkpoint.fingerprint(weights)
    steps, logged = sink.points["train/loss"]
    assert steps == list(range(len(losses)))
    assert logged == pytest.approx(losses, rel=1e-6), "a mean of per-sample losses may round the last bit otherwise"
    assert outcome.state == "done" and outcome.steps == len(losses)


def test_accumulation_is_the_whole_batch() -> None:
    whole, split = Memory(), Memory()
    run(whole)
    run(split, training={"batch_size": 50, "accumulate": 3})
    ends = [sink.points["val/loss"][1][-1] for sink in (whole, split)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)
    assert [len(sink.points["lr"][0]) for sink in (whole, split)] == [outcome_steps(whole)] * 2


def outcome_steps(sink: Memory) -> int:
    return len(sink.points["lr"][0])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains_as_well(precision: str) -> None:
    full = run(budget={"epochs": 8}).metrics["val/loss"]
    low = run(training={"batch_size": 50, "precision": precision}, budget={"epochs": 8}).metrics["val/loss"]
    assert low == pytest.approx(full, rel=0.1)
    assert low != full


def test_compiled_equals_eager_or_says_why_not() -> None:
    sink = Memory()
    short: dict[str, Any] = {"budget": {"epochs": 0, "steps": 4}}
    training = {"batch_size": 50, "evaluate_every": 0}
    compiled = run(sink, training={**training, "compile": True}, **short)
    notes = [event["text"] for event in sink.events]
    assert compiled.metrics["val/loss"] == pytest.approx(run(training=training, **short).metrics["val/loss"], rel=1e-3)
    assert not notes or "without it" in notes[0]


def test_budgets() -> None:
    assert run(budget={"epochs": 0, "steps": 5}).steps == 5
    assert run(budget={"epochs": 1000, "steps": 0, "seconds": 0.2}).seconds == pytest.approx(0.2, abs=0.3)
    assert total_steps({"epochs": 1.5, "steps": 0, "seconds": 0}, 10) == 15
    assert total_steps({"epochs": 3, "steps": 7, "seconds": 0}, 10) == 7
    assert total_steps({"epochs": 0, "steps": 0, "seconds": 9}, 10) is None
    assert total_steps({"epochs": 0, "steps": 0, "seconds": 0}, 10) == 100


def test_early_stop_ends_when_the_series_no_longer_improves() -> None:
    sink = Memory()
    training = {"batch_size": 50, "early_stop": "val/loss", "patience": 2}
    outcome = run(sink, optimizer={"lr": 1e-12}, training=training, budget={"epochs": 50})
    assert outcome.state == "done"
    losses = sink.points["val/loss"][1]
    assert 3 <= len(losses) <= 6, "the first evaluation, two without improvement, and the one at the end"
    assert "has not improved for 2 evaluations" in sink.events[0]["text"]
    with pytest.raises(AthanorError, match=r'"val/nothing" is not measured here. There are val/'):
        run(training={"early_stop": "val/nothing"})


def test_divergence_names_its_step_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    sink = Memory()
    outcome = run(sink, tmp_path, optimizer={"lr": 1e30}, budget={"epochs": 40})
    assert outcome.state == "diverged"
    steps, losses = sink.points["train/loss"]
    first = next(s for s, v in zip(steps, losses, strict=True) if not math.isfinite(v))
    assert f"at step {first}." in outcome.message
    kept = checkpoint.newest(tmp_path)
    assert kept is not None and kept["step"] <= first
    assert all(torch.isfinite(value).all() for value in kept["model"].values())


def test_stop_and_pause_requests(tmp_path: Path) -> None:
    class Asking(Memory):
        def run(self, **columns: Any) -> None:
            super().run(**columns)
            states.append(columns.get("state", states[-1] if states else ""))
            if columns.get("state") == "training" and "message" in columns and "steps" in columns:
                self.requested = "pause"
            elif columns.get("state") == "paused":
                self.answered("pause")
                self.requested = "resume"
            elif columns.get("state") == "training":
                self.answered("resume")
                self.requested = "stop"

        def answered(self, verb: str) -> None:
            if verb != "pause" or self.requested == "pause":
                super().answered(verb)

    states: list[str] = []
    outcome = run(Asking(), tmp_path, budget={"epochs": 10_000})
    order = [state for state, before in zip(states, ["", *states], strict=False) if state != before and state]
    assert order == ["training", "paused", "training", "stopped"]
    assert outcome.state == "stopped"
    assert checkpoint.newest(tmp_path)["step"] == outcome.steps  # type: ignore[index]


def test_a_branch_keeps_its_own_settings(tmp_path: Path) -> None:
    run(folder=tmp_path)
    state = checkpoint.newest(tmp_path)
    assert state is not None
    sink = Memory()
    changed = document(optimizer={"lr": 0.025}, budget={"epochs": 4})
    outcome = train(changed, sink, None, lambda trainer: trainer.load(state, branch=True))
    assert sink.points["lr"][1] == [0.025] * (outcome.steps - state["step"])
    assert sink.points["train/loss"][0][0] == state["step"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run(folder=tmp_path)
    state = checkpoint.newest(tmp_path)
    assert state is not None
    with pytest.raises(AthanorError, match="does not fit this recipe"):
        train(document(model={"hidden": [17]}), None, None, lambda trainer: trainer.load(state))


def test_the_same_order_after_a_load_in_mid_epoch() -> None:
    task = registry.build(document()["task"])
    task.load()
    columns = Columns(task, "train", torch.device("cpu"))

    def stream() -> Shuffled:
        return Shuffled(columns, 48, torch.Generator().manual_seed(3))

    whole, part = stream(), stream()
    for taken in range(2 * whole.batches + 3):
        state = part.state()
        fresh = stream()
        fresh.load(state)
        expected = whole.next()
        for batch in (part.next(), fresh.next()):
            assert torch.equal(batch.index, expected.index), taken
            assert torch.equal(batch.x, expected.x)


def test_an_epoch_is_every_sample_once() -> None:
    made = assemble(document(), Recorder(Memory()))
    assert made.stream is not None
    seen = torch.cat([made.stream.next().index for _ in range(made.stream.batches)])
    assert sorted(seen.tolist()) == list(range(made.samples))


def test_evaluation_is_the_mean_over_the_split_and_leaves_no_trace() -> None:
    made = assemble(document(), Recorder(Memory()))
    rng, mode = torch.get_rng_state(), made.model.training
    found = made.evaluate("val")
    columns = made.columns("val")
    with torch.no_grad():
        output = made.model(columns["x"])
    assert found["loss"] == pytest.approx(F.cross_entropy(output, columns["target"]).item(), rel=1e-6)
    assert found["accuracy"] == pytest.approx((output.argmax(1) == columns["target"]).double().mean().item(), abs=1e-12)
    assert torch.equal(torch.get_rng_state(), rng) and made.model.training == mode


def test_weighted_batches_weigh_their_terms() -> None:
    from engine.training.oracle import total_of

    term, weight = torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0])
    assert total_of({"a": term, "b": torch.tensor(2.0)}, weight).item() == pytest.approx(1.5 + 2.0)


def test_an_optimizer_that_calls_its_closure_reaches_the_minimum() -> None:
    """L-BFGS on logistic regression, full batch: a gradient of nearly zero after few steps."""
    sink = Memory()
    size = 10_000
    run(
        sink,
        model={"hidden": []},
        optimizer={"use": "lbfgs", "lr": 1.0},
        training={"batch_size": size},
        budget={"epochs": 0, "steps": 12},
    )
    losses = sink.points["train/loss"][1]
    slow = Memory()
    run(
        slow,
        model={"hidden": []},
        optimizer={"lr": 0.5},
        training={"batch_size": size},
        budget={"epochs": 0, "steps": 2000},
    )
    assert losses[-1] == pytest.approx(slow.points["train/loss"][1][-1], abs=1e-4)


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        ({"task": {"use": "python-text"}}, "tokens"),
        ({"training": {"device": "cuda:7"}}, "is not a device here"),
        ({"budget": {"epochs": 0, "seconds": 5}, "schedule": {"use": "cosine"}}, "number of steps"),
        (
            {"budget": {"epochs": 0, "seconds": 5}, "techniques": [{"use": "progressive-gradient-flow-nm"}]},
            "number of steps",
        ),
    ],
)
def test_what_clashes_is_refused_in_a_sentence(patch: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        run(**patch)
    assert all(str(problem).endswith(".") for problem in caught.value.problems)


def test_progress() -> None:
    assert Progress(0, 11).fraction == 0.0
    assert Progress(10, 11).fraction == 1.0
    assert Progress(5, None).fraction == 0.0


def test_micro_batches_keep_every_field() -> None:
    from engine.training.loop import _split

    x, meta = torch.arange(7.0), torch.arange(7) * 2
    batch = Batch({"x": x}, x + 1, torch.arange(7), "train", x + 2, None, {"group": meta})
    parts = _split(batch, 3)
    assert [len(part) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([p.x for p in parts]), x)
    assert torch.equal(torch.cat([p.weight for p in parts]), x + 2)
    assert torch.equal(torch.cat([p.meta["group"] for p in parts]), meta)


def test_trainer_without_a_folder_keeps_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = assemble(document(budget={"epochs": 0, "steps": 1}), Recorder(Memory()))
    Trainer(made).train()
    assert list(tmp_path.iterdir()) == []


def test_what_needs_the_output_is_refused_where_the_procedure_has_none() -> None:
    silent = {"task": {"use": "digits"}, "procedure": {"use": "collaborative-forward-forward"}}
    for section, use in (
        ("techniques", "label-smoothing"),
        ("techniques", "elr"),
        ("probes", "pgd-robustness"),
        ("probes", "filter-normalized-landscape"),
    ):
        with pytest.raises(RecipeError, match="the output of the step, which collaborative-forward-forward does not"):
            run(**silent, **{section: [{"use": use}]})


def test_what_acts_on_a_role_that_is_not_made_is_refused() -> None:
    silent = {"task": {"use": "digits"}, "procedure": {"use": "collaborative-forward-forward"}}
    for use in ("gradient-clipping", "gradient-noise", "switch-ema"):
        with pytest.raises(RecipeError, match="acts on the updates of main, which collaborative-forward-forward does"):
            run(**silent, techniques=[{"use": use}])
    spared = [{"use": "weight-decay-exclusions"}]
    assert run(**silent, techniques=spared, budget={"steps": 3}).state == "done", "it acts on groups, not on updates"


def test_losses_of_all_roles_are_watched_where_there_is_no_main_one() -> None:
    sink = Memory()
    silent = {"task": {"use": "digits"}, "procedure": {"use": "collaborative-forward-forward"}}
    run(sink, **silent, model={"hidden": [16, 16]}, budget={"steps": 4})
    sums = [sum(values) for values in zip(*(sink.points[f"layer{i}/loss"][1] for i in (0, 1)), strict=True)]
    assert sink.points["train/loss"][1] == pytest.approx(sums, rel=1e-6)


def test_a_mask_on_a_mask_is_a_problem_of_the_recipe() -> None:
    twice = [{"use": "progressive-gradient-flow-nm", "n": 2, "m": 4}] * 2
    with pytest.raises(RecipeError) as caught:
        run(task={"use": "digits"}, model={"hidden": [16, 16]}, techniques=twice)
    assert caught.value.problems[0].path == "techniques.1"
