"""Batches from a task's columns: on the device, in an order that a generator owns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.kit.supervised import split_indices
from engine.parts import Batch, Sampler, Task
from engine.training.random import derive_seed
from engine.training.state import capture, restore

# Rows are gathered a block of batches at a time: one gather serves many batches, and memory stays bounded.
BLOCK_BYTES = 32 << 20


def set_apart(task: Task, share: float, seed: int) -> None:
    """Splits a share off a loaded task's training samples as the split "outer", by class where there are classes.

    The draw is the run's own. Validation and test stay untouched: what is tuned on the outer split leaks into neither.
    Raises ValueError where the task has such a split already, or one of the two would be empty.
    """
    task.apart = None
    if not share:
        return
    if task.stream != "rows":
        raise ValueError("Nothing can be kept apart of a task whose training samples are no stored rows.")
    if task.size("outer"):
        raise ValueError(
            f"The task keeps {task.size('outer')} samples apart for tuning; write outer = 0 here or in the task."
        )
    target = task.columns("train").get("target")
    labels = target if target is not None and target.dim() == 1 and not target.is_floating_point() else None
    rng = torch.Generator().manual_seed(derive_seed(seed, "outer split"))
    labels = labels.cpu() if labels is not None else None
    rows = {
        name: index.sort().values
        for name, index in split_indices(task.size("train"), labels, {"outer": share}, rng).items()
    }
    if set(rows) != {"train", "outer"}:
        raise ValueError(
            f"A share of {share:g} of {task.size('train')} training samples leaves nothing for one of the two splits."
        )
    task.apart = rows


class Columns:
    """One split of a task on a device."""

    def __init__(self, task: Task, split: str, device: torch.device):
        self.split = split
        columns = task.split(split)
        self.tensors = {name: column.to(device) for name, column in columns.items()}
        self.size = len(next(iter(self.tensors.values()))) if self.tensors else 0
        self.row_bytes = max(sum(t[0].numel() * t.element_size() for t in self.tensors.values()), 1) if self.size else 1
        self.index = torch.arange(self.size, device=device)

    def rows(self, order: Tensor | None) -> dict[str, Tensor]:
        """The rows in that order (all of them when None), with their indices."""
        if order is None:
            return {**self.tensors, "index": self.index}
        return {**{name: t.index_select(0, order) for name, t in self.tensors.items()}, "index": order}

    def batch(self, rows: dict[str, Tensor], start: int, stop: int) -> Batch:
        """A batch of views into gathered rows."""
        cut = {name: tensor[start:stop] for name, tensor in rows.items()}
        return batch_of(cut, self.split)

    def in_order(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """All rows as they are stored."""
        end = self.size if limit is None else min(limit, self.size)
        rows = self.rows(None)
        for start in range(0, end, size):
            yield self.batch(rows, start, min(start + size, end))


def batch_of(columns: dict[str, Tensor], split: str) -> Batch:
    """A batch of whole columns, which hold "index" too."""
    index, target = columns.pop("index"), columns.pop("target", None)
    weight, mask = columns.pop("weight", None), columns.pop("mask", None)
    meta = {name[5:]: columns.pop(name) for name in list(columns) if name.startswith("meta.")}
    made = Batch(columns, target, index, split, weight, mask, meta)
    if made.asked is not None:
        made.weight = made.asked.float() if weight is None else weight * made.asked
    return made


def blank(device: torch.device, split: str = "train") -> Batch:
    """The batch of a task without samples: it stands for the one problem that there is."""
    return Batch({}, None, torch.zeros(1, dtype=torch.long, device=device), split)


class Stream(Protocol):
    """Training batches without end, in epochs of equal length; saved and loaded in the middle of one."""

    batch_size: int

    @property
    def experience(self) -> int:
        """The experience that the last batch is from, 0 where the data come in none."""

    @property
    def experience_ended(self) -> bool:
        """Whether the last batch was the last one of its experience."""

    @property
    def batches(self) -> int:
        """Batches in one epoch."""

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last batch was the last one of its epoch."""

    def next(self) -> Batch: ...
    def state(self) -> dict[str, Any]: ...
    def load(self, state: dict[str, Any]) -> None: ...


