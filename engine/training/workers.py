"""The workers of a run: each step's batch is shared out among them, and their gradients become one again.

Virtual workers take turns in one process; real ones are processes of one gloo group, each with as many virtual ones.
What a part computes from them is the same either way: it sees the gradients of the workers that are here, and asks
`Workers` for what concerns all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.errors import AthanorError
from engine.parts import Batch

Gradients = list[Tensor]


def from_group(wanted: int, sent: Callable[[int], None]) -> Workers:
    """The workers of a run: those it asks for, one at least in each process of the group that this one is in."""
    if not (dist.is_available() and dist.is_initialized()):
        return Workers(wanted, sent=sent)
    processes = dist.get_world_size()
    count = max(wanted, processes)
    if count % processes:
        raise AthanorError(f"{count} workers cannot be spread evenly over {processes} processes; write another number.")
    return Workers(count, dist.get_rank(), processes, sent)


def layer_stream() -> str:
    """The name of the stream that layers draw from (dropout): another one in each process of a group."""
    grouped = dist.is_available() and dist.is_initialized() and dist.get_rank() > 0
    return f"layers/{dist.get_rank()}" if grouped else "layers"


class Workers:
    """`count` workers in `processes` processes, of which this one is number `rank`; one of one where nobody asked."""

    def __init__(self, count: int = 1, rank: int = 0, processes: int = 1, sent: Callable[[int], None] | None = None):
        self.count = count
        self.rank = rank
        self.processes = processes
        each = count // processes
        self.here = range(rank * each, (rank + 1) * each)
        self.shares = [1.0 / count] * count  # of the step's samples, by worker
        self._sent = sent or (lambda _: None)

    @property
    def many(self) -> bool:
        return self.count > 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that logs and saves."""
        return self.rank == 0

    def parts(self, batch: Batch) -> Iterator[tuple[int, Batch]]:
        """The parts of a batch that the workers here train on, of nearly equal size."""
        if self.count == 1:
            yield 0, batch
            return
        size = len(batch)
        if size < self.count:
            raise AthanorError(
                f"A batch of {size} samples cannot be shared by {self.count} workers. Choose a batch size that leaves "
                "the last batch of an epoch large enough, or fewer workers."
            )
        ends = [size * (worker + 1) // self.count for worker in range(self.count)]
        starts = [0, *ends[:-1]]
        self.shares = [(end - start) / size for start, end in zip(starts, ends, strict=True)]
        for worker in self.here:
            yield worker, batch.cut(slice(starts[worker], ends[worker]))

    # -- what concerns all of them ---------------------------------------------------------------------------------

    def mean(self, shards: Sequence[Gradients], bytes: int | None = None) -> Gradients:
        """The mean over all workers' samples, from what the workers here have.

        `bytes` is the size of one worker's message as the method sends it; without it, that of the tensors themselves.
        """
        self.count_sent(shards, bytes)
        total = [t * self.shares[self.here[0]] for t in shards[0]]
        for worker, shard in zip(self.here[1:], shards[1:], strict=True):
            torch._foreach_add_(total, list(shard), alpha=self.shares[worker])
        return self.sum(total)

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sum over processes of what each holds."""
        if self.processes == 1:
            return list(tensors)
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        return [piece.view_as(t) for piece, t in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True)]

    def gather(self, shards: Sequence[Gradients], bytes: int | None = None) -> list[Gradients]:
        """What all workers have, in their order: for a rule that needs to see them one by one."""
        self.count_sent(shards, bytes)
        if self.processes == 1:
            return [list(shard) for shard in shards]
        mine = torch.stack([torch.cat([t.reshape(-1) for t in shard]) for shard in shards])
        rows = [torch.empty_like(mine) for _ in range(self.processes)]
        dist.all_gather(rows, mine)
        sizes = [t.numel() for t in shards[0]]
        return [
            [piece.view_as(t) for piece, t in zip(row.split(sizes), shards[0], strict=True)] for row in torch.cat(rows)
        ]

    def align(self, module: nn.Module) -> None:
        """Gives every process the first one's running statistics."""
        if self.processes > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def agree(self, value: Any) -> Any:
        """The first process's plain value, in every process: for decisions that must not differ."""
        if self.processes == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def everyones(self, value: Any) -> list[Any]:
        """Every process's plain value or tensors, by rank."""
        if self.processes == 1:
            return [value]
        found: list[Any] = [None] * self.processes
        dist.all_gather_object(found, value)
        return found

    def count_sent(self, shards: Sequence[Gradients], bytes: int | None) -> None:
        if self.count > 1:
            one = sum(t.numel() * t.element_size() for t in shards[0]) if bytes is None else bytes
            self._sent(one * self.count)
