"""What differs between runs, and what the difference did: the table, the groups over seeds, the verdicts.

Everything here is plain data in and plain data out, for the window and for the command alike. Runs are dictionaries as
the log gives them: `id`, `name`, `state`, `recipe` (TOML), `seed`, `metrics` and the rest.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from engine import axes
from engine.catalog import Catalog
from engine.errors import RecipeError
from engine.recipe import BY_NAME, PLANS, SCHEMA, SECTIONS, Recipe, flatten
from engine.statistics import holm, student_quantile, welch

# Not settings: they change nothing about what is trained.
ASIDE = ("schema", "name", "notes", "seed")
# Series whose name says that less is better; every other metric is better when it is higher.
LOWER = re.compile(
    r"loss|error|perplexity|nll|mse|mae|rmse|bits|regret|distance|divergence|brier|\bece\b|seconds|time|bytes|flops|"
    r"parameters|memory|energy|sharpness"
)
FRACTIONS = re.compile(r"accuracy|precision|recall|\bf1\b|\bauc\b")
SIGNIFICANT = 0.05
KEPT = (
    "id",
    "name",
    "state",
    "seed",
    "sweep",
    "created",
    "started",
    "ended",
    "seconds",
    "step",
    "steps",
    "digest",
    "weights",
)


def compare(
    runs: Sequence[Mapping[str, Any]], catalog: Catalog | None = None, by: Sequence[str] | None = None
) -> dict[str, Any]:
    """Everything that can be said of some runs, as plain data.

    `differs` has one entry a setting that is not the same in all runs, its values in the order of the runs. `groups`
    are the runs that share all of these but the seed (or those named in `by`), with mean, standard deviation and number
    of the finished runs for every metric. `verdicts` compare the groups, the best of each metric with the others.
    With a catalog, a setting that a recipe leaves out counts as its default.
    """
    differs = differences(runs, catalog)
    groups = group(runs, differs, by)
    at = {run: i for i, each in enumerate(groups) for run in each["runs"]}
    rows = [
        {
            **{key: run.get(key) for key in KEPT},
            "bytes": size(run),
            "group": at[run["id"]],
            "metrics": dict(run.get("metrics") or {}),
        }
        for run in runs
    ]
    return {"runs": rows, "differs": differs, "groups": groups, "verdicts": verdicts(groups)}


def size(run: Mapping[str, Any]) -> int:
    """The bytes that a run's checkpoints take."""
    return sum(int(checkpoint.get("bytes") or 0) for checkpoint in run.get("checkpoints") or ())


# -- what differs ------------------------------------------------------------------------------------------------------


def differences(runs: Sequence[Mapping[str, Any]], catalog: Catalog | None = None) -> list[dict[str, Any]]:
    """The settings that are not the same in all runs, in the recipe's order: [{path, values}]."""
    documents = [read(run.get("recipe") or "") for run in runs]
    flat = [settings(run.get("recipe") or "") for run in runs]
    paths = sorted({path for each in flat for path in each}, key=_rank)
    found = []
    for path in paths:
        values = [each.get(path) for each in flat]
        if catalog is not None and None in values:
            values = [
                default(path, document, catalog) if value is None else value
                for value, document in zip(values, documents, strict=True)
            ]
        if _varies(values):
            found.append({"path": path, "values": values})
    for path, values in (("parent", [_branch(run) for run in runs]), ("seed", [run.get("seed") for run in runs])):
        if _varies(values):
            found.append({"path": path, "values": values})
    return found


@lru_cache(maxsize=4096)
def read(text: str) -> dict[str, Any]:
    """A recipe as plain data, to be read only; empty where it is not TOML (a run keeps whatever it was given)."""
    try:
        document = tomllib.loads(text)
        return document if document.get("schema", SCHEMA) == SCHEMA else Recipe.parse(text).document
    except (tomllib.TOMLDecodeError, RecipeError):
        return {}


@lru_cache(maxsize=4096)
def settings(text: str) -> dict[str, Any]:
    """Every setting of a recipe by path; parts of a list go by their id, since their place may differ between recipes.

    Cached, to be read only. Parts that are switched off do not count.
    """
    flat: dict[str, Any] = {}
    for name, value in read(text).items():
        if name in ASIDE:
            continue
        if name in BY_NAME and BY_NAME[name].many and isinstance(value, list):
            parts = named(value)
            flat[name] = list(parts)
            for key, part in parts.items():
                rest = {field: setting for field, setting in part.items() if field not in ("use", "enabled")}
                flat.update(flatten(rest, f"{name}.{key}"))
        else:
            flat.update(flatten(value, name))
    return {path: value for path, value in flat.items() if value not in ([], {})}


