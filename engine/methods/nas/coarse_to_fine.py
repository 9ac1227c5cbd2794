"""Which of the networks inside an elastic one is worth its cost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from engine.fields import Count, Fraction, Whole
from engine.kit.cost import cost_of
from engine.kit.elastic import Config, Elastic
from engine.parts import Finding, Probe, Task, probe

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run


@dataclass(frozen=True)
class Child:
    """One network that was measured."""

    config: Config
    flops: int
    score: float  # higher is better


def band_of(flops: float, low: float, high: float, bands: int) -> int:
    """The band, from 0, of a cost between low and high; all are equally wide on a log scale."""
    if high <= low:
        return 0
    return min(max(int(bands * math.log(flops / low) / math.log(high / low)), 0), bands - 1)


def best_by_band(archive: list[Child], bands: int) -> dict[int, Child]:
    """The best child of every band that has one; of two equal ones the cheaper."""
    low, high = min(child.flops for child in archive), max(child.flops for child in archive)
    found: dict[int, Child] = {}
    for child in sorted(archive, key=lambda child: (-child.score, child.flops)):
        found.setdefault(band_of(child.flops, low, high, bands), child)
    return dict(sorted(found.items()))


def front(archive: list[Child]) -> list[Child]:
    """The children than which none is both cheaper and better, cheapest first."""
    kept: list[Child] = []
    for child in sorted(archive, key=lambda child: (child.flops, -child.score)):
        if not kept or child.score > kept[-1].score:
            kept.append(child)
    return kept


@probe(
    id="coarse-to-fine",
    name="Coarse-to-fine search of children",
    paper="BigNAS: Scaling Up Neural Architecture Search with Big Single-Stage Models",
    arxiv="2003.11142",
    example={
        "task": {"use": "digits", "train_limit": 100},
        "model": {"use": "elastic-cnn", "widths": [4], "kernels": [3], "depths": [1]},
        "training": {"normalization": "recalibrated", "calibration_batches": 1},
        "probes": [{"use": "coarse-to-fine", "bands": 2, "mutants": 1, "rounds": 1}],
    },
)
class CoarseToFine(Probe):
    """Finds the best network of each size inside a trained elastic network, on the validation split. It first measures
    a coarse grid, in which all stages have the same setting, then changes the best of each size a little.

        coarse: one child for each combination of resolution, depth, width, kernel, expansion
        band of a child = its operations on a log scale;   fine: mutants of the best child of each band

    Helps: choosing a network for a device from one training, and seeing what accuracy costs.
    Hurts: as a promise: the best of many on the validation split looks better than it is; look at the test too.
    Cost: an evaluation of the validation split for each child, and the passes that measure its statistics anew.
    Choices: bands are equally wide on a log scale between the cheapest and the dearest child of the grid. A mutant
        draws each choice anew with the given probability and may fall into any band.

    Args:
        bands: Sizes that are told apart.
        mutants: Mutants of the best child of each band in each round.
        rounds: Rounds of mutation; 0 leaves it at the grid.
        rate: Probability with which a mutant draws a choice anew.
        most: Largest number of grid points; a finer grid is thinned out evenly.
        seed: Seed of the mutations.
    """

    when = "end"

    def __init__(
        self,
        bands: Count = 4,
        mutants: Count = 8,
        rounds: Whole = 2,
        rate: Fraction = 0.2,
        most: Count = 200,
        seed: Whole = 0,
    ):
        self.bands, self.mutants, self.rounds, self.rate = bands, mutants, rounds, rate
        self.most, self.seed = most, seed

    def look(self, run: Run) -> Finding:
        model: Any = run.model
        grid = list(model.grid())
        thinned = grid[:: -(-len(grid) // self.most)]
        archive: dict[str, Child] = {}
        for config in [*thinned, model.largest()]:
            self._add(run, config, archive)
        rng = torch.Generator().manual_seed(self.seed)
        for _ in range(self.rounds):
            parents = best_by_band(list(archive.values()), self.bands)
            for parent in parents.values():
                for _ in range(self.mutants):
                    self._add(run, model.mutate(parent.config, self.rate, rng), archive)
        return self._finding(run, list(archive.values()), len(thinned))

    @staticmethod
    def _add(run: Run, config: Config, archive: dict[str, Child]) -> None:
        """Measures a child that is new."""
        key = json.dumps(config, sort_keys=True)
        if key in archive:
            return
        model: Any = run.model
        name, goal = run.task.metric
        with model.configured(config):
            score = run.evaluate("val")[name]
            image = torch.zeros((1, *run.offer.shape), device=run.device)
            flops = cost_of(model, image).flops or 0
        archive[key] = Child(config, flops, score if goal == "max" else -score)

    def _finding(self, run: Run, archive: list[Child], coarse: int) -> Finding:
        name, goal = run.task.metric
        sign = 1 if goal == "max" else -1
        bests = best_by_band(archive, self.bands)
        scalars = {"children": float(len(archive))}
        for band, child in bests.items():
            scalars |= {f"band{band}/{name}": sign * child.score, f"band{band}/flops": float(child.flops)}
        series = [
            _series("coarse grid", archive[:coarse], sign),
            _series("mutants", archive[coarse:], sign),
            _series("front", front(archive), sign),
        ]
        figure = {
            "kind": "scatter",
            "title": "What accuracy costs",
            "x": {"label": "operations for a sample"},
            "y": {"label": f"val/{name}"},
            "series": [each for each in series if each["x"]],
            "more": [{"config": c.config, "flops": c.flops, name: sign * c.score} for c in archive],
        }
        return Finding(scalars, {"children": figure})

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if not isinstance(anatomy.module, Elastic):
            return "It searches the networks inside an elastic one; choose a model of many configurations."
        return None


def _series(name: str, children: list[Child], sign: int) -> dict[str, Any]:
    return {"name": name, "x": [c.flops for c in children], "y": [sign * c.score for c in children]}
