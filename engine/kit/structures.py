"""Elastic structures on a grid of square elements: stiffness, the solve with its derivative, volume, and a filter.

The first axis of a grid is down, the second right. Nodes are the corners of elements, (rows + 1) x (columns + 1) of
them, and each moves in two directions, right and down. Physics is in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_solve_banded, cholesky_banded
from torch import Tensor
from torch.nn import functional as F

Array = NDArray[Any]
POISSON = 0.3
SOFTEST = 1e-9  # the stiffness of nothing, so that no part of the structure hangs loose


def element_stiffness(poisson: float = POISSON) -> Array:
    """The 8 x 8 stiffness of a square of unit modulus under plane stress, by exact integration of bilinear shapes.

    Its corners go round from the upper left: (right, down) = (0, 0), (1, 0), (1, 1), (0, 1).
    """
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=float)
    law = np.array([[1, poisson, 0], [poisson, 1, 0], [0, 0, (1 - poisson) / 2]]) / (1 - poisson**2)
    total = np.zeros((8, 8))
    for a in (-1, 1):
        for b in (-1, 1):
            xi, eta = a / np.sqrt(3), b / np.sqrt(3)
            along = corners[:, 0] * (1 + eta * corners[:, 1]) / 2  # the side is 1: twice the reference's derivative
            across = corners[:, 1] * (1 + xi * corners[:, 0]) / 2
            strain = np.zeros((3, 8))
            strain[0, 0::2], strain[1, 1::2] = along, across
            strain[2, 0::2], strain[2, 1::2] = across, along
            total += strain.T @ law @ strain / 4
    return total


@dataclass(frozen=True)
class Structure:
    """Where a structure is held and what pulls at it.

    `held` and `loads` are by node and direction, [rows + 1, columns + 1, 2]; `inside` [rows, columns] says where
    material may be; `weight` is that of a full element, which pulls down at its corners.
    """

    held: Array
    loads: Array
    inside: Array
    weight: float = 0.0
    penalty: float = 3.0
    stiffness: Array = field(default_factory=element_stiffness)

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.inside.shape
        return int(rows), int(columns)

    @cached_property
    def freedoms(self) -> Array:
        """[elements, 8]: the numbers of what an element's corners do. They run along the shorter side, so that what
        belongs to one element lies close together."""
        rows, columns = self.shape
        row, column = (each.ravel() for each in np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"))
        corners = [(row, column), (row, column + 1), (row + 1, column + 1), (row + 1, column)]
        nodes = np.stack([self._node(r, c) for r, c in corners], -1)
        return np.stack([2 * nodes, 2 * nodes + 1], -1).reshape(-1, 8)

    def _node(self, row: Array, column: Array) -> Array:
        rows, columns = self.shape
        return column * (rows + 1) + row if rows <= columns else row * (columns + 1) + column

    def numbered(self, table: Array) -> Array:
        """What is given by node and direction, in the order of the freedoms."""
        rows, columns = self.shape
        row, column = np.meshgrid(np.arange(rows + 1), np.arange(columns + 1), indexing="ij")
        found = np.empty((rows + 1) * (columns + 1) * 2, table.dtype)
        node = self._node(row, column)
        found[2 * node], found[2 * node + 1] = table[..., 0], table[..., 1]
        return found

    @cached_property
    def free(self) -> Array:
        """The freedoms that are not held."""
        return np.flatnonzero(~self.numbered(self.held))

    @cached_property
    def band(self) -> tuple[Array, Array, int, Array]:
        """Which of the elements' 64 entries lie in the lower half of the free part of the stiffness, the place of each
        in banded storage, the number of bands, and the pairs of free freedoms themselves."""
        new = np.full(self.held.size, -1)
        new[self.free] = np.arange(len(self.free))
        i = new[np.repeat(self.freedoms, 8, axis=1).ravel()]
        j = new[np.tile(self.freedoms, (1, 8)).ravel()]
        kept = np.flatnonzero((j >= 0) & (i >= j))
        i, j = i[kept], j[kept]
        return kept, (i - j) * len(self.free) + j, int((i - j).max()) + 1, np.stack([i, j])

    def entries(self, modulus: Array) -> Array:
        """All elements' entries of the stiffness, one after the other."""
        return (modulus[:, None] * self.stiffness.ravel()).ravel()

    def factor(self, modulus: Array) -> Array:
        """The banded Cholesky factor of the free part of the stiffness for the elements' moduli."""
        kept, places, bands, _ = self.band
        filled = np.bincount(places, self.entries(modulus)[kept], minlength=bands * len(self.free))
        return cholesky_banded(filled.reshape(bands, -1), overwrite_ab=True, lower=True, check_finite=False)

    def pulled(self, factor: Array, forces: Array) -> Array:
        """How far each freedom moves under the forces."""
        moved = np.zeros_like(forces)
        moved[self.free] = cho_solve_banded((factor, True), forces[self.free], check_finite=False)
        return moved

    def forces(self, density: Tensor) -> Tensor:
        """The loads with the elements' own weight, in the order of the freedoms."""
        loads = torch.from_numpy(self.numbered(self.loads)).to(density)
        if not self.weight:
            return loads
        down = torch.from_numpy(self.freedoms[:, 1::2].copy()).to(density.device)
        return loads.index_add(0, down.flatten(), (density.flatten() * self.weight / 4).repeat_interleave(4))

    def modulus(self, density: Tensor) -> Tensor:
        """Stiffness that makes half measures a bad bargain: E = E_min + x^penalty (1 - E_min)."""
        return SOFTEST + density**self.penalty * (1 - SOFTEST)

    def compliance(self, density: Tensor) -> Tensor:
        """f . u: the smaller, the stiffer. Differentiable by the density [rows, columns], in float64."""
        density = density.double()
        forces = self.forces(density)
        return forces @ displacement(self, self.modulus(density).flatten(), forces)


