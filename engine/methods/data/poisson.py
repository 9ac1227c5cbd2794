"""Batches in which each sample stands or not by its own chance."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.kit.sampling import Planned
from engine.parts import sampler


@sampler(name="Poisson batches")
class Poisson(Planned):
    """Lets chance decide for each sample by itself whether it is in a batch. Batches differ in size, and one may be
    empty; what is known about the privacy of private training holds for such batches alone.

        P(sample i is in batch t) = batch_size / samples,   independently for all i and t

    An epoch is as many batches as there would be in a pass over the data. Some samples come several times in it, some
    never.

    Helps: private training, whose accounts assume it.
    Hurts: sizes vary by about the root of batch_size, and with them the noise of a step.
    Cost: none to speak of: the gaps between the chosen samples are drawn, not a number for each sample.
    Choices: a step without samples updates nothing, and counts.
    """

    def prepare(self) -> None:
        self._share = min(self._batch_size / self._size, 1.0)
        self.batches = -(-self._size // self._batch_size)

    def plan(self) -> tuple[Tensor, list[int]]:
        total = self.batches * self._size
        places = self._places(total)
        sizes = (places // self._size).bincount(minlength=self.batches).tolist()
        return places % self._size, sizes

    def _places(self, total: int) -> Tensor:
        """The places that chance takes among that many: the gap to the next one is a geometric number."""
        device = self._rng.device
        if self._share == 1.0:
            return torch.arange(total, device=device)
        expected = total * self._share
        found = torch.zeros(0, dtype=torch.float64, device=device)
        last = torch.full((1,), -1.0, dtype=torch.float64, device=device)
        while float(last) < total:
            gaps = torch.empty(int(expected + 6 * expected**0.5) + 8, dtype=torch.float64, device=device)
            more = last + gaps.geometric_(self._share, generator=self._rng).cumsum(0)
            found, last = torch.cat([found, more]), more[-1:]
        return found[found < total].long()
