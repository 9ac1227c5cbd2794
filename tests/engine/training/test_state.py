"""The one mechanism of saving a part's state, and checkpoint files that are whole or not there."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engine.errors import CheckpointError
from engine.training import checkpoint
from engine.training.state import capture, restore

CPU = torch.device("cpu")


class Part:
    def __init__(self, rate: float = 1.0):
        self.rate = rate
        self.table = torch.zeros(3)
        self.generator = torch.Generator().manual_seed(1)
        self.net = nn.Linear(2, 2)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        self.seen: dict[Any, Any] = {3: [1, 2.5], "pair": (torch.ones(2), None)}
        self.names = {"b", "a"}
        self.score = np.float64(0.5)
        self.grid = np.arange(6).reshape(2, 3)
        self._scratch = object()


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_everything_that_a_part_keeps_comes_back() -> None:
    part = Part()
    part.table += 7
    part.net(torch.ones(1, 2)).sum().backward()
    part.optimizer.step()
    torch.rand(3, generator=part.generator)
    part.seen[9] = "new"
    state = through_a_file(capture(part))
    expected = torch.rand(2, generator=part.generator)
    fresh = Part(rate=2.0)
    restore(fresh, state, CPU)
    assert torch.equal(fresh.table, part.table)
    assert torch.equal(torch.rand(2, generator=fresh.generator), expected)
    assert torch.equal(fresh.net.weight, part.net.weight)
    momentum = fresh.optimizer.state[fresh.net.weight]["momentum_buffer"]
    assert torch.equal(momentum, part.optimizer.state[part.net.weight]["momentum_buffer"])
    assert fresh.seen[3] == [1, 2.5] and fresh.seen[9] == "new" and torch.equal(fresh.seen["pair"][0], torch.ones(2))
    assert isinstance(fresh.seen["pair"], tuple) and fresh.names == {"a", "b"} and fresh.score == 0.5
    assert (fresh.grid == part.grid).all()
    assert fresh.rate == 2.0, "settings come from the recipe, not from the checkpoint"


def test_what_cannot_be_saved_is_refused_by_name() -> None:
    part = Part()
    part.callback = lambda: None  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match=r"Part\.callback is a function"):
        capture(part)


def test_files_are_whole_or_absent(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        checkpoint.save(checkpoint.step_file(tmp_path, step), {"step": step})
    checkpoint.prune(tmp_path, 2)
    assert [step for step, _ in checkpoint.step_files(tmp_path)] == [10, 15]
    newest = checkpoint.step_file(tmp_path, 15)
    newest.write_bytes(newest.read_bytes()[:-200])
    assert checkpoint.newest(tmp_path)["step"] == 10  # type: ignore[index]
    checkpoint.step_file(tmp_path, 10).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.newest(tmp_path)
    assert not list(tmp_path.glob("*.part"))
    assert newest.stat().st_mode & 0o077 == 0


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"format": checkpoint.FORMAT, "x": Evil()}, tmp_path / "step-000000001.pt")
    with pytest.raises(CheckpointError):
        checkpoint.newest(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_fingerprint_sees_names_shapes_types_and_bits() -> None:
    one = {"w": torch.zeros(2, 2)}
    marks = {
        checkpoint.fingerprint(state)
        for state in (
            one,
            {"v": torch.zeros(2, 2)},
            {"w": torch.zeros(4)},
            {"w": torch.zeros(2, 2).half()},
            {"w": -torch.zeros(2, 2)},
        )
    }
    assert len(marks) == 5
    assert checkpoint.fingerprint({"w": torch.zeros(2, 2).t()}) == checkpoint.fingerprint(one)


class Counter:
    """An object that says its state by itself."""

    def __init__(self) -> None:
        self.world = object()  # cannot be saved, and need not be
        self.count = torch.zeros(2)

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "deep": [{3: (1, "a")}]}

    def load(self, state: dict[str, Any]) -> None:
        assert state["deep"] == [{3: (1, "a")}]
        self.count = state["count"]


def test_an_object_with_a_state_of_its_own_is_saved_by_it_and_filled_in_place() -> None:
    class Holder:
        def __init__(self) -> None:
            self.one, self.many = Counter(), [Counter(), Counter()]

    before, after = Holder(), Holder()
    before.one.count += 3
    before.many[1].count += 5
    kept, world = after.many[1], after.one.world
    restore(after, through_a_file(capture(before)), CPU)
    assert after.one.count.tolist() == [3, 3] and after.many[1].count.tolist() == [5, 5]
    assert after.many[1] is kept and after.one.world is world
