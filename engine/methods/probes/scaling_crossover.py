"""Whether what wins on small models still wins on large ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from engine import figures
from engine.fields import Count, Numbers, Space, Widths
from engine.kit.scaling import Crossover, crossover, predict, regime
from engine.parts import Answer, Ask, Figure, Row, Study, study

LOSS = "train/loss"
TUNED_BY, REPORTED = "val/loss", "test/loss"
RATE = "optimizer.lr"
POINTS = 60  # of a fitted curve
WIDE = 10.0  # a range from its low to its high end that says little
LAST = 0.1  # of a run's steps, whose mean is its training loss

Sizes = Annotated[Widths, Field(min_length=4)]
Seeds = Annotated[int, Field(ge=2)]
Beyond = Annotated[float, Field(ge=1)]


@study(
    id="scaling-crossover",
    name="Does the winner change with the size?",
    paper="Rethinking Conventional Wisdom in Machine Learning: From Generalization to Scaling",
    arxiv="2409.15156",
    recommends={
        "task": {"use": "python-text", "characters": 500_000},
        "model": {"use": "transformer", "depth": 2, "heads": 2},
        "optimizer": {"use": "adamw", "weight_decay": 0.0},
        "training": {"batch_size": 32, "evaluate_every": 0},
    },
    example={
        "task": {"use": "two-moons", "samples": 100},
        "model": {"use": "mlp", "hidden": [4]},
        "optimizer": {"use": "adamw"},
        "training": {"batch_size": 32, "evaluate_every": 0},
        "budget": {"steps": 4},
        "study": {
            "size": "model.hidden.0",
            "sizes": [2, 3, 4, 6],
            "seeds": 2,
            "passes": "multi_epoch",
            "bootstrap": 20,
        },
    },
)
class ScalingCrossover(Study):
    """Trains the same recipe with and without one switch at several sizes, fits a power law to each arm, and says where
    the curves cross. What helps a small model, or one that sees its data many times, may hurt a large one that sees
    them once.

        L(N) = exp(a) N^-exp(p) + exp(c) for each arm, by least squares on log L
        crossover = the last root of L_A - L_B in [smallest size, extrapolate * largest size]

    Helps: before a rule of thumb from small experiments is used on a large run.
    Hurts: three parameters on four sizes are nearly an interpolation: six sizes tell more. Arms that are equal cross
        somewhere in most refits; their range is then so wide that the verdict says so.
    Cost: a run for each size, value, rate and seed.
    Choices: rates and, where the second arm has several values, its value are chosen for each size by the validation
        loss; the test loss is reported. The noise of single runs is pooled over all sizes and both arms. A crossover is
        reported when more than half of the refits to redrawn means have one; its range is that of the refits, from 5 to
        95 percent, and covers the truth in about three of four cases. A run that fails counts as infinitely bad.

    Args:
        arms: The switch: path -> values. The first value is arm A; the others are arm B, which takes its best one.
        size: The path of the setting that makes a run larger: a width, a number of samples.
        sizes: The sizes, four or more; best each a fixed factor above the one before.
        rates: Learning rates among which each arm takes its best one at each size; none takes the recipe's.
        seeds: Runs of each setting, with the recipe's seed and those after it.
        passes: Whether every run sees its samples once, or as often as the recipe's budget says.
        bootstrap: Refits that say how sure the crossover is.
        extrapolate: How many times the largest size is looked ahead.

    Raises:
        ValueError: For repeated sizes or rates, for no switch, or one whose paths do not have equally many values, two
            or more.
    """

    reads = (LOSS,)

    def __init__(
        self,
        arms: Space = {"optimizer.weight_decay": [0.0, 0.1]},  # noqa: B006 - shown in the form; it is never changed
        size: str = "model.width",
        sizes: Sizes = [16, 32, 64, 128],  # noqa: B006
        rates: Numbers = [],  # noqa: B006
        seeds: Seeds = 3,
        passes: Literal["single_pass", "multi_epoch"] = "single_pass",
        bootstrap: Count = 200,
        extrapolate: Beyond = 10.0,
    ):
        if len(set(sizes)) < max(len(sizes), 4) or len(set(rates)) < len(rates):
            raise ValueError("give four sizes or more, and each size and rate once.")
        counts = {len(values) if isinstance(values, list) else 0 for values in arms.values()}
        if len(counts) != 1 or min(counts) < 2:
            raise ValueError(
                'arms are paths with equally many values, two or more: { "optimizer.weight_decay" = [0, 0.1] }.'
            )
        self.arms, self.size, self.sizes, self.rates = dict(arms), size, sorted(sizes), sorted(rates)
        self.seeds, self.passes, self.bootstrap, self.extrapolate = seeds, passes, bootstrap, extrapolate
        self._rates: list[float | None] = [*self.rates] or [None]
        self._values = [dict(zip(arms, values, strict=True)) for values in zip(*arms.values(), strict=True)]
        self._names = [
            ", ".join(f"{p.rpartition('.')[2]} {_short(v)}" for p, v in each.items()) for each in self._values
        ]

    def plan(self, recipe: Mapping[str, Any]) -> list[Ask]:
        for path in (self.size, *self.arms, *([RATE] if self.rates else [])):
            if not _has(recipe, path):
                raise ValueError(f"the recipe has no setting {path!r} to vary.")
        asks = []
        for size, (i, values), rate, k in product(self.sizes, enumerate(self._values), self._rates, range(self.seeds)):
            labels: dict[str, Any] = {"size": size, "arm": self._names[i], "seed": k}
            changes = {self.size: size, **values, "seed": recipe["seed"] + k}
            if rate is not None:
                labels["rate"] = changes[RATE] = rate
            if self.passes == "single_pass":
                changes |= {"budget.epochs": 1.0, "budget.steps": 0}
            asks.append(Ask(f"{size}-{i}-{rate}-{k}", changes, labels=labels))
        return asks

    # -- measuring -------------------------------------------------------------------------------------------------

    def report(self, table: Sequence[Row]) -> Answer:
        answer = Answer()
        arms = [self._names[:1], self._names[1:]]
        chosen = [[self._best(table, size, names) for size in self.sizes] for names in arms]
        missing = [
            (s, n)
            for n, cells in zip(arms, chosen, strict=True)
            for s, c in zip(self.sizes, cells, strict=True)
            if not c
        ]
        if missing:
            size, names = missing[0]
            answer.verdict = (
                f"At size {size} no run with {' or '.join(names)} gave a loss, so there is nothing to compare."
            )
            return answer
        losses = [[[_loss(row) for row in cell] for cell in cells] for cells in chosen]
        found = crossover(self.sizes, losses[0], losses[1], self.bootstrap, self.extrapolate)
        means = [[statistics.fmean(cell) for cell in arm] for arm in losses]
        gains = [1 - b / a for a, b in zip(*means, strict=True)]
        labels = [_label(row, self.passes) for cells in chosen for cell in cells for row in cell]
        self._numbers(answer.scalars, found, gains, labels)
        answer.figures = {
            "losses": self._losses(found, means),
            "gap": self._gap(found, means),
            "rules": figures.table("Rules", ["rule", "measured", "holds"], self._rules(table, chosen, gains, labels)),
        }
        answer.verdict = self._words(found, gains)
        return answer

    def _best(self, table: Sequence[Row], size: int, names: Sequence[str]) -> list[Row]:
        """The runs of the value and rate with the lowest mean validation loss, the reported losses of all finite."""
        best: tuple[float, list[Row]] = (math.inf, [])
        for name, rate in product(names, self._rates):
            rows = [r for r in table if (r.labels["size"], r.labels["arm"], r.labels.get("rate")) == (size, name, rate)]
            mean = _mean([row.metrics.get(TUNED_BY, math.nan) if row.state == "done" else math.nan for row in rows])
            if mean < best[0] and all(0 < _loss(row) < math.inf for row in rows):
                best = (mean, rows)
        return best[1]

    def _numbers(
        self, scalars: dict[str, float], found: Crossover, gains: Sequence[float], labels: Sequence[tuple[str, float]]
    ) -> None:
        scalars |= {"gain": statistics.fmean(gains), "gain at the largest": gains[-1]}
        scalars |= {"refits with a crossover": found.share, "A wins beyond": found.wins, "noise": found.noise}
        gaps = [gap for _, gap in labels if math.isfinite(gap)]
        if gaps:
            scalars["train-val gap"] = statistics.fmean(gaps)
        if math.isfinite(found.at):
            scalars |= {"crossover": found.at, "crossover low": found.low, "crossover high": found.high}

    def _rules(
        self,
        table: Sequence[Row],
        chosen: Sequence[Sequence[Sequence[Row]]],
        gains: Sequence[float],
        labels: Sequence[tuple[str, float]],
    ) -> list[list[str]]:
        """What is often taken for granted, and whether it holds here."""
        one, other = self._names[0], " or ".join(self._names[1:])
        names = [name for name, _ in labels]
        common = max(sorted(set(names)), key=names.count)
        share = f"{names.count(common)} of {len(names)} runs are {common}"
        best = ", ".join(f"{gain:+.1%} at {size}" for gain, size in zip(gains, self.sizes, strict=True))
        same = all((gain > 0) == (gains[0] > 0) for gain in gains)
        rules = [
            [f"{other} has a lower loss than {one}", best, _yes(all(gain > 0 for gain in gains))],
            ["What wins at the smallest size wins at every size", best, _yes(same)],
            ["One regime holds for all runs", share, _yes(names.count(common) == len(names))],
        ]
        if len(self.rates) > 1:
            cells = [cell for cells in chosen for cell in cells]
            largest = sum(cell[0].labels["rate"] == self._stable(table, cell[0]) for cell in cells)
            said = f"in {largest} of {len(cells)} cases"
            rules.append(["The best rate is the largest that trains", said, _yes(largest == len(cells))])
        return rules

    def _stable(self, table: Sequence[Row], row: Row) -> float:
        """The largest rate at which all runs of a size and arm have come to their end with a loss."""
        key = (row.labels["size"], row.labels["arm"])
        rows = [r for r in table if (r.labels["size"], r.labels["arm"]) == key]
        bad = {r.labels["rate"] for r in rows if r.state != "done" or not math.isfinite(_loss(r))}
        return float(max((rate for rate in self.rates if rate not in bad), default=math.nan))

    def _words(self, found: Crossover, gains: Sequence[float]) -> str:
        one, other = self._names[0], " or ".join(self._names[1:])
        small, large, beyond = self.sizes[0], self.sizes[-1], found.high_size
        wins = f"beyond, at {_short(beyond)}, {one} wins in {found.wins:.0%} of the refits"
        if math.isfinite(found.at):
            before, after = (one, other) if found.wins < 0.5 else (other, one)
            place = "an extrapolation" if found.at > large else "inside the sizes that were trained"
            wide = found.high > WIDE * found.low
            return (
                f"{before} has the lower loss up to about {_short(found.at)}, and {after} from there on ({place}; "
                f"bootstrap range {_short(found.low)} to {_short(found.high)}); {wins}."
                + " The range is so wide that the arms may as well be equal."
                * wide
            )
        mean = statistics.fmean(gains)
        better = other if mean > 0 else one
        return (
            f"No crossover is reported from {small} to {_short(beyond)} ({found.share:.0%} of the refits have one); "
            f"over the sizes that were trained {better} has a loss that is {abs(mean):.1%} lower; {wins}."
        )

    # -- figures ---------------------------------------------------------------------------------------------------

    def _grid(self, found: Crossover) -> np.ndarray:
        return np.geomspace(found.low_size, found.high_size, POINTS)

    def _losses(self, found: Crossover, means: Sequence[Sequence[float]]) -> Figure:
        grid = self._grid(found)
        series = []
        for name, law, values in zip(self._arms(), found.laws, means, strict=True):
            series.append(figures.dots(name, self.sizes, values))
            series.append(figures.dots(f"{name}, fitted", grid, predict(law, grid), joined=True))
        x, y = figures.axis(self.size, log=True), figures.axis("test loss", log=True)
        return figures.scatter("Loss by size", *series, x=x, y=y)

    def _gap(self, found: Crossover, means: Sequence[Sequence[float]]) -> Figure:
        grid = self._grid(found)
        one, other = (predict(laws, grid) for laws in found.refits)
        low, high = np.quantile(other / one - 1, [0.05, 0.95], axis=0)
        middle = predict(found.laws[1], grid) / predict(found.laws[0], grid) - 1
        measured = [b / a - 1 for a, b in zip(*means, strict=True)]
        return figures.curve(
            f"How much higher the loss is with {self._arms()[1]} than with {self._arms()[0]}",
            figures.line("fitted", grid, middle, low, high),
            figures.line("measured", self.sizes, measured),
            x=figures.axis(self.size, log=True),
            y="relative difference",
        )

    def _arms(self) -> tuple[str, str]:
        return self._names[0], " or ".join(self._names[1:])


def _loss(row: Row) -> float:
    """The loss that is reported of a run: the test's, or the validation's where there is no test split."""
    return row.metrics.get(REPORTED, row.metrics.get(TUNED_BY, math.nan))


def _label(row: Row, passes: str) -> tuple[str, float]:
    """What limits a run, and how far its training loss is below the validation loss, relative to that."""
    curve = row.series.get(LOSS, ([], []))[1]
    val = row.metrics.get(TUNED_BY, math.nan)
    train = _mean(curve[-max(round(LAST * len(curve)), 1) :])
    return regime(1.0 if passes == "single_pass" else math.inf, train, val), (val - train) / val if val else math.nan


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _has(recipe: Mapping[str, Any], path: str) -> bool:
    here: Any = recipe
    for key in path.split("."):
        if isinstance(here, list) and key.isdigit() and int(key) < len(here):
            here = here[int(key)]
        elif isinstance(here, Mapping) and key in here:
            here = here[key]
        else:
            return False
    return True
