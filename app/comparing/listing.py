"""The list of runs as a table's data: what differs, chosen metrics, groups over seeds, filter and sort. Knows no Qt.

It is built off the GUI thread from plain runs, so that a thousand of them cost the window nothing.
"""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from app import words
from app.states import state
from engine import comparison
from engine.catalog import Catalog
from engine.recipe import BY_NAME

ALL_BUT_SEED = "*"  # a grouping by everything that differs but the seed
SHOWN_METRICS = 4
SPLITS = ("test", "val", "valid", "validation", "train")
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le, ">=": operator.ge, "!=": operator.ne, "<": operator.lt, ">": operator.gt, "=": operator.eq,
}  # fmt: skip
CONDITION = re.compile(r"^([\w./@#-]+)(<=|>=|!=|<|>|=)(.*)$")


@dataclass(frozen=True)
class View:
    """What a person has chosen to see. `grouping` holds paths, or ALL_BUT_SEED; empty means one row a run."""

    text: str = ""
    grouping: tuple[str, ...] = ()
    metrics: tuple[str, ...] | None = None  # None: the first few
    hidden: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Column:
    """One column. `kind` is state, name, setting, metric, time, size or begun; `key` stays the same over refreshes."""

    key: str
    title: str
    kind: str
    path: str = ""
    tip: str = ""

    @property
    def number(self) -> bool:
        return self.kind in ("metric", "time", "size", "begun")


