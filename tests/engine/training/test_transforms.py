"""What the engine does for transforms: order, measures, files, refusals; and that the run knows nothing of them."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine import registry
from engine.errors import AthanorError, RecipeError
from engine.log import Log
from engine.parts import Batch, Transform, Transformed, info, transform
from engine.recipe import Recipe, merge
from engine.training import checkpoint
from engine.training.assemble import assemble, filled
from engine.training.clerk import answer
from engine.training.loop import Trainer, train
from engine.training.measure import by_the_clock
from engine.training.recorder import Memory, Recorder
from engine.training.transforms import copy_of, difference, seconds
from engine.training.worker import work
from engine.workspace import Workspace


@transform()
class Raise(Transform):
    """Adds a number to every answer."""

    def __init__(self, by: float = 0.5):
        self.by = by

    def apply(self, model: nn.Module, sample: Batch) -> Transformed:
        assert not model.training and sample.split == "train" and len(sample) == 256
        with torch.no_grad():
            model.head.bias.add_(self.by)  # type: ignore[operator, union-attr]
        return Transformed(model, {"by": self.by}, figures={"one": {"kind": "text", "text": "raised"}})


@transform()
class Halve(Transform):
    """Keeps the head in half the bytes, with half the gain, and draws random numbers while it does."""

    def apply(self, model: nn.Module, sample: Batch) -> Transformed:
        torch.rand(3)
        model(sample.x).sum().backward()
        model.head = HalfHead(model.head)
        return Transformed(model)


class HalfHead(nn.Module):
    def __init__(self, head: Any):
        super().__init__()
        self.weight = nn.Parameter(head.weight.detach().half() / 2)
        self.bias = nn.Parameter(head.bias.detach().half() / 2)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.float().T + self.bias.float()


@transform()
class Write(Transform):
    """Makes a file and nothing else."""

    def apply(self, model: nn.Module, sample: Batch) -> Transformed:
        return Transformed(None, files={"weights.bin": b"12345"})


@transform()
class Refuse(Transform):
    """Cannot do it, or gives another shape back."""

    def __init__(self, shape: bool = False):
        self.shape = shape

    def apply(self, model: nn.Module, sample: Batch) -> Transformed:
        if self.shape:
            return Transformed(nn.Sequential(model, nn.Flatten(0)))
        raise ValueError("it has no use for this model.")


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    everything = {**registry.classes(), **{info(cls).id: cls for cls in (Raise, Halve, Write, Refuse)}}
    monkeypatch.setattr(registry, "classes", lambda: everything)
    yield


BASE: dict[str, Any] = {
    "task": {"use": "two-moons"},
    "model": {"use": "mlp", "hidden": [8]},
    "optimizer": {"use": "sgd", "lr": 0.1},
    "budget": {"epochs": 1},
}


def document(*transforms: Any, **patch: Any) -> dict[str, Any]:
    uses = [{"use": use} if isinstance(use, str) else use for use in transforms]
    return filled(Recipe.of(merge(BASE, {"transforms": uses, **patch})), registry.catalog())


def test_they_follow_each_other_and_are_measured(tmp_path: Path) -> None:
    sink = Memory()
    outcome = train(document({"use": "raise", "by": 0.25}, "halve", {"use": "raise", "by": 2.0}), sink, tmp_path)
    found = {name.removeprefix("transform/"): v for name, v in outcome.metrics.items() if name.startswith("transform/")}
    assert found["raise/error"] == pytest.approx(0.25) and found["raise/by"] == 0.25
    assert found["raise/val/accuracy_before"] == found["raise/val/accuracy_after"] == outcome.metrics["val/accuracy"]
    assert found["raise/parameters_before"] == found["raise/parameters_after"] == 8 * 3 + 2 * 9
    assert found["raise/bytes_before"] == 4 * 42 and found["halve/bytes_after"] == 4 * 24 + 2 * 18
    assert found["halve/error_relative"] == pytest.approx(0.5, rel=1e-2)
    assert found["halve/test/loss_before"] == found["raise/test/loss_after"]
    assert found["raise-2/test/loss_before"] == found["halve/test/loss_after"], "each takes what the last one made"
    for name in ("one", "batch"):
        ratio = found[f"halve/seconds_{name}_before"] / found[f"halve/seconds_{name}_after"]
        assert found[f"halve/speedup_{name}"] == ratio > 0
    assert sink.points["transform/raise/error"] == ([outcome.steps], [found["raise/error"]])
    assert [f["probe"] for f in sink.figures] == ["raise", "raise"]
    said = [event["text"] for event in sink.events if event["kind"] == "transform"]
    assert "raise: 168 -> 168 bytes; 42 -> 42 parameters; outputs differ by 0.25 at most" in said[0]


def test_what_they_make_is_kept_beside_the_checkpoints(tmp_path: Path) -> None:
    sink = Memory()
    outcome = train(document("raise", "write"), sink, tmp_path)
    names = sorted(path.name for path in tmp_path.glob("transform-*"))
    assert names == ["transform-1-raise.pt", "transform-2-write-weights.bin"]
    assert (tmp_path / names[1]).read_bytes() == b"12345"
    assert outcome.metrics["transform/write/bytes_after"] == 5 and "transform/write/error" not in outcome.metrics
    kept, last = checkpoint.load(tmp_path / names[0]), checkpoint.newest(tmp_path)
    assert last is not None and kept["step"] == outcome.steps
    torch.testing.assert_close(kept["model"]["head.bias"], last["model"]["head.bias"] + 0.5)
    (row,) = [row for row in sink.columns["checkpoints"] if row["name"] == "transform-1-raise"]
    assert not row["whole"] and row["step"] == outcome.steps


def test_one_that_cannot_be_applied_ends_the_chain_and_not_the_run() -> None:
    for use, words in (("refuse", "it has no use"), ({"use": "refuse", "shape": True}, "in another shape")):
        sink = Memory()
        outcome = train(document(use, "raise"), sink)
        assert outcome.state == "done"
        assert not any(name.startswith("transform/raise") for name in outcome.metrics)
        (event,) = [event for event in sink.events if event["kind"] == "transform"]
        assert event["level"] == "warning" and words in event["text"] and "left out" in event["text"]


def test_one_that_is_switched_off_does_nothing() -> None:
    outcome = train(document({"use": "raise", "enabled": False}))
    assert not any(name.startswith("transform/") for name in outcome.metrics)


def test_a_model_that_does_not_answer_by_itself_is_refused() -> None:
    patch = {"task": {"use": "digits"}, "procedure": {"use": "collaborative-forward-forward"}}
    with pytest.raises(RecipeError, match="reads the output of the step, which collaborative-forward-forward does not"):
        assemble(document("raise", **patch), Recorder(Memory()))


def test_the_weights_measured_are_those_of_the_run_at_its_end() -> None:
    made = Trainer(assemble(document("raise"), Recorder(Memory())))
    outcome = made.train()
    assert made.run.evaluate("test")["loss"] == outcome.metrics["transform/raise/test/loss_before"]
    assert made.run.model.training


# -- measuring ---------------------------------------------------------------------------------------------------------


class Slow(nn.Module):
    def __init__(self, pause: float):
        super().__init__()
        self.pause = pause

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.pause)
        return x


def a_batch(x: Tensor) -> Batch:
    return Batch({"x": x}, None, torch.arange(len(x)))


def test_time_is_that_of_a_pass() -> None:
    slow, fast = seconds(Slow(0.02), Slow(0.005), a_batch(torch.ones(1, 1)))
    assert 0.02 <= slow < 0.2 and 0.005 <= fast < slow


def test_the_difference_is_the_largest_of_any_output_in_any_batch() -> None:
    class Two(nn.Module):
        def __init__(self, add: float):
            super().__init__()
            self.add = add

        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"a": x, "b": [x * 3, torch.where(x == 2, x + self.add, x)]}

    batches = [a_batch(torch.tensor([[value]])) for value in (1.0, 2.0, -4.0)]
    assert difference(Two(0.0), Two(0.7), batches) == (pytest.approx(0.7), 12.0)


def test_times_are_known_by_their_names() -> None:
    times = ("throughput", "seconds/evaluation", "transform/x/seconds_one_after", "transform/x/speedup_batch")
    assert all(map(by_the_clock, times))
    assert not any(map(by_the_clock, ("transform/x/error", "val/loss", "sparsity", "speedups/x")))


def test_a_copy_shares_nothing_with_the_model() -> None:
    model = nn.Linear(2, 2)
    model.kept = model(torch.ones(1, 2))  # type: ignore[assignment]
    model.rng = torch.Generator().manual_seed(3)  # type: ignore[assignment]
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)
    twin = copy_of(model)
    assert torch.equal(twin.kept, model.kept.detach()) and not twin.kept.requires_grad  # type: ignore[union-attr, operator]
    assert torch.equal(twin.weight, model.weight) and twin.weight is not model.weight  # type: ignore[arg-type]
    assert torch.rand(1, generator=twin.rng) == torch.rand(1, generator=model.rng)  # type: ignore[call-overload]


# -- on a saved run ----------------------------------------------------------------------------------------------------


def test_a_saved_run_is_transformed_and_stays_as_it_was(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    recipe = Recipe.of({**BASE, "transforms": [{"use": "write"}]}).text()
    with Log(workspace.database) as log:
        run = log.create_run(recipe, state="starting")
        work(workspace, run)
        folder = workspace.run_folder(run)
        before, files = log.run(run) or {}, {path.name: path.read_bytes() for path in folder.iterdir()}
        found = answer({"verb": "transform", "run": run, "transform": {"use": "raise", "by": 0.125}}, workspace)
        assert found["scalars"]["transform/raise/error"] == pytest.approx(0.125)
        after = log.run(run) or {}
        assert {key for key in before if before[key] != after[key]} <= {"heartbeat", "checkpoints"}
        assert {row["name"] for row in after["checkpoints"]} - {row["name"] for row in before["checkpoints"]} == {
            "transform-2-raise"
        }
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name in files} == files
        series = {info.name: info.last_value for info in log.series(run)}
        assert series["transform/raise/error"] == found["scalars"]["transform/raise/error"]
        assert any("raise: 168 -> 168 bytes" in event["text"] for event in log.events(run))
    with pytest.raises(AthanorError, match="refuse could not be applied: it has no use for this model"):
        answer({"verb": "transform", "run": run, "transform": {"use": "refuse"}}, workspace)
