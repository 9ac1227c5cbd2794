"""`main.py secret`: puts a secret (an API key) into the system's keyring, or takes it out. A recipe names it."""

from __future__ import annotations

import argparse
import sys

from engine.commands.cli import DONE, add_json
from engine.commands.output import print_json
from engine.endpoints import remove_secret, set_secret


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("set", "remove"))
    parser.add_argument("name", metavar="NAME", help="what a recipe calls it, such as openai")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    if options.what == "remove":
        remove_secret(options.name)
    else:
        set_secret(options.name, _read(options.name))
    if options.json:
        print_json({"secret": options.name, "kept": options.what == "set"})
    elif options.what == "set":
        print(f"The secret {options.name!r} is in the system's keyring.")
    else:
        print(f"The secret {options.name!r} is removed.")
    return DONE


def _read(name: str) -> str:
    """From the terminal without showing it, or the first line of what is piped in: never from the command line, which
    other programs and the shell's history see."""
    if sys.stdin.isatty():
        from getpass import getpass

        return getpass(f"{name}: ")
    return sys.stdin.readline().strip()
