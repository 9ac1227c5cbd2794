"""Searching the networks inside a trained one, with light predictors between the measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from engine.fields import Count, Fraction, Whole
from engine.figures import Figure, axis, dots, scatter
from engine.kit.calibration import norms_of
from engine.kit.elastic import Elastic
from engine.kit.evolving import Algorithm, evolve, offspring
from engine.kit.pareto import Archive, Entry, Genes, best
from engine.kit.supernets import Encoding, Measurer, Price
from engine.parts import Batch, Procedure, Task, procedure

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

ID = "linas"
BEYOND = 1.1  # the reference point lies a tenth beyond the smallest network's error and the largest one's prices
FOLDS = 5
Predict = Callable[[np.ndarray], np.ndarray]  # genes [n, g] -> one objective [n]


def scale_of(labels: np.ndarray) -> float:
    """What labels are divided by: the largest then has two digits before the point."""
    most = float(np.abs(labels).max())
    return 10.0 ** (math.floor(math.log10(most)) - 1) if most > 0 else 1.0


@contextmanager
def numpy_kept() -> Iterator[None]:
    """A stretch in which libraries may draw from NumPy's own generator: libsvm does, though nothing comes of it."""
    before = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(before)


def fit(x: np.ndarray, labels: np.ndarray, kind: str, grid: int) -> Any:
    """A regressor from one-hot genes to one objective, on scaled labels: ridge or a support vector machine, whichever
    has the smaller relative error over five folds."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVR

    candidates = {
        "ridge": (Ridge(), {"alpha": np.linspace(0.1, 10, grid)}),
        "svr": (SVR(kernel="rbf", gamma="auto", epsilon=0.0), {"C": np.linspace(1, 100, grid)}),
    }
    found = []
    for name, (model, values) in candidates.items():
        if kind in ("auto", name):
            folds = min(FOLDS, len(x))
            search = GridSearchCV(model, values, cv=folds, scoring="neg_mean_absolute_percentage_error")
            with numpy_kept():
                found.append(search.fit(x, labels / scale_of(labels)))
    return max(found, key=lambda search: search.best_score_)


def predictors(encoding: Encoding, archive: Archive, kind: str, grid: int) -> list[Predict]:
    """One for each objective, learned from all that was measured."""
    x, values = encoding.one_hot(archive.genes()), archive.values()
    made = [fit(x, column, kind, grid) for column in values.T]

    def answer(model: Any, scale: float, genes: np.ndarray) -> np.ndarray:
        return np.asarray(model.predict(encoding.one_hot(genes))) * scale

    return [partial(answer, model, scale_of(column)) for model, column in zip(made, values.T, strict=True)]


def unseen(encoding: Encoding, genes: np.ndarray, values: np.ndarray, seen: set[Genes], count: int) -> list[Genes]:
    """The best candidates by front and crowding that were not measured yet, each network once."""
    first: dict[Genes, int] = {}
    for place, row in enumerate(genes):
        first.setdefault(encoding.canonical([int(g) for g in row]), place)
    fresh = {one: place for one, place in first.items() if one not in seen}
    if not fresh:
        return []
    names = list(fresh)
    return [names[i] for i in best(values[list(fresh.values())], count)]


def topped_up(
    encoding: Encoding, chosen: Sequence[Genes], seen: set[Genes], count: int, rng: torch.Generator
) -> list[Genes]:
    """The chosen ones and random networks that were not measured yet; fewer where hardly any is left."""
    found = list(chosen)
    known = seen | set(found)
    for _ in range(100 * count):
        if len(found) == count:
            break
        drawn = encoding.sample(rng)
        if drawn not in known:
            known.add(drawn)
            found.append(drawn)
    return found


def tau(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Kendall's rank correlation; 0 where one of the two is all the same."""
    from scipy.stats import kendalltau

    found = float(kendalltau(predicted, measured).statistic)
    return found if math.isfinite(found) else 0.0


