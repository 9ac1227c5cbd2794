"""The split that hyperparameters are tuned on: set apart from the training samples, streamed, resumed, asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine import registry
from engine.errors import AthanorError, RecipeError
from engine.parts import Batch, Procedure, info, procedure
from engine.recipe import Recipe, merge
from engine.training import checkpoint
from engine.training.assemble import assemble, build_task, filled
from engine.training.loop import Trainer, train
from engine.training.preview import preview
from engine.training.recorder import Memory, Recorder
from engine.training.run import Run

BASE: dict[str, Any] = {
    "task": {"use": "digits", "label_noise": 0.3},
    "model": {"use": "mlp", "hidden": [8]},
    "training": {"batch_size": 50, "outer": 0.25},
    "budget": {"steps": 7},
}


def document(**patch: Any) -> dict[str, Any]:
    return filled(Recipe.of(merge(BASE, patch)))


def made(**patch: Any) -> Run:
    return assemble(document(**patch), Recorder(Memory()))


def rows(columns: dict[str, torch.Tensor]) -> list[bytes]:
    """One word a sample: its image and labels."""
    flat = [t.flatten(1) if t.dim() > 1 else t[:, None] for t in columns.values()]
    return sorted(row.numpy().tobytes() for row in torch.cat([f.double() for f in flat], 1))


def test_train_and_outer_are_the_stored_training_samples_once_each() -> None:
    whole, parted = build_task(document(training={"outer": 0.0})), build_task(document())
    assert rows(whole.split("train")) == sorted(rows(parted.split("train")) + rows(parted.split("outer")))
    assert not set(rows(parted.split("train"))) & set(rows(parted.split("outer")))
    for split in ("val", "test"):
        assert rows(whole.split(split)) == rows(parted.split(split))
    assert whole.size("outer") == 0


def test_each_class_gives_its_share() -> None:
    task = build_task(document(task={"imbalance": 0.7}))
    kept, apart = (task.split(name)["target"].bincount(minlength=10) for name in ("train", "outer"))
    assert torch.equal(apart, ((kept + apart) * 0.25).round().long())


def test_the_draw_is_the_runs_own() -> None:
    outer = [build_task(document(seed=seed)).split("outer")["x"] for seed in (0, 0, 1)]
    assert torch.equal(outer[0], outer[1]) and not torch.equal(outer[0], outer[2])


def test_numbers_and_tokens_are_set_apart_too() -> None:
    for task in ({"use": "tabular", "dataset": "diabetes"}, {"use": "python-text", "characters": 20000}):
        parted = build_task(document(task=task, model={"use": "recurrent"}))
        share = parted.size("outer") / (parted.size("outer") + parted.size("train"))
        assert share == pytest.approx(0.25, abs=0.01)


def test_the_loop_and_the_preview_count_what_is_left() -> None:
    run = made()
    left = build_task(document()).size("train")
    assert run.samples == left == run.stream.columns.size  # type: ignore[union-attr]
    shown = preview(Recipe.of(BASE).text())
    assert shown["data"]["splits"]["train"] == left and shown["steps_per_epoch"] == run.steps_per_epoch
    sink = Memory()
    outcome = train(document(), sink)
    assert "outer/loss" in outcome.metrics and "outer/accuracy" in sink.points


def test_two_splits_for_one_purpose_and_empty_ones_are_refused() -> None:
    with pytest.raises(RecipeError, match="keeps 359 samples apart for tuning") as caught:
        build_task(document(task={"outer": 0.2}))
    assert caught.value.problems[0].path == "training.outer"
    with pytest.raises(RecipeError, match="leaves nothing for one of the two splits"):
        build_task(document(training={"outer": 0.0001}))
    assert build_task(document(task={"outer": 0.2}, training={"outer": 0.0})).size("outer") == 359


@procedure(id="tuning", name="Tuning")
class Tuning(Procedure):
    """Trains on the loop's batches and looks at batches of the outer split."""

    needs_outer = True

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def setup(self, run: Run) -> None:
        self._stream = run.stream_of("outer", "tuning", 32)

    def step(self, run: Run, batch: Batch) -> Any:
        for _ in range(3):
            self.seen.append(self._stream.next().index.tolist())
        output = run.forward(batch)
        run.update("main", run.terms(output, batch))
        return output


@pytest.fixture
def tuning(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found = {**registry.classes(), "tuning": Tuning}
    monkeypatch.setattr(registry, "classes", lambda: found)
    assert info(Tuning).id == "tuning"
    return {"procedure": {"use": "tuning"}}


def test_what_tunes_is_refused_without_the_split_and_works_with_it(tuning: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"write training\.outer = 0\.2") as caught:
        train(document(**tuning, training={"outer": 0.0}))
    assert caught.value.problems[0].path == "procedure"
    assert train(document(**tuning)).state == "done"
    assert train(document(**tuning, training={"outer": 0.0}, task={"outer": 0.1})).state == "done"


def test_a_further_stream_is_shuffled_apart_and_goes_on_where_it_was(tuning: dict[str, Any], tmp_path: Path) -> None:
    whole: list[list[int]] = []
    train(document(**tuning), None, None, lambda trainer: whole.append(trainer.run.procedure.seen))  # type: ignore
    (seen,) = whole
    assert sorted(i for batch in seen[:10] for i in batch) == list(range(build_task(document()).size("outer")))
    assert len(seen) == 21 and seen[0] != seen[10], "a second epoch has another order"

    def stop(trainer: Trainer) -> None:
        trainer.run.end = 4  # in the middle of the outer split's second epoch

    train(document(**tuning), None, tmp_path, stop)
    again: list[list[list[int]]] = []

    def load(trainer: Trainer) -> None:
        trainer.load(checkpoint.newest(tmp_path))  # type: ignore[arg-type]
        again.append(trainer.run.procedure.seen)  # type: ignore[attr-defined]

    trained = train(document(**tuning), None, None, load)
    assert again[0] == seen and trained.weights == train(document(**tuning)).weights


def test_streams_of_one_split_are_told_apart_by_name_and_leave_the_loops_alone() -> None:
    run = made()
    first, second = run.stream_of("outer", "a"), run.stream_of("outer", "b")
    assert run.stream_of("outer", "a") is first and first is not second
    assert first.next().index.tolist() != second.next().index.tolist()
    assert first.next().split == "outer"
    assert torch.equal(run.stream.next().index, made().stream.next().index)  # type: ignore[union-attr]
    with pytest.raises(AthanorError, match="no samples in the split 'outer'"):
        made(training={"outer": 0.0}).stream_of("outer")
