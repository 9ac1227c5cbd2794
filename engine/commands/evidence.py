"""`main.py evidence`: trains methods and their baselines, and says whether the claims hold here."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from engine.commands.cli import DONE, FAILED, INTERRUPTED, add_json
from engine.commands.output import console, duration, print_json, print_table, show
from engine.comparison import plus_minus
from engine.errors import AthanorError
from engine.service.processes import environment, python
from engine.workspace import RESOURCES

FOLDER = RESOURCES / "evidence"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="*", metavar="ID", help="the name of an ablation in resources/evidence")
    parser.add_argument("--all", action="store_true", help="every ablation there is")
    parser.add_argument("--sample", type=int, metavar="N", help="N ablations, drawn at random")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="which ones --sample draws (default 0)")
    parser.add_argument(
        "--markdown", action="store_true", help="what was measured before, as resources/evidence/README.md"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    known = sorted(path.stem for path in FOLDER.glob("*.toml"))
    if options.markdown:
        print(markdown(_kept(known)), end="")
        return DONE
    if not (options.ids or options.all or options.sample is not None):
        return _list(known, options.json)
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    for name in choose(known, options):
        if not options.json:
            console(error=True).print(f"measuring {name} ...", style="dim")
        try:
            found = list(measure(name))
        except AthanorError as error:
            print(error, file=sys.stderr)
            failed.append(name)
            continue
        except KeyboardInterrupt:
            return INTERRUPTED
        rows += found
    if options.json:
        print_json(rows)
    else:
        _print(rows)
    return FAILED if failed else DONE


def choose(known: list[str], options: argparse.Namespace) -> list[str]:
    """The ablations that were asked for, each once, in the order asked."""
    if sum((bool(options.ids), options.all, options.sample is not None)) > 1:
        raise AthanorError("Give ids, --all or --sample: one of the three.")
    if options.all:
        return known
    if options.sample is not None:
        if options.sample < 1:
            raise AthanorError(f"--sample {options.sample}: give a number of 1 or more.")
        return sorted(random.Random(options.seed).sample(known, min(options.sample, len(known))))
    unknown = [name for name in options.ids if name not in known]
    if unknown:
        raise AthanorError(f"There is no ablation {unknown[0]!r}. There are: {', '.join(known) or 'none'}.")
    return list(dict.fromkeys(options.ids))


def measure(name: str) -> Iterator[dict[str, Any]]:
    """Rows of one ablation, measured in a process of its own: what one leaves behind does not touch the next."""
    process = subprocess.Popen(
        [*python("engine.training.evidence"), "--keep", name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        text=True,
    )
    try:
        output, errors = process.communicate()
    except KeyboardInterrupt:
        process.kill()
        process.wait()
        raise
    if process.returncode:
        reason = (errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        raise AthanorError(f"The ablation {name} could not be measured: {reason}")
    for line in output.splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def _list(known: list[str], as_json: bool) -> int:
    """Without names: what there is, with what was measured last, nothing trained."""
    rows = _kept(known)
    if not as_json:
        measured = {row["id"] for row in rows}
        rows += [{"id": name, "claim": "not measured yet"} for name in known if name not in measured]
        rows.sort(key=lambda row: row["id"])
    if as_json:
        print_json(rows)
    else:
        _print(rows)
        print("\nThese were measured before. Name some, or give --all or --sample N, to measure them here.")
    return DONE


def _kept(known: list[str]) -> list[dict[str, Any]]:
    """What was measured before."""
    paths = [path for path in (FOLDER / f"{name}.json" for name in known) if path.exists()]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def markdown(rows: list[dict[str, Any]]) -> str:
    """The measured rows as a page: how many claims hold, and the table."""
    holding = sum(bool(row["holds"]) for row in rows)
    lines = [
        "# What was measured",
        "",
        f"{len(rows)} claims, of which {holding} hold. Each row is an ablation in this folder: the TOML says what was",
        "compared and claimed, the JSON what came of it, seed by seed, on which machine and when.",
        "`python main.py evidence ID` measures one again; `python main.py evidence --markdown` prints this page.",
        "",
        "| ablation | what was measured | baseline | with it | n | better | claim holds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        arms = [plus_minus(row[arm]["mean"], row[arm]["std"]) for arm in ("baseline", "method")]
        cells = (
            row["id"],
            row["metric"],
            *arms,
            row["method"]["n"],
            row["better"],
            "yes" if row["holds"] else "**no**",
        )
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _print(rows: list[dict[str, Any]]) -> None:
    headings = ("id", "metric", "baseline", "method", "effect", "holds", "time", "claim")
    shown = [
        (
            row["id"],
            row.get("metric"),
            _spread(row.get("baseline")),
            _spread(row.get("method")),
            row.get("effect"),
            row.get("holds"),
            duration(row.get("seconds")),
            row["claim"],
        )
        for row in rows
    ]
    print_table(headings, shown, numbers=(2, 3, 4, 6))


def _spread(value: dict[str, Any] | None) -> str | None:
    return None if value is None else f"{show(value['mean'])} +- {show(value['std'])} (n={value['n']})"