class Shuffled:
    """A stream that takes each sample once an epoch, in a new order; the last batch of an epoch may be smaller.

    Its state is the generator's state at the start of the epoch and the batches taken since, so that a resumed run
    goes on in the middle of an epoch with the very batch that would have come.
    """

    experience = 0
    experience_ended = False

    def __init__(self, columns: Columns, batch_size: int, generator: torch.Generator):
        self.columns = columns
        self.batch_size = min(batch_size, columns.size)
        self.generator = generator
        self.epoch = 0
        self.taken = 0
        self._epoch_state = generator.get_state()
        self._order: Tensor | None = None
        self._block: dict[str, Tensor] = {}
        self._block_start = 0

    @property
    def batches(self) -> int:
        """Batches in one epoch."""
        return -(-self.columns.size // self.batch_size)

    @property
    def at_epoch_end(self) -> bool:
        return self.taken == self.batches

    def next(self) -> Batch:
        """The next batch; begins a new epoch where the last one has ended."""
        if self._order is None or self.at_epoch_end:
            if self._order is not None:
                self.epoch += 1
            self._start_epoch()
            self.taken = 0
        start = self.taken * self.batch_size
        stop = min(start + self.batch_size, self.columns.size)
        if stop > self._block_start + len(self._block.get("index", ())) or start < self._block_start:
            self._gather(start)
        self.taken += 1
        return self.columns.batch(self._block, start - self._block_start, stop - self._block_start)

    def _start_epoch(self) -> None:
        self._epoch_state = self.generator.get_state()
        self._order = torch.randperm(self.columns.size, generator=self.generator, device=self.generator.device)
        self._block, self._block_start = {}, 0

    def _gather(self, start: int) -> None:
        assert self._order is not None
        count = max(BLOCK_BYTES // (self.columns.row_bytes * self.batch_size), 1) * self.batch_size
        self._block_start = start
        self._block = self.columns.rows(self._order[start : start + count])

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "taken": self.taken, "generator": self._epoch_state}

    def load(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"].cpu())
        self.epoch = state["epoch"]
        self._start_epoch()
        self.taken = state["taken"]
        if self.taken == 0:  # not begun: the epoch's order is drawn when its first batch is asked for
            self._order = None
            self.generator.set_state(state["generator"].cpu())


class Sampled:
    """The training stream of a sampler: its indices, gathered a batch at a time."""

    def __init__(self, columns: Columns, batch_size: int, sampler: Sampler, generator: torch.Generator):
        self.columns = columns
        self.batch_size = batch_size
        self.sampler = sampler
        self.epoch = 0
        self.taken = 0
        sampler.start(metadata(columns.tensors), columns.size, batch_size, generator)

    @property
    def batches(self) -> int:
        return self.sampler.batches

    @property
    def at_epoch_end(self) -> bool:
        return self.taken == self.batches

    @property
    def experience(self) -> int:
        return self.sampler.experience

    @property
    def experience_ended(self) -> bool:
        return self.sampler.experience_ended

    def next(self) -> Batch:
        if self.at_epoch_end:
            self.epoch, self.taken = self.epoch + 1, 0
        self.taken += 1
        index = self.sampler.next()
        return self.columns.batch(self.columns.rows(index), 0, len(index))

    def state(self) -> dict[str, Any]:
        """The generator is saved with the run's streams."""
        return {"epoch": self.epoch, "taken": self.taken, "sampler": capture(self.sampler)}

    def load(self, state: dict[str, Any]) -> None:
        self.epoch, self.taken = state["epoch"], state["taken"]
        restore(self.sampler, state["sampler"], self.columns.index.device)


class Endless:
    """The training stream of a task that draws its samples, hands out all of them at once, or has none.

    What it draws comes from a generator among the run's streams, and is saved with them.
    """

    experience = 0
    experience_ended = False

    def __init__(self, task: Task, columns: Columns, batch_size: int, generator: torch.Generator):
        self.task = task
        self.columns = columns
        self.batch_size = {"whole": columns.size, "none": 1}.get(task.stream, batch_size)
        self.generator = generator
        self.epoch = 0
        self.taken = 0

    @property
    def batches(self) -> int:
        return epoch_of(self.task)

    @property
    def at_epoch_end(self) -> bool:
        return self.taken == self.batches

    def next(self) -> Batch:
        if self.at_epoch_end:
            self.epoch, self.taken = self.epoch + 1, 0
        number = self.epoch * self.batches + self.taken
        self.taken += 1
        if self.task.stream == "whole":
            return self.columns.batch(self.columns.rows(None), 0, self.columns.size)
        if self.task.stream == "none":
            return blank(self.columns.index.device)
        return drawn(self.task, self.batch_size, self.generator, number * self.batch_size)

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "taken": self.taken}

    def load(self, state: dict[str, Any]) -> None:
        self.epoch, self.taken = state["epoch"], state["taken"]


def epoch_of(task: Task) -> int:
    """Steps that count as an epoch where no sampler and no shuffling decides on it."""
    return 1 if task.stream == "whole" else max(task.epoch_steps, 1)


def drawn(task: Task, size: int, rng: torch.Generator, first: int = 0) -> Batch:
    """Fresh samples of a task that draws them; `first` counts those before them."""
    columns = dict(task.draw(size, rng))
    rows = len(next(iter(columns.values())))
    return batch_of({**columns, "index": torch.arange(first, first + rows, device=rng.device)}, "train")


def some(task: Task, columns: Columns, size: int, rng: torch.Generator) -> Batch:
    """Some training samples, wherever the task has them from; `columns` are its training split's."""
    if task.stream == "none":
        return blank(columns.index.device)
    if task.stream == "drawn":
        return drawn(task, size, rng)
    if task.stream == "whole":
        return columns.batch(columns.rows(None), 0, columns.size)
    order = torch.randperm(columns.size, generator=rng, device=rng.device)[:size].to(columns.index.device)
    return columns.batch(columns.rows(order), 0, len(order))


def training_columns(task: Task) -> dict[str, Tensor]:
    """The columns of the training samples: all that are stored, or one that is drawn."""
    if task.stream == "drawn":
        return dict(task.draw(1, torch.Generator().manual_seed(0)))
    return task.split("train")


def metadata(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a sampler may choose by: the metadata columns by their own names, and the target where it is a tensor."""
    found = {name.removeprefix("meta."): t for name, t in columns.items() if name.startswith("meta.")}
    return {**found, **({"target": columns["target"]} if "target" in columns else {})}
