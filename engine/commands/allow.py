"""`main.py allow`: lets runs talk to a machine, lists those that they may, and takes a permission back."""

from __future__ import annotations

import argparse

from engine.commands.cli import DONE, WRONG, add_json
from engine.commands.output import print_json
from engine.endpoints import Permissions, origin_of
from engine.errors import ContactError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "url", nargs="?", metavar="URL", help="such as http://127.0.0.1:11434; none: list what is allowed"
    )
    parser.add_argument("--secret", default="", metavar="NAME", help="the secret that may be sent along")
    parser.add_argument("--remove", action="store_true", help="take the permission back")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    permissions = Permissions()
    code, said = DONE, ""
    if options.url is not None:
        code, said = _change(permissions, options)
    elif options.secret or options.remove:
        raise ContactError("Name the address, such as http://127.0.0.1:11434.")
    allowed = permissions.always()
    if options.json:
        print_json({"allowed": allowed})
    elif said:
        print(said)
    else:
        for origin, secrets in allowed.items():
            print(origin + (f"  with {', '.join(secrets)}" if secrets else ""))
        if not allowed:
            print("No machine is allowed: nothing is sent anywhere.")
    return code


def _change(permissions: Permissions, options: argparse.Namespace) -> tuple[int, str]:
    """Allows or forbids; the exit code, and what was done in words."""
    try:
        origin = origin_of(options.url)
    except ValueError as error:
        raise ContactError(str(error)) from None
    if options.remove:
        there = permissions.forbid(origin)
        return (DONE, f"{origin} is not allowed any more.") if there else (WRONG, f"{origin} was not allowed.")
    permissions.allow(origin, options.secret)
    return DONE, f"Runs may send text to {origin}" + (
        f", with the secret {options.secret!r}." if options.secret else "."
    )
