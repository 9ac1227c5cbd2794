"""Power laws of size with a floor, where two of them cross, and how sure that is. In NumPy: many fits at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ROUNDS, QUIET = 60, 4  # of a fit at most, and without a better one before it ends
GRID = 512  # places between which a crossing is looked for
HALVINGS = 40
EXPONENTS = (0.15, 0.4, 1.0, 2.0)  # starts of a fit
FLOORS = (0.02, 0.5, 0.9, 0.99)  # as shares of the lowest loss
LOW = np.array([-40.0, -6.0, -40.0])
HIGH = np.array([40.0, 3.0, 20.0])
SINGLE_PASS_GAP = 0.01
LARGE_GAP = 0.1


def predict(laws: Array, sizes: Array) -> Array:
    """exp(a) N^-exp(p) + exp(c) for laws [..., 3] of (a, p, c) and sizes [n]: losses [..., n]."""
    a, p, c = (laws[..., i, None] for i in range(3))
    return np.asarray(np.exp(a - np.exp(p) * np.log(sizes)) + np.exp(c))


def fit(sizes: Array, losses: Array, starts: Array | None = None) -> Array:
    """The laws [..., 3] that are closest to losses [..., n] in their logarithms; of several starts the best is kept."""
    targets = np.log(losses)
    if starts is None:
        starts = _starts(sizes, losses)
    found = np.broadcast_to(starts, (*losses.shape[:-1], *starts.shape[-2:])).copy()
    y = targets[..., None, :]
    logs = np.log(sizes)
    damping = np.full(found.shape[:-1], 1e-2)
    cost = _cost(found, sizes, y)
    quiet = 0
    for _ in range(ROUNDS):
        step = _step(found, logs, y, damping)
        tried = np.clip(found + step, LOW, HIGH)
        new = _cost(tried, sizes, y)
        better = new < cost
        quiet = quiet + 1 if (cost - new <= 1e-9 * cost + 1e-22).all() else 0
        found = np.where(better[..., None], tried, found)
        cost = np.where(better, new, cost)
        damping = np.clip(np.where(better, damping / 4, damping * 5), 1e-12, 1e12)
        if quiet == QUIET:
            break
    best = cost.argmin(-1)[..., None, None]
    return np.asarray(np.take_along_axis(found, best, -2)[..., 0, :])


def _starts(sizes: Array, losses: Array) -> Array:
    """Laws through the losses' middle, with several exponents and floors: [..., starts, 3]."""
    lowest, logs = losses.min(-1), np.log(sizes)
    made = []
    for exponent in EXPONENTS:
        for share in FLOORS:
            floor = share * lowest
            above = np.log(np.maximum(losses - floor[..., None], 1e-3 * lowest[..., None]))
            a = (above + exponent * logs).mean(-1)
            made.append(np.stack([a, np.full_like(a, np.log(exponent)), np.log(floor)], -1))
    return np.stack(made, -2)


def _cost(laws: Array, sizes: Array, targets: Array) -> Array:
    return np.asarray(np.square(np.log(predict(laws, sizes)) - targets).sum(-1))


def _step(laws: Array, logs: Array, targets: Array, damping: Array) -> Array:
    """A damped Gauss-Newton step on the residuals of the logarithms (Levenberg and Marquardt)."""
    a, p, c = (laws[..., i, None] for i in range(3))
    power = np.exp(a - np.exp(p) * logs)
    whole = power + np.exp(c)
    jacobian = np.stack([power / whole, -power * np.exp(p) * logs / whole, np.exp(c) / whole + 0 * logs], -1)
    residual = np.log(whole) - targets
    normal = np.einsum("...ni,...nj->...ij", jacobian, jacobian)
    gradient = np.einsum("...ni,...n->...i", jacobian, residual)
    scale = np.einsum("...ii->...i", normal) + 1e-12
    normal = normal + damping[..., None, None] * (np.eye(3) * scale[..., None, :])
    return np.asarray(-np.linalg.solve(normal, gradient[..., None])[..., 0])


def crossings(one: Array, other: Array, low: float, high: float) -> Array:
    """The last size in [low, high] at which two laws [..., 3] have the same loss; NaN where there is none."""
    grid = np.geomspace(low, high, GRID)
    above = predict(one, grid) > predict(other, grid)
    changes = above[..., 1:] != above[..., :-1]
    there = changes.any(-1)
    last = GRID - 2 - changes[..., ::-1].argmax(-1)
    left, right = np.log(grid[last]), np.log(grid[last + 1])
    side = np.take_along_axis(above, last[..., None], -1)[..., 0]
    for _ in range(HALVINGS):
        middle = (left + right) / 2
        at = np.exp(middle)[..., None]
        same = (_at(one, at) > _at(other, at)) == side
        left, right = np.where(same, middle, left), np.where(same, right, middle)
    return np.where(there, np.exp((left + right) / 2), np.nan)


