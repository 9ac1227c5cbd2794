"""`main.py parts`: every part that a recipe can name."""

from __future__ import annotations

import argparse

from engine.commands.cli import DONE, add_json
from engine.commands.output import print_json, print_table
from engine.errors import AthanorError

KEYS = ("id", "name", "slot", "kind", "papers", "summary", "schema", "import")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slot", help="only the parts filed under this heading")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    from engine.catalog import Catalog

    catalog = Catalog.load()
    slots = catalog.slots()
    if options.slot and options.slot not in slots:
        raise AthanorError(f"There is no slot {options.slot!r}. There are {', '.join(slots)}.")
    entries = [entry for entry in catalog.parts.values() if options.slot in (None, entry.slot)]
    entries.sort(key=lambda entry: (entry.slot, entry.id))
    if options.json:
        print_json([{key: entry.to_json()[key] for key in KEYS} for entry in entries])
    else:
        rows = [(entry.id, entry.slot, entry.kind, entry.summary.split(". ")[0].rstrip(".")) for entry in entries]
        print_table(("id", "slot", "kind", "what it does"), rows)
    return DONE
