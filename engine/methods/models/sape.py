"""A network whose waves open one after the other, and only where they are needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.fields import Count, Fraction, NonNegative, Positive, Widths
from engine.figures import axis, heatmap, image, panel
from engine.kit.anatomy import Anatomy, example_input
from engine.kit.encodings import Waves, check_vectors, hidden_layers
from engine.parts import Batch, Figure, Model, Offer, Progress, model

SHORTEST = {"ramp": 4, "grid": 1}  # steps of a window
WIDE_ABOVE = 100  # cells above which the grid mode blurs 5 wide instead of 3


class SpatialMask(nn.Module):
    """How far each block of channels is open at each node of a grid; at a place, what its neighbours say.

    Its tensors are buffers: they are saved with the model, of whose function they are part. `tick` opens, `observe`
    keeps losses, and the next `tick` decides by them where nothing opens any more.
    """

    mask: Tensor
    frozen: Tensor
    loss: Tensor
    weight: Tensor
    calm: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        low: Sequence[float],
        high: Sequence[float],
        blocks: int,
        mode: str,
        epsilon: float,
        progress_fraction: float,
        ramp_fraction: float,
    ):
        super().__init__()
        self.shape, self.blocks, self.mode, self.epsilon = tuple(shape), blocks, mode, epsilon
        self.progress_fraction, self.ramp_fraction = progress_fraction, ramp_fraction
        nodes = math.prod(shape)
        self.wide = 5 if mode == "grid" and nodes > WIDE_ABOVE else 3
        self.register_buffer("mask", torch.zeros(nodes, blocks))
        self.register_buffer("frozen", torch.zeros(nodes, dtype=torch.bool))
        self.register_buffer("loss", torch.zeros(nodes))  # the last known one, or the sum over a window
        self.register_buffer("weight", torch.zeros(nodes))  # whether there is one, or what the sum counts
        self.register_buffer("calm", torch.zeros(nodes, dtype=torch.long))  # iterations in a row without a loss above
        self.register_buffer("low", torch.tensor(list(low)))  # the first and the last node in each direction
        self.register_buffer("high", torch.tensor(list(high)))
        self._step: int | None = None

    # -- over time -----------------------------------------------------------------------------------------------------

    def windows(self, steps: int) -> tuple[int, int]:
        """How many windows a run of so many steps has, and the steps of each."""
        span = self.progress_fraction * steps * (1 if self.mode == "ramp" else 2 / 3)
        count = max(min(self.blocks, int(span / SHORTEST[self.mode])), 1)
        return count, max(int(span / count), SHORTEST[self.mode])

    def opening(self, step: int, steps: int) -> Tensor:
        """How far the schedule alone has opened each block."""
        count, length = self.windows(steps)
        begins = torch.arange(self.blocks, device=self.mask.device) * count // self.blocks * length
        if self.mode == "grid":
            return (step >= begins + length).to(self.mask.dtype)
        return ((step - begins) / (self.ramp_fraction * length)).clamp(0, 1).to(self.mask.dtype)

    @torch.no_grad()
    def tick(self, at: Progress) -> None:
        assert at.steps is not None
        if self._step is not None and at.step != self._step:
            self._decide(at.step, at.steps)
        self._step = at.step
        grown = torch.maximum(self.mask, self.opening(at.step, at.steps))
        self.mask.copy_(torch.where(self.frozen[:, None], self.mask, grown))

    @torch.no_grad()
    def observe(self, batch: Batch, losses: Tensor | None) -> None:
        if losses is None:
            return
        corners, shares = self._neighbours(batch.x)
        if self.mode == "grid":
            # Not index_add: on a GPU the order of its sums, and so their last bits, would differ from run to run.
            table = shares.new_zeros(len(losses), len(self.loss)).scatter_(1, corners, shares)
            self.loss += (losses.to(table.dtype) @ table).to(self.loss.dtype)
            self.weight += table.sum(0)
            return
        nearest = corners.gather(1, shares.argmax(1, keepdim=True))[:, 0]
        self.loss.index_copy_(0, nearest, losses.to(self.loss.dtype))
        self.weight.index_fill_(0, nearest, 1.0)

    def _decide(self, step: int, steps: int) -> None:
        """Freezes the nodes that have learned enough, by what was observed before this step."""
        _, length = self.windows(steps)
        if self.mode == "ramp":
            self.calm.copy_(torch.where(self._blurred_loss() > self.epsilon, 0, self.calm + 1))
            self.frozen |= self.calm >= max(length // 2, 1)
        elif step % length == 0:
            self.frozen |= self._blurred_loss() <= self.epsilon
            self.loss.zero_()
            self.weight.zero_()

    def _blurred_loss(self) -> Tensor:
        """The mean loss at each node, blurred; infinite where none is known nearby. A node without a loss has that of
        its neighbours."""
        known = (self.weight > 0).to(self.loss.dtype)
        mean = self.loss / torch.where(self.weight > 0, self.weight, 1.0)
        near, count = self._blur(torch.stack([mean * known, known], 1)).unbind(1)
        there = count > 0
        filled = torch.where(known > 0, mean, near / torch.where(there, count, 1.0))
        return torch.where(there, self._blur(filled[:, None])[:, 0], torch.inf)

    # -- in space ------------------------------------------------------------------------------------------------------

    def _blur(self, values: Tensor) -> Tensor:
        """The mean over a box of neighbours, for values [nodes, channels]; the border goes on as it ends."""
        dimensions, half = len(self.shape), self.wide // 2
        grid = F.pad(values.T.reshape(1, -1, *self.shape), [half] * (2 * dimensions), mode="replicate")
        pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dimensions - 1]
        return pool(grid, self.wide, 1).reshape(values.shape[1], -1).T

    def _neighbours(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The nodes around each place [n, 2^d], and their shares of it."""
        corners = torch.zeros(len(x), 1, dtype=torch.long, device=x.device)
        shares = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
        for i, first, part in self._cells(x):
            n = self.shape[i]
            corners = torch.cat([corners * n + first, corners * n + first + 1], 1)
            shares = torch.cat([shares * (1 - part), shares * part], 1)
        return corners, shares

    def _cells(self, x: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """For each direction: the node before each place, and the way from it to the next one."""
        found = []
        for i, n in enumerate(self.shape):
            at = ((x[:, i : i + 1] - self.low[i]) / (self.high[i] - self.low[i]) * (n - 1)).clamp(0, n - 1)
            first = at.floor().clamp(max=n - 2)
            found.append((i, first.long(), at - first))
        return found

    def at(self, x: Tensor) -> Tensor:
        """How far each block is open at these places [n, blocks]: blurred, and between the nodes by straight lines."""
        values = self._blur(self.mask)[self._neighbours(x)[0]]
        for _, _, part in reversed(self._cells(x)):
            half = values.shape[1] // 2
            values = torch.lerp(values[:, :half], values[:, half:], part[:, None].to(values.dtype))
        return values[:, 0]

    def figures(self) -> dict[str, Figure]:
        """On a line, how far each block is open at each node; in the plane, all of them together."""
        if len(self.shape) == 1:
            x = torch.linspace(float(self.low[0]), float(self.high[0]), self.shape[0])
            block = axis("block of waves, the slowest first", values=range(1, self.blocks + 1))
            return {"open": heatmap("Where the waves are open", self.mask.T, x=axis("coordinate", values=x), y=block)}
        if len(self.shape) > 2:
            return {}
        panels = [
            panel("open", self.mask.mean(1).view(self.shape)),
            panel("frozen", self.frozen.float().view(self.shape)),
        ]
        return {"open": image("Where the waves are open", *panels)}

    def measures(self) -> dict[str, Tensor]:
        return {"open": self.mask.mean(), "frozen": self.frozen.float().mean()}


@model(
    id="sape",
    name="SAPE",
    paper="SAPE: Spatially-Adaptive Progressive Encoding for Neural Optimization",
    arxiv="2104.09125",
    recommends={
        "task": {"use": "signal-at-coordinates"},
        "optimizer": {"use": "adamw", "lr": 1e-3, "weight_decay": 0.0},
        "training": {"batch_size": 1024, "evaluate_every": 50},
        "budget": {"steps": 1000},
    },
    example={
        "task": {"use": "signal-at-coordinates", "samples": 32},
        "model": {"num_frequencies": 8, "num_blocks": 4, "hidden": [8], "epsilon": 0.1},
        "training": {"batch_size": 8},
        "budget": {"steps": 24},
    },
)
class SAPE(Model):
    """A network on coordinates and waves of them, as Fourier features are, whose waves open from the slowest to the
    fastest. Each place has a mask of its own: where the loss is small already, nothing faster opens any more.

        y = MLP([x, e(x) M(x)]),  e the waves in blocks, the slowest first;   M gets no gradient
        ramp:  block b opens in its window of K steps, alpha = min(1, (t - b K) / (ramp_fraction K))
               a row is frozen when its loss was at most epsilon for K / 2 steps in a row
        grid:  at the end of a window the next block opens at once, in all cells whose mean loss of the window is above
               epsilon; the others are frozen
        K = progress_fraction T / blocks (grid: two thirds of that),  T the steps of the run

    Losses and masks are blurred over neighbours; between rows, or cells, masks are interpolated.

    Helps: signals that are smooth in one place and fast in another: no noise where it is smooth, sharp where it is not.
    Hurts: an epsilon that is never reached (then it is a schedule for all places) or reached too soon. Where sigma fits
        the signal, plain Fourier features are as good or better: on the chirp they have a third of the error at 5.
    Cost: a mask for each row or cell, blurred once a pass; more steps than waves that are open from the start.
    Choices: `ramp` has one row of the mask for each training sample, as the paper says; its task tells the grid that
        they lie on. `grid` is what the released code runs. The coordinates are always open; a block holds whole waves,
        sine and cosine. In a run that is too short for a window of 4 steps (grid: 1) a block, several open together. In
        batches smaller than the training split a row's loss is the last one known. Beyond the last row a mask goes on
        as it ends.

    Args:
        mode: A row of the mask for each training sample, or a grid of cells.
        epsilon: The loss at which a place has learned enough.
        num_frequencies: How many waves; each has a sine and a cosine.
        num_blocks: In how many blocks they open.
        sigma: How fast they are: waves in a unit of the coordinates.
        encoding: Random waves, or powers of two along each coordinate.
        progress_fraction: Share of the run by which all blocks have opened; in grid mode two thirds of it.
        ramp_fraction: Share of a window in which a block opens.
        grid_res: Cells in each direction, in grid mode.
        hidden: Units of each hidden layer.

    Raises:
        ValueError: For tasks whose inputs are not one to three coordinates, without a grid of training samples (ramp)
            or a range of the inputs (grid), and for more blocks than waves.
    """

    needs_total = True
    block: Tensor

    def __init__(
        self,
        offer: Offer,
        mode: Literal["ramp", "grid"] = "ramp",
        epsilon: NonNegative = 1e-3,
        num_frequencies: Count = 256,
        num_blocks: Count = 32,
        sigma: Positive = 20.0,
        encoding: Literal["random", "positional"] = "random",
        progress_fraction: Fraction = 0.75,
        ramp_fraction: Positive = 0.5,
        grid_res: Count = 64,
        hidden: Widths = [256, 256, 256],  # noqa: B006 - the default is shown in the form; it is never changed
    ):
        super().__init__()
        _check(offer, mode, num_blocks, num_frequencies, grid_res)
        self._offer = offer
        self.waves = Waves(offer.features, num_frequencies, sigma, encoding == "random")
        shape, low, high = _nodes(offer, mode, grid_res)
        self.mask = SpatialMask(shape, low, high, num_blocks, mode, epsilon, progress_fraction, ramp_fraction)
        of = torch.arange(num_frequencies) * num_blocks // num_frequencies
        self.register_buffer("block", of.repeat_interleave(self.waves.each), persistent=False)  # of each channel
        inputs = offer.features + self.waves.channels
        self.blocks = hidden_layers(inputs, hidden)
        self.head = nn.Linear([inputs, *hidden][-1], offer.size)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(torch.cat([x, self.waves(x) * self.mask.at(x)[:, self.block]], 1)))

    def anatomy(self) -> Anatomy:
        return Anatomy(
            self,
            stem=self.waves,
            blocks=list(self.blocks),
            features=self.blocks[-1] if len(self.blocks) else self.waves,
            head=self.head,
            example=example_input(self._offer),
        )