def named(parts: Iterable[Any]) -> dict[str, Mapping[str, Any]]:
    """The parts of a list section that are switched on, by id; a second one of the same id is called ID#2."""
    found: dict[str, Mapping[str, Any]] = {}
    seen: Counter[str] = Counter()
    for part in parts:
        if isinstance(part, Mapping) and part.get("enabled", True) is not False:
            use = str(part.get("use", ""))
            seen[use] += 1
            found[use if seen[use] == 1 else f"{use}#{seen[use]}"] = part
    return found


def default(path: str, document: Mapping[str, Any], catalog: Catalog) -> Any:
    """What a recipe that does not write a path gets there; None where the path does not apply to it."""
    name, *keys = path.split(".")
    section = BY_NAME.get(name)
    if section is None or not keys:
        return None
    value = document.get(name)
    if not section.kind:
        return _default(catalog.sections.get(name, {}), value or {}, keys, catalog)
    if section.many:
        part = named(value or ()).get(keys.pop(0))
    else:
        use = catalog.default(section.kind) if name not in PLANS else None
        part = value if isinstance(value, Mapping) else ({"use": use} if use else None)
    return _default_of_part(part, keys, catalog)


def _default_of_part(part: Any, keys: list[str], catalog: Catalog) -> Any:
    if not isinstance(part, Mapping) or not keys:
        return None
    if keys == ["use"]:
        return part.get("use")
    entry = catalog.parts.get(str(part.get("use")))
    return _default(entry.schema, part, keys, catalog) if entry else None


def _default(schema: Mapping[str, Any], here: Mapping[str, Any], keys: list[str], catalog: Catalog) -> Any:
    field = schema.get("properties", {}).get(keys[0])
    if field is None:
        return None
    value = here.get(keys[0], field.get("default"))
    if len(keys) == 1:
        return None if isinstance(value, Mapping) else value
    return _default_of_part(value, keys[1:], catalog)


def _branch(run: Mapping[str, Any]) -> str | None:
    return f"{run['parent']} @ {run.get('parent_step')}" if run.get("parent") else None


def _rank(path: str) -> tuple[int, bool, str]:
    """The order of columns: sections as in a recipe, the part of a section before its settings."""
    name, _, rest = path.partition(".")
    names = [section.name for section in SECTIONS]
    return names.index(name) if name in names else len(names), rest not in ("", "use"), rest


def frozen(value: Any) -> Any:
    """A value that can be compared and hashed: 1 equals 1.0, and true is not 1."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, list | tuple):
        return tuple(frozen(each) for each in value)
    if isinstance(value, Mapping):
        return tuple(sorted((str(key), frozen(each)) for key, each in value.items()))
    return value


def _varies(values: Sequence[Any]) -> bool:
    if not values:
        return False
    first = frozen(values[0])
    return any(frozen(value) != first for value in values)


# -- at equal cost -----------------------------------------------------------------------------------------------------

Points = Callable[[str, str], tuple[Any, Any, Any]]  # run and series -> steps, values, times


@dataclass(frozen=True)
class AtCost:
    """Runs as they stood when each had used as much as the others: of an axis, up to `limit`."""

    axis: str
    limit: float
    runs: list[dict[str, Any]]
    left_out: list[str]  # names of runs that have not counted it

    @property
    def sentence(self) -> str:
        """What was compared, in words."""
        told = f"At equal {axes.words(self.axis)}"
        if not self.runs:
            return f"{told}: none of the runs has counted them." if self.axis != axes.TIME else f"{told}: nothing."
        said = f"{told}: {text(self.limit)}{' s' if self.axis == axes.TIME else ''}."
        if self.left_out:
            said += f" Left out, without a count: {', '.join(self.left_out)}."
        return said


def at_equal(axis: str, runs: Sequence[Mapping[str, Any]], names: Callable[[str], list[str]], points: Points) -> AtCost:
    """The metrics that runs had when each had used up as much of an axis as the one that used least in all.

    `names` lists the series of a run, `points` reads one. A metric without a curve, such as that of the test split,
    is the end's: it stays where a run ended at the limit, and is gone elsewhere.
    """
    reached: dict[str, float] = {}
    for run in runs:
        found = [place for place, _ in _laid(axis, run, names(run["id"]), points).values()]
        if found:
            reached[run["id"]] = max(float(place[-1]) for place in found)
    limit = min(reached.values(), default=0.0)
    kept, left_out = [], []
    for run in runs:
        if run["id"] not in reached:
            left_out.append(str(run.get("name") or run["id"]))
            continue
        laid = _laid(axis, run, names(run["id"]), points)
        kept.append({**run, "metrics": _metrics_at(run, laid, limit, reached[run["id"]])})
    return AtCost(axis, limit, kept, left_out)


def _laid(axis: str, run: Mapping[str, Any], names: Sequence[str], points: Points) -> dict[str, tuple[Any, Any]]:
    """The series of a run that are metrics too, along an axis; nothing where the run does not know it."""
    told = None
    if axis not in (axes.STEP, axes.TIME):
        if axis not in names:
            return {}
        steps, values, _ = points(run["id"], axis)
        told = (np.asarray(steps), np.asarray(values))
    found = {}
    for name in (name for name in names if name in (run.get("metrics") or {}) and not axes.measures_progress(name)):
        steps, values, times = (np.asarray(each) for each in points(run["id"], name))
        if len(steps):
            started = run.get("started")
            begin = float(times[0] if started is None else started)
            found[name] = axes.along(axis, steps, times, begin, told), values
    return found


def _metrics_at(
    run: Mapping[str, Any], laid: Mapping[str, tuple[Any, Any]], limit: float, reached: float
) -> dict[str, float]:
    """The last value of each metric at or before the limit."""
    whole = reached <= limit * (1 + 1e-9)
    found = dict(run.get("metrics") or {}) if whole else {}
    for name, (place, values) in laid.items():
        before = int(np.searchsorted(place, limit * (1 + 1e-9), side="right"))
        if not whole and before:
            found[name] = float(values[before - 1])
    return found


# -- groups over seeds -------------------------------------------------------------------------------------------------


def group(
    runs: Sequence[Mapping[str, Any]], differs: Sequence[Mapping[str, Any]], by: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The runs that share their settings but the seed (or those of `by`), in the order of their first run."""
    used = [each for each in differs if (each["path"] != "seed" if by is None else each["path"] in by)]
    members: dict[Any, list[int]] = {}
    for i in range(len(runs)):
        members.setdefault(tuple(frozen(each["values"][i]) for each in used), []).append(i)
    groups = []
    for rows in members.values():
        mine = [runs[i] for i in rows]
        states = Counter(str(run.get("state")) for run in mine)
        done = states.pop("done", 0)
        groups.append(
            {
                "name": "",
                "settings": {each["path"]: each["values"][rows[0]] for each in used},
                "runs": [run["id"] for run in mine],
                "done": done,
                "left_out": dict(states),
                "metrics": summary([run.get("metrics") or {} for run in mine if run.get("state") == "done"]),
            }
        )
    _name(groups, {run["id"]: str(run.get("name") or "") for run in runs})
    return groups


