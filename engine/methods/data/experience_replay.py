"""Earlier samples, mixed into the batches of what comes now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.fields import Count, Whole
from engine.parts import Batch, Task, Technique, technique

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

ID = "experience-replay"


@technique(
    id=ID,
    name="Experience replay",
    example={"techniques": [{"use": ID, "buffer": 40, "replayed": 8}]},
)
class ExperienceReplay(Technique):
    """Keeps a small sample of everything seen so far and adds some of it to every batch, so that what came first is not
    forgotten when other things follow.

        batch <- batch and `replayed` samples drawn from the buffer
        buffer: a reservoir; after t samples each of them is in it with probability min(1, size / t)

    Helps: Streams of experiences, such as classes that come one after the other; a few samples of each go far.
    Hurts: Shuffled data, where nothing is forgotten and some samples only come more often.
    Cost: A pass over the replayed samples in every step, and the memory of the buffer.
    Choices: What was drawn is from before this batch. Samples are kept as their place in the training split, which
        stays on the device anyway. The buffer is filled by Vitter's reservoir sampling, so that it needs no borders
        between experiences.

    Args:
        buffer: Samples that the buffer holds.
        replayed: Samples that are added to a batch; 0 adds as many as the batch has.
    """

    def __init__(self, buffer: Count = 100, replayed: Whole = 0) -> None:
        self.buffer, self.replayed = buffer, replayed
        self.seen = 0
        self.kept = torch.zeros(0, dtype=torch.long)

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if task.stream != "rows":
            return "It remembers which stored samples it has seen, and this task's training samples are no stored rows."
        return None

    def setup(self, run: Run) -> None:
        self.kept = torch.zeros(self.buffer, dtype=torch.long, device=run.device)

    def on_batch(self, run: Run, batch: Batch) -> Batch:
        rng = run.rng(ID)
        held = min(self.seen, self.buffer)
        new = batch.index
        if held:
            count = min(self.replayed or len(batch), held)
            drawn = self.kept[torch.randperm(held, generator=rng, device=run.device)[:count]]
            columns = run.columns_of("train")
            batch = joined(batch, columns.batch(columns.rows(drawn), 0, count))
        self.keep(new, rng)
        return batch

    def keep(self, index: Tensor, rng: torch.Generator) -> None:
        """Offers samples to the reservoir, one after the other."""
        count = len(index)
        order = torch.arange(self.seen, self.seen + count, device=index.device)
        place = (torch.rand(count, generator=rng, device=rng.device) * (order + 1)).long()
        place = torch.where(order < self.buffer, order, place)
        # Of several that take one place the last one stays; a place beyond the end is given up.
        later = (place.unsqueeze(0) == place.unsqueeze(1)).triu(1).any(1)
        taken = (place < self.buffer) & ~later
        into = torch.where(taken, place, self.buffer)
        self.kept = torch.cat([self.kept, self.kept[:1]]).index_copy(0, into, index)[: self.buffer]
        self.seen += count


def joined(first: Batch, second: Batch) -> Batch:
    """Two batches of the same task as one."""
    parts: dict[str, Any] = {}
    for field in fields(Batch):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if isinstance(a, dict):
            parts[field.name] = {name: torch.cat([a[name], b[name]]) for name in a}
        else:
            parts[field.name] = torch.cat([a, b]) if isinstance(a, Tensor) and isinstance(b, Tensor) else a
    return Batch(**parts)