def _nodes(offer: Offer, mode: str, resolution: int) -> tuple[list[int], list[float], list[float]]:
    """How many nodes there are in each direction, and where the first and the last one lie."""
    if mode == "ramp":
        grid = offer.about["grid"]
        return list(grid["shape"]), list(grid["low"]), list(grid["high"])
    assert offer.span is not None
    low, high = offer.span
    half = (high - low) / resolution / 2  # a node is the middle of its cell
    return [resolution] * offer.features, [low + half] * offer.features, [high - half] * offer.features


def _check(offer: Offer, mode: str, blocks: int, waves: int, resolution: int) -> None:
    check_vectors(offer)
    if offer.features > 3:
        raise ValueError(f"SAPE has a mask over one to three coordinates, and the task has {offer.features} numbers.")
    if mode == "ramp" and "grid" not in offer.about:
        raise ValueError(
            "In ramp mode there is a row of the mask for each training sample on a grid, and this task has no such "
            'grid. Write mode = "grid", or choose a task with one.'
        )
    if mode == "grid" and offer.span is None:
        raise ValueError("In grid mode cells divide the range of the inputs, and this task does not tell one.")
    if mode == "grid" and resolution < 2:
        raise ValueError(f"grid_res = {resolution} is no grid; write 2 or more.")
    if blocks > waves:
        raise ValueError(f"{waves} waves cannot open in {blocks} blocks; write num_blocks = {waves} or less.")
