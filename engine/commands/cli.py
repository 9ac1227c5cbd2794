"""From the words on the command line to a command, and from its errors to a sentence and an exit code."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from engine.workspace import Workspace

DONE, FAILED, WRONG = 0, 1, 2
INTERRUPTED = 130

PROGRAM = "main.py"

COMMANDS = {
    "train": "train a recipe here, with a progress bar",
    "resume": "go on with a run that was stopped or interrupted",
    "stop": "stop a run at its next step, with a checkpoint",
    "check": "say what is wrong with a recipe, and how big its model is",
    "parts": "list the parts that a recipe can name",
    "runs": "list the runs of a workspace",
    "evaluate": "measure a saved run again, by another decoder, normalization or data",
    "compare": "put the results of runs side by side, with what differs in their recipes",
    "transform": "fold, merge or convert a saved run's model, with measured error, size and speed",
    "evidence": "measure what methods do against their baselines",
    "allow": "let runs send text to a machine, such as a language model's server",
    "secret": "put an API key into the system's keyring, or take it out",
    "doctor": "look at versions, devices, display and database, with a remedy for what is wrong",
}
"""Each is a module of this package, with `arguments(parser)` and `run(options) -> exit code`."""

Window = Callable[[list[str], "Workspace"], int]


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the words in one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG, f"{message[:1].upper()}{message[1:]}. See `{self.prog} --help`.\n")


def run(words: list[str], window: Window) -> int:
    """Carries out what the words ask for. No error of a person's making ends in a traceback."""
    from engine.errors import AthanorError

    try:
        return _dispatch(words, window)
    except AthanorError as error:
        print(sentences(error), file=sys.stderr)
        return WRONG
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("engine", "app"):
            raise
        print(f"The package {error.name!r} is not installed. Run `python -m pip install -e .` first.", file=sys.stderr)
        return FAILED
    except UnicodeEncodeError as error:  # a word with bytes that are no text, where text is looked for
        print(f"{error.object[:60]!r} is not text in UTF-8. Write it anew.", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def sentences(error: object) -> str:
    """An error's lines, each with a capital where it is not the name of a setting that begins it."""
    lines = str(error).splitlines()
    return "\n".join(line if ":" in line.split(" ")[0] else line[:1].upper() + line[1:] for line in lines)


def _dispatch(words: list[str], window: Window) -> int:
    name = words[0] if words else ""
    if name in COMMANDS:
        module = importlib.import_module(f"engine.commands.{name}")
        parser = Parser(prog=f"{PROGRAM} {name}", description=f"{COMMANDS[name].capitalize()}.")
        module.arguments(parser)
        return int(module.run(parser.parse_args(words[1:])))
    if name and not name.startswith("-"):
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        if name.endswith(".toml"):
            hint = f"To train that recipe: `{PROGRAM} train {name}`. "
        print(f"There is no command {name!r}. {hint}`{PROGRAM} --help` lists the commands.", file=sys.stderr)
        return WRONG
    options = _starter().parse_args(words)
    from engine.commands import start

    return start.run(options.workspace, window)


def _starter() -> Parser:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{words}" for name, words in COMMANDS.items()]
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [--workspace DIR] | {PROGRAM} COMMAND ...",
        description="Without a command: opens the window; where there is no display, trains the starter recipe here.",
        epilog="commands:\n" + "\n".join(lines) + f"\n\n`{PROGRAM} COMMAND --help` says more about one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_workspace(parser)
    return parser


def add_workspace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workspace",
        metavar="DIR",
        help="the folder of the database and the runs (default: $ATHANOR_WORKSPACE, or the user's data folder)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")


def open_workspace(folder: str | None) -> Workspace:
    from engine.workspace import Workspace

    return Workspace(folder) if folder else Workspace.default()