@procedure(
    id=ID,
    name="LINAS",
    paper="A Hardware-Aware Framework for Accelerating Neural Architecture Search Across Modalities",
    arxiv="2205.10358",
    packages=("pymoo",),
    graph="never",
    nondeterministic="clock",
    recommends={"training": {"normalization": "recalibrated", "calibration_batches": 4, "evaluate_every": 0}},
    example={
        "task": {"use": "digits", "train_limit": 100},
        "model": {"use": "elastic-cnn", "widths": [4], "kernels": [1, 3], "depths": [1, 2]},
        "procedure": {
            "use": "linas", "population": 4, "evaluations": 12, "inner_evaluations": 40, "inner_population": 8,
            "grid": 2, "validation": 64,
        },
        "training": {"normalization": "recalibrated", "calibration_batches": 1, "batch_size": 64},
    },
)  # fmt: skip
class LINAS(Procedure):
    """Searches the networks inside a trained elastic one for those that are accurate and cheap. Each round measures a
    population, learns light predictors from all measurements so far, and lets evolution choose the next population by
    what they predict.

        archive += measured(population);   f_k = ridge or SVR, one-hot genes -> objective k, on the whole archive
        population = best unseen of NSGA-II under (f_1, ..., f_m), by front, then crowding
        hypervolume = share of the box from 0 to the reference point that the archive dominates

    Helps: Finding good networks for a device after one training, with few measurements.
    Hurts: The validation split picks the winners, so they look a little better than they are: look at the test too. On
        digits, where nearly all networks inside are good, 50 measurements won as much as 100 of plain evolution, but
        hardly more than 50 at random.
    Cost: An evaluation of the validation split for each measured network, with its own statistics of normalization,
        and a second or two a round for predictors and evolution. Weights are not changed.
    Choices: One step is one round. Networks that are the same by rounding are measured once, and repeats never; the
        original measures the last inner population again. The reference point lies a tenth beyond the error of the
        smallest network, which is measured once for it, and the prices of the largest. Latency is measured after a
        warm-up, and is the one objective that no two runs repeat. Evolution among predictions has 50 candidates also
        where fewer networks are measured a round. The grids of the predictors have ten values each instead of a
        hundred.

    Args:
        population: Networks that are measured in each round.
        evaluations: Networks that are measured in all.
        prices: What is to be low beside the error: multiply-adds, parameters, or the time of one sample.
        predictor: Which regressor stands in for measurements: the better of two, one of them, or none, so that
            evolution goes from measurement to measurement.
        algorithm: How candidates are made: NSGA-II, U-NSGA-III (for three objectives), or at random.
        inner_evaluations: Predictions that evolution may ask for in each round.
        inner_population: Candidates of each generation of that evolution.
        crossover: Probability that two parents are mixed.
        mutation: Probability with which each gene changes.
        grid: Values of each predictor's own setting that are tried.
        validation: Validation samples that each network is measured on; 0 takes all.
    """

    uses = ("model",)
    offers = ("output",)
    makes = ()
    divisible = False

    def __init__(
        self,
        population: Annotated[int, Field(ge=2)] = 50,
        evaluations: Annotated[int, Field(ge=2)] = 250,
        prices: Annotated[list[Price], Field(min_length=1, max_length=2)] = ["multiply-adds"],  # noqa: B006
        predictor: Literal["auto", "ridge", "svr", "none"] = "auto",
        algorithm: Literal["nsga2", "u-nsga3", "random"] = "nsga2",
        inner_evaluations: Count = 20000,
        inner_population: Annotated[int, Field(ge=4)] = 50,
        crossover: Fraction = 0.9,
        mutation: Fraction = 0.02,
        grid: Count = 10,
        validation: Whole = 0,
    ):
        self.population, self.evaluations, self.prices = population, evaluations, list(prices)
        self.predictor, self.algorithm, self.inner_evaluations = predictor, algorithm, inner_evaluations
        self.inner_population = inner_population
        self.crossover, self.mutation, self.grid, self.validation = crossover, mutation, grid, validation
        self.archive = Archive()
        self.round = 0
        self.reference: list[float] = []
        self.taus: list[float] = []

    def pace(self) -> dict[str, float]:
        return {"evaluations": float(self.population)}

    def setup(self, run: Run) -> None:
        network: Any = run.model
        self._encoding = Encoding(network)
        self._measure = Measurer(run, self.prices, self.validation or None)

    # -- a round ---------------------------------------------------------------------------------------------------

    def step(self, run: Run, batch: Batch) -> None:
        if not self.reference:
            self.reference = self._reference(run)
        count = min(self.population, self.evaluations - len(self.archive))
        chosen, predicted = self.propose(run.rng(ID), count)
        measured = [self._measure(self._encoding.decode(genes)) for genes in chosen]
        if predicted is not None and len(chosen) > 1:
            self.taus.append(tau(predicted, np.array([values[0] for values in measured])))
            run.log("kendall-tau", self.taus[-1])
        for genes, values in zip(chosen, measured, strict=True):
            self.archive.add(genes, values, self.round)
        self.round += 1
        run.count("evaluations", len(chosen))
        won = self.archive.hypervolume(self.reference)
        run.log("hypervolume", won)
        run.tell(1 - won)
        if len(self.archive) >= self.evaluations:
            run.finish(f"{len(self.archive)} networks are measured.")
        elif len(chosen) < count:
            run.finish(f"All {len(self.archive)} networks that could be found are measured.")

    def propose(self, rng: torch.Generator, count: int) -> tuple[list[Genes], np.ndarray | None]:
        """The networks to measure next, and their predicted errors where there are predictors."""
        encoding, archive = self._encoding, self.archive
        seen = archive.seen()
        if not len(archive) or self.algorithm == "random":
            return topped_up(encoding, [], seen, count, rng), None
        seed = int(torch.randint(2**31, (1,), generator=rng, device=rng.device))
        if self.predictor == "none":
            return topped_up(encoding, self._children(seed, seen, count), seen, count, rng), None
        learned = predictors(encoding, archive, self.predictor, self.grid)
        chosen = topped_up(encoding, self._inner(learned, seed, seen, count), seen, count, rng)
        return chosen, learned[0](np.array(chosen)) if chosen else None

    def _inner(self, learned: Sequence[Predict], seed: int, seen: set[Genes], count: int) -> list[Genes]:
        """The best unseen networks of an evolution that sees predictions alone."""
        genes, values = evolve(
            self._encoding.sizes,
            lambda x: np.stack([predict(x) for predict in learned], 1),
            population=self.inner_population,
            evaluations=self.inner_evaluations,
            objectives=len(learned),
            **self._evolution(seed),
        )
        return unseen(self._encoding, genes, values, seen, count)

    def _children(self, seed: int, seen: set[Genes], count: int) -> list[Genes]:
        """One generation of the best that were measured."""
        genes, values = self.archive.genes(), self.archive.values()
        parents = best(values, self.population)
        made = offspring(self._encoding.sizes, genes[parents], values[parents], **self._evolution(seed))
        found = dict.fromkeys(self._encoding.canonical(row) for row in made.tolist())
        return [one for one in found if one not in seen][:count]

    def _evolution(self, seed: int) -> dict[str, Any]:
        kind: Algorithm = "u-nsga3" if self.algorithm == "u-nsga3" else "nsga2"
        return {"seed": seed, "algorithm": kind, "crossover": self.crossover, "mutation": self.mutation}

    def _reference(self, run: Run) -> list[float]:
        network: Any = run.model
        run.count("evaluations")
        error = self._measure(network.smallest())[0]
        return [BEYOND * value for value in (error, *self._measure.cost(network.largest()))]

    # -- what it found ---------------------------------------------------------------------------------------------

    def variants(self, run: Run) -> dict[str, Callable[[], AbstractContextManager[None]]]:
        """The network with the lowest error, once something was measured."""
        front = self.archive.front()
        if not front:
            return {}
        network: Any = run.model
        return {"best": partial(network.configured, self._encoding.decode(front[0].genes))}

    def result(self, run: Run) -> dict[str, float]:
        front = self.archive.front()
        found = {"hypervolume": self.archive.hypervolume(self.reference), "front": float(len(front))}
        late = [value for number, value in enumerate(self.taus, 2) if 3 <= number <= 5]
        if late:
            found["kendall-tau"] = sum(late) / len(late)
        for name, value in zip(("error", *self.prices), front[0].values if front else (), strict=False):
            found[f"best/{name}"] = value
        return found

    def opens(self, run: Run, entry: Entry) -> dict[str, Any]:
        """The changes that make a recipe of one network: the same model with that one chosen, trained by itself."""
        model = {name: value for name, value in run.recipe["model"].items() if value is not None}
        model["chosen"] = list(entry.genes)
        alone: dict[str, Any] = {"training.start_from": None, "budget": None}
        return {"model": model, "procedure": {"use": "backprop"}, **alone}

    def found(self, run: Run) -> dict[str, Any]:
        front = self.archive.front()
        return {"model.chosen": list(front[0].genes)} if front and "chosen" in (run.recipe["model"] or {}) else {}

    def figures(self, run: Run) -> dict[str, Figure]:
        """What was measured, by its round, and the networks that none beats, each of which opens its recipe."""
        if not len(self.archive):
            return {}
        front = self.archive.front()
        opens = [self.opens(run, entry) for entry in front] if "chosen" in (run.recipe["model"] or {}) else None
        values, rounds = self.archive.values(), [entry.round + 1 for entry in self.archive.entries]
        return {
            price: scatter(
                f"Error against {price}: {len(self.archive)} networks measured",
                dots("measured", values[:, k], values[:, 0], values=rounds),
                dots(
                    "not dominated",
                    [entry.values[k] for entry in front],
                    [entry.values[0] for entry in front],
                    opens=opens,
                    joined=len(self.prices) == 1,
                ),
                x=axis(price),
                y="val error",
                colour="round",
            )
            for k, price in enumerate(self.prices, 1)
        }

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if not isinstance(anatomy.module, Elastic):
            return "It searches the networks inside an elastic one; choose a model of many configurations."
        if not task.size("val"):
            return "It measures networks on the validation split, and the task has none."
        if norms_of(anatomy.module) and recipe["training"]["normalization"] == "running":
            return (
                "The networks inside the model share their statistics of normalization, which then are nobody's own; "
                'write training.normalization = "recalibrated".'
            )
        return None