class _Displacement(torch.autograd.Function):
    """u = K^-1 f. With g = K^-1 dL/du by the same factor: dL/df = g and dL/dE_e = -g_e . k u_e."""

    @staticmethod
    def forward(ctx: Any, structure: Structure, modulus: Tensor, forces: Tensor) -> Tensor:
        ctx.structure, ctx.factor = structure, structure.factor(modulus.detach().cpu().numpy())
        moved = structure.pulled(ctx.factor, forces.detach().cpu().numpy())
        ctx.moved = moved
        return torch.from_numpy(moved).to(forces)

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[None, Tensor, Tensor]:
        structure: Structure = ctx.structure
        (slope,) = above
        back = structure.pulled(ctx.factor, slope.cpu().numpy())
        theirs, ours = back[structure.freedoms], ctx.moved[structure.freedoms]
        energy = -np.einsum("ei,ij,ej->e", theirs, structure.stiffness, ours, optimize=True)
        return None, torch.from_numpy(energy).to(slope), torch.from_numpy(back).to(slope)


def displacement(structure: Structure, modulus: Tensor, forces: Tensor) -> Tensor:
    """How far each freedom moves, for moduli [elements] and forces, both in float64."""
    moved: Tensor = _Displacement.apply(structure, modulus, forces)
    return moved


def with_volume(logits: Tensor, share: float, inside: Tensor) -> Tensor:
    """The densities sigmoid(logits + b), with the b for which they fill that share of what lies inside; 0 elsewhere.

    b is found by bisection; a last Newton step, which moves it by no more than rounding, gives it the derivative of the
    implicit function, db/dl_i = -s'_i / sum s'.
    """
    logits = logits.double()
    within = logits[inside]
    fixed = within.detach()
    middle = torch.logit(torch.tensor(share, dtype=torch.float64))
    low, high = middle - fixed.max(), middle - fixed.min()
    for _ in range(80):
        b = (low + high) / 2
        more = (fixed + b).sigmoid().mean() < share
        low, high = torch.where(more, b, low), torch.where(more, high, b)
    b = (low + high) / 2
    at = (fixed + b).sigmoid()
    steep = (at * (1 - at)).mean().clamp_min(torch.finfo(torch.float64).tiny)
    b = b - ((within + b).sigmoid().mean() - share) / steep
    return torch.zeros_like(logits).masked_scatter(inside, (within + b).sigmoid())


def cone(table: Tensor, width: float, inside: Tensor) -> Tensor:
    """Each entry as the mean of those around it inside, weighted by max(0, width - distance). A width of 1 or less
    changes nothing."""
    reach = int(np.ceil(width)) - 1
    if reach < 1:
        return table
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = (width - torch.hypot(at[:, None], at[None, :])).clamp_min(0.0).to(table)[None, None]
    mask = inside.to(table)
    total = F.conv2d((table * mask)[None, None], weights, padding=reach)[0, 0]
    return mask * total / F.conv2d(mask[None, None], weights, padding=reach)[0, 0].clamp_min(1e-12)
