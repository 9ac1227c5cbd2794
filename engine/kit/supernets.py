"""The networks inside an elastic one as vectors of whole numbers, and what each of them costs and is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from engine.kit.anatomy import example_input
from engine.kit.cost import cost_of, latency
from engine.kit.elastic import Config, Elastic
from engine.kit.pareto import Genes

if TYPE_CHECKING:
    from engine.training.run import Run

Price = Literal["multiply-adds", "parameters", "latency"]


class Encoding:
    """Configurations as genes: for each choice the place of its value. Two that are the same network have the same
    canonical genes."""

    def __init__(self, network: Elastic):
        self.network = network
        self.choices = {name: list(values) for name, values in network.choices().items()}
        self.sizes = [len(values) for values in self.choices.values()]

    def encode(self, config: Mapping[str, Any]) -> Genes:
        return tuple(values.index(config[name]) for name, values in self.choices.items())

    def decode(self, genes: Sequence[int]) -> Config:
        return {name: values[gene] for gene, (name, values) in zip(genes, self.choices.items(), strict=True)}

    def canonical(self, genes: Sequence[int]) -> Genes:
        """The genes that stand for all of the same network."""
        return self.encode(self.network.canonical(self.decode(genes)))

    def sample(self, rng: torch.Generator) -> Genes:
        """Canonical genes of a random configuration, each choice drawn on its own."""
        return self.canonical(self.encode(self.network.sample(rng)))

    def one_hot(self, genes: np.ndarray) -> np.ndarray:
        """A column of zeros and ones for each value of each choice, for genes [n, g]; a single value has none."""
        columns = [np.eye(size)[genes[:, k]] for k, size in enumerate(self.sizes) if size > 1]
        return np.concatenate(columns, 1) if columns else np.zeros((len(genes), 1))


def error_of(run: Run, limit: int | None = None) -> float:
    """The task's metric on the validation split as something to be low: one minus it where it is to be high."""
    name, goal = run.task.metric
    value = run.evaluate("val", limit=limit)[name]
    return 1 - value if goal == "max" else value


class Measurer:
    """Measures networks inside a run's elastic model: the error, with statistics of normalization as the recipe wants
    them for each, and the prices that are asked for."""

    def __init__(self, run: Run, prices: Sequence[Price], limit: int | None = None, batch: int = 1):
        self.run, self.prices, self.limit = run, tuple(prices), limit
        self.example = example_input(run.offer, batch, run.device.type)

    def __call__(self, config: Mapping[str, Any]) -> list[float]:
        network: Any = self.run.model
        with network.configured(config):
            return [error_of(self.run, self.limit), *self.cost(config)]

    def cost(self, config: Mapping[str, Any]) -> list[float]:
        """The prices alone."""
        network: Any = self.run.model
        plain = network.extract(config).eval()
        found = []
        for price in self.prices:
            if price == "latency":
                found.append(latency(plain, self.example))
            else:
                counted = cost_of(plain, self.example)
                adds = counted.multiply_adds
                found.append(float(counted.parameters if price == "parameters" else adds or 0))
        return found