@dataclass(frozen=True)
class Row:
    """One run or one group of runs: what each column sorts by, and what it says."""

    key: str
    runs: tuple[str, ...]
    name: str
    state: str
    values: tuple[Any, ...]
    write: Callable[[], tuple[str, ...]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """What the cells say, worked out when first seen: of a thousand rows a screen shows twenty."""
        return self.write()


@dataclass(frozen=True)
class Listing:
    """The whole table, unsorted, with what it was made from."""

    view: View
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    runs: Mapping[str, Mapping[str, Any]]
    metrics: tuple[str, ...]  # every metric there is
    paths: tuple[str, ...]  # every setting that differs
    total: int  # runs before the filter


def build(runs: Sequence[Mapping[str, Any]], view: View, catalog: Catalog | None = None) -> Listing:
    """The table of these runs. What differs is told of the runs that the filter leaves."""
    kept = keep(runs, view.text)
    differs = comparison.differences(kept, catalog)
    metrics = ranked({name for run in kept for name in run.get("metrics") or {}})
    chosen = view.metrics if view.metrics is not None else metrics[:SHOWN_METRICS]
    shown = [name for name in chosen if name in metrics]
    settings = [each for each in differs if not view.grouping or _groups_by(each["path"], view.grouping)]
    titles = _titles([each["path"] for each in settings])
    columns = [Column("state", "State", "state"), Column("name", "Name", "name")]
    columns += [Column(f"setting:{path}", title, "setting", path, path) for path, title in titles.items()]
    columns += [Column(f"metric:{name}", name, "metric", name, f"{name}, {_better(name)}") for name in shown]
    columns += [Column("time", "Time", "time", tip="training time"), Column("size", "Size", "size", tip="checkpoints")]
    columns += [Column("begun", "Begun", "begun")]
    columns = [column for column in columns if column.key not in view.hidden or column.kind == "name"]
    make = _group_rows if view.grouping else _run_rows
    return Listing(
        view=view,
        columns=tuple(columns),
        rows=tuple(make(kept, differs, columns, view)),
        runs={run["id"]: run for run in kept},
        metrics=tuple(metrics),
        paths=tuple(each["path"] for each in differs),
        total=len(runs),
    )


def ranked(metrics: Iterable[str]) -> list[str]:
    """Metrics in the order of interest: test before validation before training, losses after the rest."""

    def rank(name: str) -> tuple[int, bool, bool, str]:
        split = name.split("/", 1)[0]
        base, _, variant = split.partition("@")
        place = SPLITS.index(base) if base in SPLITS else len(SPLITS)
        return place, bool(variant), comparison.lower_is_better(name), name

    return sorted(metrics, key=rank)


def _groups_by(path: str, grouping: Sequence[str]) -> bool:
    return path in grouping or (ALL_BUT_SEED in grouping and path != "seed")


def _better(metric: str) -> str:
    return "lower is better" if comparison.lower_is_better(metric) else "higher is better"


def _titles(paths: Sequence[str]) -> dict[str, str]:
    """A column's title for each path, with its owner where two would be alike."""
    short = {path: title(path) for path in paths}
    counts = Counter(short.values())
    return {path: (name if counts[name] == 1 else path.replace(".", " ")) for path, name in short.items()}


def title(path: str) -> str:
    """A setting's name in a column's head."""
    section, *rest = path.split(".")
    if not rest or rest == ["use"]:
        return section
    if section in BY_NAME and BY_NAME[section].many:
        return " ".join(rest)
    return rest[-1] if rest[-1] != "use" else " ".join(rest[:-1])


# -- rows --------------------------------------------------------------------------------------------------------------


def _run_rows(
    runs: Sequence[Mapping[str, Any]], differs: Sequence[Mapping[str, Any]], columns: Sequence[Column], view: View
) -> list[Row]:
    rows = []
    for i, run in enumerate(runs):
        own = {each["path"]: each["values"][i] for each in differs}
        metrics = {
            name: {"mean": comparison.number(value), "std": None, "n": 1}
            for name, value in (run.get("metrics") or {}).items()
        }
        values = tuple(_run_value(column, run, own) for column in columns)
        write = partial(_run_texts, columns, values, run)
        rows.append(Row(run["id"], (run["id"],), _name(run), str(run["state"]), values, write, own, metrics))
    return rows


def _name(run: Mapping[str, Any]) -> str:
    return str(run.get("name") or run["id"])


def _run_value(column: Column, run: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    """What a cell sorts by."""
    if column.kind == "setting":
        return own.get(column.path)
    if column.kind == "metric":
        return (run.get("metrics") or {}).get(column.path)
    if column.kind == "state":
        return state(str(run["state"])).word
    if column.kind == "name":
        return _name(run).lower()
    if column.kind == "size":
        return comparison.size(run)
    return run.get("seconds" if column.kind == "time" else "created")


def _run_texts(columns: Sequence[Column], values: Sequence[Any], run: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(
        _name(run) if column.kind == "name" else TEXTS[column.kind](value)
        for column, value in zip(columns, values, strict=True)
    )


def _metric_text(value: Any) -> str:
    return words.number(value) if isinstance(value, int | float) else "–"


TEXTS: dict[str, Callable[[Any], str]] = {
    "state": str,
    "setting": comparison.text,
    "metric": _metric_text,
    "time": words.duration,
    "size": words.size,
    "begun": words.moment,
}


def _group_rows(
    runs: Sequence[Mapping[str, Any]], differs: Sequence[Mapping[str, Any]], columns: Sequence[Column], view: View
) -> list[Row]:
    by = None if ALL_BUT_SEED in view.grouping else view.grouping
    found = {run["id"]: run for run in runs}
    rows = []
    for each in comparison.group(runs, differs, by):
        members = [found[run] for run in each["runs"]]
        cells = [_group_cell(column, each, members) for column in columns]
        states = {str(run["state"]) for run in members}
        its_state = states.pop() if len(states) == 1 else ""
        key = "group:" + repr(sorted(each["settings"].items()))
        values, texts = tuple(cell[0] for cell in cells), tuple(cell[1] for cell in cells)
        runs_of, write = tuple(each["runs"]), partial(tuple, texts)
        rows.append(Row(key, runs_of, each["name"], its_state, values, write, each["settings"], each["metrics"]))
    return rows


def _group_cell(column: Column, group: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> tuple[Any, str]:
    if column.kind == "state":
        if group["done"] == len(runs):
            return "Done", "Done" if len(runs) == 1 else f"{len(runs)} done"
        if not group["done"] and len(group["left_out"]) == 1:
            return (word := state(next(iter(group["left_out"]))).word), f"{len(runs)} {word.lower()}"
        return "", f"{group['done']} of {len(runs)} done"
    if column.kind == "name":
        return group["name"].lower(), group["name"]
    if column.kind == "setting":
        value = group["settings"].get(column.path)
        return value, comparison.text(value)
    if column.kind == "metric":
        cell = group["metrics"].get(column.path)
        return (cell["mean"], summary_text(cell)) if cell else (None, "–")
    if column.kind == "time":
        seconds = [run.get("seconds") or 0.0 for run in runs]
        mean = sum(seconds) / len(seconds)
        return mean, words.duration(mean)
    if column.kind == "size":
        total = sum(comparison.size(run) for run in runs)
        return total, words.size(total)
    newest = max((run.get("created") or 0.0 for run in runs), default=None)
    return newest, words.moment(newest)


def summary_text(cell: Mapping[str, Any]) -> str:
    """A metric of a group: '0.9634 ± 0.0021 (5)'."""
    if cell["std"] is None:
        return f"{words.number(cell['mean'])} ({cell['n']})"
    return f"{comparison.plus_minus(cell['mean'], cell['std'])} ({cell['n']})"


# -- filter and sort ---------------------------------------------------------------------------------------------------


def keep(runs: Sequence[Mapping[str, Any]], text: str) -> list[Mapping[str, Any]]:
    """The runs that have every word of a filter, and meet conditions such as `lr<0.01` or `state=done`."""
    conditions, plain = [], []
    for word in text.split():
        match = CONDITION.match(word)
        if match:
            conditions.append((match[1], OPERATORS[match[2]], match[3]))
        else:
            plain.append(word.lower())
    if not conditions and not plain:
        return list(runs)
    return [
        run
        for run in runs
        if all(word in _haystack(run) for word in plain) and all(_meets(run, *each) for each in conditions)
    ]


def _haystack(run: Mapping[str, Any]) -> str:
    settings = comparison.settings(run.get("recipe") or "")
    parts = (comparison.text(v) for path, v in settings.items() if path.endswith(".use") or path in BY_NAME)
    about = (_name(run), run["id"], run["state"], run.get("notes") or "", *(run.get("tags") or ()), *parts)
    return " ".join(str(each) for each in about).lower()


def _meets(run: Mapping[str, Any], name: str, compares: Callable[[Any, Any], bool], wanted: str) -> bool:
    value = _look_up(run, name)
    if value is None:
        return False
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return bool(compares(value, float(wanted)))
        except ValueError:
            return False
    return bool(compares(comparison.text(value).lower(), wanted.lower()))


def _look_up(run: Mapping[str, Any], name: str) -> Any:
    """A run's column, metric or setting by its name or the end of its path."""
    if name in ("seed", "state", "name", "seconds", "step", "epoch", "sweep", "device"):
        return run.get(name)
    metrics = run.get("metrics") or {}
    if name in metrics:
        return metrics[name]
    settings = comparison.settings(run.get("recipe") or "")
    for wanted in (name, f"{name}.use"):
        if wanted in settings:
            return settings[wanted]
    endings = (f".{name}", f"/{name}")
    return next((v for path, v in {**settings, **metrics}.items() if path.endswith(endings)), None)


def ordered(rows: Sequence[Row], column: int, descending: bool) -> list[Row]:
    """The rows by one column; those without a value last, whichever way."""

    def rank(row: Row) -> tuple[int, Any]:
        value = row.values[column]
        if isinstance(value, bool):
            return 0, float(value)
        if isinstance(value, int | float):
            return 0, value
        return 1, comparison.text(value).lower()

    def missing(row: Row) -> bool:
        value = row.values[column]
        return value is None or (isinstance(value, float) and math.isnan(value))

    there = sorted((row for row in rows if not missing(row)), key=rank, reverse=descending)
    return there + [row for row in rows if missing(row)]


# -- out of the window -------------------------------------------------------------------------------------------------


def as_text(columns: Sequence[Column], rows: Sequence[Row], separator: str = "\t") -> str:
    """The table as text, as it is seen; for the clipboard."""
    lines = [separator.join(column.title for column in columns)]
    lines += [separator.join(row.texts) for row in rows]
    return "\n".join(lines) + "\n"


def as_csv(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """The table as CSV with full numbers; a metric of a group gives mean, standard deviation and number."""
    grouped = any(len(row.runs) > 1 or row.key.startswith("group:") for row in rows)
    head: list[str] = []
    for column in columns:
        name = column.path or column.key
        head += [f"{name} mean", f"{name} std", f"{name} n"] if grouped and column.kind == "metric" else [name]
    lines = [head]
    for row in rows:
        line: list[Any] = []
        for column, value, text in zip(columns, row.values, row.texts, strict=True):
            if grouped and column.kind == "metric":
                cell = row.metrics.get(column.path, {})
                line += [cell.get(key) for key in ("mean", "std", "n")]
            else:
                line.append(text if column.kind in ("state", "name") else value)
        lines.append([_plain(each) for each in line])
    return "\n".join(",".join(_quoted(each) for each in line) for line in lines) + "\n"


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return repr(value) if isinstance(value, float) else comparison.text(value)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n\r') else text