def summary(metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean, standard deviation (None for a single value) and number of the finite values of every metric."""
    found = {}
    for name in sorted({name for each in metrics for name in each}):
        values = np.array([number(each.get(name)) for each in metrics])
        values = values[np.isfinite(values)]
        if len(values):
            std = float(values.std(ddof=1)) if len(values) > 1 else None
            found[name] = {"mean": float(values.mean()), "std": std, "n": len(values)}
    return found


def number(value: Any) -> float:
    """A metric's value; NaN where there is none."""
    return float(value) if isinstance(value, int | float) else math.nan


def _name(groups: list[dict[str, Any]], names: Mapping[str, str]) -> None:
    """Gives each group the name that its runs share, or what sets it apart where that is not one name of its own."""
    shared = [{names[run] for run in each["runs"]} for each in groups]
    counts = Counter(name for each in shared for name in each)
    for each, own in zip(groups, shared, strict=True):
        only = next(iter(own)) if len(own) == 1 else ""
        each["name"] = only if only and counts[only] == 1 else describe(each["settings"]) or only or "all runs"


def describe(values: Mapping[str, Any], most: int = 4) -> str:
    """Some settings in few words: a part by its id alone, a field with its last name."""
    words = []
    for path, value in values.items():
        if value is None:
            continue
        last = path.rsplit(".", 1)[-1]
        words.append(text(value) if last == "use" or path in BY_NAME else f"{last} {text(value)}")
    return ", ".join(words[:most]) + (" ..." if len(words) > most else "")


def text(value: Any) -> str:
    """A setting's value as a table shows it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(text(each) for each in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text(each)}" for key, each in value.items())
    return str(value)


# -- verdicts ----------------------------------------------------------------------------------------------------------


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is better, by its name."""
    return bool(LOWER.search(metric.rsplit("/", 1)[-1].lower()))


def verdicts(groups: Sequence[Mapping[str, Any]], most: int = 5) -> list[dict[str, Any]]:
    """For each metric, the best group against the next ones (at most `most`), by Welch's test.

    The p values are corrected (Holm) for all pairs of groups that could have been named, since the best one was picked
    after looking.
    """
    found = []
    for metric in sorted({name for each in groups for name in each["metrics"]}):
        have = [i for i, each in enumerate(groups) if metric in each["metrics"]]
        if len(have) < 2:
            continue
        sign = 1.0 if lower_is_better(metric) else -1.0
        have.sort(key=lambda i: sign * groups[i]["metrics"][metric]["mean"])
        corrected = _pairs([groups[i]["metrics"][metric] for i in have])
        for place in range(1, min(len(have), most + 1)):
            found.append(_verdict(metric, groups, have[0], have[place], corrected.get((0, place), math.nan)))
    return found


def _pairs(cells: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int], float]:
    """Corrected p values of all pairs of cells with at least two values each; NaN where there is no spread."""
    usable = np.array([i for i, cell in enumerate(cells) if cell["n"] > 1], dtype=int)
    if len(usable) < 2:
        return {}
    mean, std, n = (np.array([cells[i][key] for i in usable], dtype=float) for key in ("mean", "std", "n"))
    first, second = np.triu_indices(len(usable), k=1)
    _, _, p = welch(mean[first], std[first], n[first], mean[second], std[second], n[second])
    pairs = zip(usable[first].tolist(), usable[second].tolist(), strict=True)
    return dict(zip(pairs, holm(p).tolist(), strict=True))