def _at(laws: Array, sizes: Array) -> Array:
    """Each law at a size of its own [..., 1]."""
    a, p, c = (laws[..., i] for i in range(3))
    return np.asarray(np.exp(a - np.exp(p) * np.log(sizes[..., 0])) + np.exp(c))


@dataclass(frozen=True)
class Crossover:
    """Where two arms cross, and how sure that is.

    `at` is NaN where no crossover is reported: no more than half of the refits have one. `low` and `high` are the 5 and
    95 percent points of the refits' own crossings: a bootstrap range, which covers the truth less often than in 90 of
    100 cases. `share` of the refits have a crossing; in `wins` of them the first arm has the lower loss at `high_size`.
    """

    laws: tuple[Array, Array]
    at: float
    low: float
    high: float
    share: float
    wins: float
    noise: float
    refits: tuple[Array, Array]
    low_size: float
    high_size: float


def spread(logs: Sequence[Sequence[float]]) -> float:
    """The standard deviation of single values around the mean of their group, over all groups, n - 1 in each."""
    squares = sum(sum((value - sum(g) / len(g)) ** 2 for value in g) for g in logs if g)
    freedom = sum(len(g) - 1 for g in logs if g)
    return float(np.sqrt(squares / freedom)) if freedom else 0.0


def crossover(
    sizes: Sequence[float],
    one: Sequence[Sequence[float]],
    other: Sequence[Sequence[float]],
    refits: int = 200,
    beyond: float = 10.0,
    seed: int = 0,
) -> Crossover:
    """Fits a law to each arm's losses (for each size those of its seeds) and looks for the last crossing up to `beyond`
    times the largest size. Refits are to means that are drawn anew around the fitted curves, with the noise of all
    groups pooled: a few seeds alone know too little of their own spread."""
    at = np.asarray(sizes, dtype=np.float64)
    groups = [[np.log(np.asarray(group, dtype=np.float64)) for group in arm] for arm in (one, other)]
    means = [np.exp(np.array([group.mean() for group in arm])) for arm in groups]
    counts = [np.array([len(group) for group in arm]) for arm in groups]
    noise = spread([group.tolist() for arm in groups for group in arm])
    first, second = (fit(at, mean) for mean in means)
    rng = np.random.default_rng(seed)
    redone = []
    for law, count in zip((first, second), counts, strict=True):
        drawn = rng.standard_normal((refits, len(at))) * noise / np.sqrt(count)
        losses = predict(law, at) * np.exp(drawn)
        redone.append(fit(at, losses, _around(law, at, losses)))
    low, high = float(at.min()), float(at.max() * beyond)
    found = crossings(redone[0], redone[1], low, high)
    there = found[np.isfinite(found)]
    share = len(there) / refits
    lower, upper = np.quantile(there, [0.05, 0.95]) if len(there) else (np.nan, np.nan)
    ends = np.array([high])
    wins = float((predict(redone[0], ends) < predict(redone[1], ends)).mean())
    single = float(crossings(first, second, low, high))
    point = single if np.isfinite(single) else float(np.median(there)) if len(there) else np.nan
    reported = share > 0.5
    return Crossover(
        (first, second),
        point if reported else float("nan"),
        float(lower),
        float(upper),
        share,
        wins,
        noise,
        (redone[0], redone[1]),
        low,
        high,
    )


def _around(law: Array, sizes: Array, losses: Array) -> Array:
    """Starts of a refit: the law that the losses were drawn around, and a few of a fresh fit's."""
    fresh = _starts(sizes, losses)[..., [1, 6, 10], :]
    here = np.broadcast_to(law, (*losses.shape[:-1], 1, 3))
    return np.concatenate([here, fresh], -2)


def regime(epochs: float, train: float, val: float) -> str:
    """What limits a run. "scaling-limited": one pass, training and validation loss are within a hundredth.
    "generalization-limited": several passes, and the training loss is a tenth or more below. Else "between"."""
    gap = (val - train) / val if val > 0 else float("nan")
    if epochs <= 1 and abs(gap) < SINGLE_PASS_GAP:
        return "scaling-limited"
    return "generalization-limited" if epochs > 1 and gap >= LARGE_GAP else "between"
