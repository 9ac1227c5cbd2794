"""Evolution of vectors of whole numbers under several objectives, all of them to be low; pymoo does it, and draws from
generators of its own that are seeded here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

Algorithm = Literal["nsga2", "u-nsga3"]
Evaluate = Callable[[np.ndarray], np.ndarray]  # genes [n, g] -> objectives [n, m]
ETA = 3.0  # how near children are to their parents: the smaller, the farther
TRIES = 10  # matings until a generation goes on with fewer children, where most of them are there already


def evolve(
    sizes: Sequence[int],
    evaluate: Evaluate,
    *,
    population: int,
    evaluations: int,
    seed: int,
    objectives: int = 2,
    algorithm: Algorithm = "nsga2",
    crossover: float = 0.9,
    mutation: float = 0.02,
) -> tuple[np.ndarray, np.ndarray]:
    """Every different vector that was evaluated, in the order of its first evaluation, with its objectives.

    Gene k is one of 0 .. sizes[k] - 1. `mutation` is the probability for each gene, `crossover` for a pair.
    """
    from pymoo.optimize import minimize

    seen: dict[tuple[int, ...], np.ndarray] = {}

    def each(genes: np.ndarray) -> np.ndarray:
        found = evaluate(genes)
        for row, value in zip(genes, found, strict=True):
            seen.setdefault(tuple(int(g) for g in row), value)
        return found

    made = _algorithm(algorithm, population, objectives, crossover, mutation)
    minimize(_problem(sizes, each, objectives), made, ("n_eval", evaluations), seed=seed)
    return np.array(list(seen), dtype=int), np.array(list(seen.values()), dtype=float)


def offspring(
    sizes: Sequence[int],
    genes: np.ndarray,
    values: np.ndarray,
    *,
    seed: int,
    algorithm: Algorithm = "nsga2",
    crossover: float = 0.9,
    mutation: float = 0.02,
) -> np.ndarray:
    """One generation of children of measured parents, as many as there are parents."""
    from pymoo.core.evaluator import Evaluator
    from pymoo.core.population import Population
    from pymoo.problems.static import StaticProblem

    objectives = values.shape[1]
    problem = _problem(sizes, lambda x: np.zeros((len(x), objectives)), objectives)
    parents = Population.new("X", genes)
    Evaluator().eval(StaticProblem(problem, F=values), parents)
    made = _algorithm(algorithm, len(genes), objectives, crossover, mutation, parents)
    made.setup(problem, termination=("n_gen", 3), seed=seed)
    made.tell(infills=made.ask())
    return np.asarray(made.ask().get("X"), dtype=int)


def _problem(sizes: Sequence[int], evaluate: Evaluate, objectives: int) -> Any:
    from pymoo.core.problem import Problem

    class Whole(Problem):
        def _evaluate(self, x: np.ndarray, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            out["F"] = evaluate(np.asarray(x, dtype=int))

    top = np.array(sizes) - 1
    return Whole(n_var=len(top), n_obj=objectives, xl=np.zeros_like(top), xu=top, vtype=int)


def _algorithm(
    name: Algorithm, population: int, objectives: int, crossover: float, mutation: float, start: Any = None
) -> Any:
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling

    shared = {
        "pop_size": population,
        "sampling": IntegerRandomSampling() if start is None else start,
        "crossover": SBX(prob=crossover, eta=ETA, vtype=float, repair=RoundingRepair()),
        "mutation": PM(prob=1.0, prob_var=mutation, eta=ETA, vtype=float, repair=RoundingRepair()),
        "eliminate_duplicates": True,
    }
    if name == "nsga2":
        from pymoo.algorithms.moo.nsga2 import NSGA2

        made: Any = NSGA2(**shared)
        made.mating.n_max_iterations = TRIES
        return made
    from pymoo.algorithms.moo.unsga3 import UNSGA3
    from pymoo.util.ref_dirs import get_reference_directions

    partitions = max(population - 1, 1) if objectives == 2 else 6
    made = UNSGA3(get_reference_directions("das-dennis", objectives, n_partitions=partitions), **shared)
    made.mating.n_max_iterations = TRIES
    return made