def _verdict(metric: str, groups: Sequence[Mapping[str, Any]], best: int, other: int, p: float) -> dict[str, Any]:
    """One comparison as data with its sentence; `p` is corrected already."""
    a, b = groups[best]["metrics"][metric], groups[other]["metrics"][metric]
    verdict: dict[str, Any] = {
        "metric": metric,
        "better": "lower" if lower_is_better(metric) else "higher",
        "best": best,
        "other": other,
        "names": [groups[best]["name"], groups[other]["name"]],
        "difference": a["mean"] - b["mean"],
        "error": None,
        "interval": None,
        "n": [a["n"], b["n"]],
        "p": None if math.isnan(p) else p,
        "clear": False,
    }
    if a["n"] > 1 and b["n"] > 1:
        error, freedom, _ = welch(a["mean"], a["std"], a["n"], b["mean"], b["std"], b["n"])
        verdict["error"] = float(error)
        if not math.isnan(p):
            half = float(student_quantile(freedom) * error)
            verdict["interval"] = [verdict["difference"] - half, verdict["difference"] + half]
            verdict["clear"] = p < SIGNIFICANT
    verdict["sentence"] = _sentence(verdict, a, b, _left_out(groups[best], groups[other]))
    return verdict


def _sentence(verdict: Mapping[str, Any], a: Mapping[str, Any], b: Mapping[str, Any], left_out: str) -> str:
    """The verdict in words."""
    best, other = verdict["names"]
    metric, n = verdict["metric"], f"n = {verdict['n'][0]} + {verdict['n'][1]}"
    fraction = bool(FRACTIONS.search(metric))
    scale, unit = (100.0, " points") if fraction else (1.0, "")
    gap = abs(verdict["difference"]) * scale
    if verdict["error"] is None:
        means = (
            f"{best} has {plus_minus(a['mean'], a['std'])} (n = {a['n']}), {other} {plus_minus(b['mean'], b['std'])}"
        )
        return (
            f"{metric}: not enough runs to tell. {means} (n = {b['n']}). Train each with two seeds or more.{left_out}"
        )
    spread = verdict["error"] * scale
    if verdict["p"] is None:
        if gap == 0.0:
            return f"{metric}: {best} and {other} are the same in every run ({n}).{left_out}"
        return f"{metric}: {best} is better than {other} by {gap:.4g}{unit} in every run ({n}, no spread).{left_out}"
    by = f"{plus_minus(gap, spread)}{unit} ({n}, p {probability(verdict['p'])})"
    if verdict["clear"]:
        return f"{metric}: {best} is better than {other} by {by}.{left_out}"
    return f"{metric}: no clear difference between {best} and {other}: {by}.{left_out}"


def _left_out(*groups: Mapping[str, Any]) -> str:
    """A sentence on the runs that are not in the means, because they did not finish."""
    states: Counter[str] = Counter()
    for each in groups:
        states.update(each["left_out"])
    if not states:
        return ""
    return " Left out: " + ", ".join(f"{count} {state}" for state, count in sorted(states.items())) + "."


def plus_minus(value: float, spread: float | None) -> str:
    """A value with its spread, to two digits of the spread: 97.62 ± 0.41."""
    if spread is None or not math.isfinite(spread) or not math.isfinite(value):
        return f"{value:.4g}"
    if spread == 0.0:
        return f"{value:.4g} ± 0"
    digits = 1 - math.floor(math.log10(spread))
    if digits > 8 or abs(value) >= 1e6:
        return f"{value:.4g} ± {spread:.2g}"
    decimals = max(0, digits)
    return f"{value:.{decimals}f} ± {spread:.{decimals}f}"


def probability(p: float) -> str:
    """A p value with its sign of relation: '= 0.003' or '< 0.0001'."""
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"
