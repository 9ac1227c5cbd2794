"""Measures what a method does against its baseline: `python -m engine.training.evidence [--keep] ID...`.

An ablation is a TOML file in resources/evidence: a recipe, what the baseline and the method change in it, a claim as
metric, direction and margin, and seeds; `part` where the file is not called as the part that it is about; `instances`
names the settings that take the seed too, where the problem itself is drawn (["task.instance"]); `baseline_metric` is
what the baseline is measured by, where a run measures before and after under two names. Prints one JSON row an
ablation; `--keep` writes it beside the file, with the machine and the date, whether or not the claim holds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import statistics
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from engine.errors import AthanorError
from engine.recipe import Recipe, merge
from engine.training.assemble import build_task, filled
from engine.training.loop import Outcome, train
from engine.training.sweep import carry_out
from engine.workspace import RESOURCES

FOLDER = RESOURCES / "evidence"
ARMS = ("baseline", "method")
NEEDED = {"claim", "metric", "better", "margin", "seeds", "recipe", *ARMS}
KEYS = NEEDED | {"tune", "part", "instances", "baseline_metric"}


def read(id: str) -> dict[str, Any]:
    """One ablation. Raises AthanorError where there is none or it is not complete."""
    path = FOLDER / f"{id}.toml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.toml")))
        raise AthanorError(f"There is no ablation {id!r}. There are: {known}.")
    try:
        ablation = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise AthanorError(f"{path} is not valid TOML: {error}.") from None
    for wrong, words in ((NEEDED - set(ablation), "lacks"), (set(ablation) - KEYS, "must not have")):
        if wrong:
            raise AthanorError(f"{path} {words} {', '.join(sorted(wrong))}.")
    return ablation


def run(document: Mapping[str, Any], seed: int, instances: Sequence[str] = ()) -> Outcome:
    """Trains one recipe of an ablation with one seed; a search or a study is carried out in this process."""
    recipe = Recipe.of({**document, "seed": seed})
    for path in instances:
        recipe.set(path, seed)
    return carry_out(recipe) if recipe.plan else train(filled(recipe))


def tuned(
    document: dict[str, Any], choices: Mapping[str, list[Any]], seeds: list[int], instances: Sequence[str] = ()
) -> dict[str, Any]:
    """The recipe with the value of each listed setting that has the best mean validation metric over the seeds."""
    task = build_task(filled(Recipe.of(document)))
    name, goal = task.metric
    for path, values in choices.items():
        scores = {}
        for value in values:
            recipe = Recipe.of(document)
            recipe.set(path, value)
            ran = [run(recipe.document, seed, instances) for seed in seeds]
            found = [outcome.metrics.get(f"val/{name}", math.nan) for outcome in ran]
            mean = statistics.fmean(found)
            scores[value] = (mean if goal == "max" else -mean) if math.isfinite(mean) else -math.inf
        recipe = Recipe.of(document)
        recipe.set(path, max(scores, key=lambda value: scores[value]))
        document = recipe.document
    return document


def measure(id: str) -> dict[str, Any]:
    """Both arms over all seeds: means, spread, the effect, and whether the claim holds."""
    ablation = read(id)
    started = time.perf_counter()
    row: dict[str, Any] = {"id": id, "part": ablation.get("part", id)}
    row |= {name: ablation[name] for name in ("claim", "metric", "baseline_metric") if name in ablation}
    seeds, instances = ablation["seeds"], ablation.get("instances", ())
    for arm in ARMS:
        document = merge(ablation["recipe"], ablation[arm])
        choices = ablation.get("tune", {}).get(arm, {})
        if choices:
            document = tuned(document, choices, seeds, instances)
            row[f"{arm}_tuned"] = {path: Recipe.of(document).get(path) for path in choices}
        outcomes = [run(document, seed, instances) for seed in seeds]
        metric = ablation.get(f"{arm}_metric", ablation["metric"])
        row[arm] = spread([_value(outcome, metric, id) for outcome in outcomes])
    sign = 1 if ablation["better"] == "higher" else -1
    row["effect"] = row["method"]["mean"] - row["baseline"]["mean"]
    row["better"], row["margin"] = ablation["better"], ablation["margin"]
    row["holds"] = bool(sign * row["effect"] >= ablation["margin"])
    row["seconds"] = round(time.perf_counter() - started, 2)
    return row


def _value(outcome: Outcome, metric: str, id: str) -> float:
    if metric not in outcome.metrics:
        raise AthanorError(f"The ablation {id!r} asks for {metric!r}; its runs have {', '.join(outcome.metrics)}.")
    return outcome.metrics[metric]


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, standard deviation (n - 1) and n, with the values themselves."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": deviation, "n": len(values), "values": values}


def keep(row: Mapping[str, Any]) -> None:
    """Writes a measured row beside its ablation."""
    where = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    (FOLDER / f"{row['id']}.json").write_text(json.dumps({**row, **where}, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    ask = argparse.ArgumentParser(prog="engine.training.evidence", description="Measures ablations.")
    ask.add_argument("ids", nargs="+")
    ask.add_argument("--keep", action="store_true", help="write what was measured beside the ablation")
    given = ask.parse_args(arguments)
    for id in given.ids:
        try:
            row = measure(id)
        except AthanorError as error:
            print(error, file=sys.stderr)
            return 2
        if given.keep:
            keep(row)
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
