"""Which machines a run may talk to, and with which secrets. No torch, no Qt.

A recipe may name an endpoint (a setting that its schema marks ``x-endpoint``) and a secret by its name. Whether bytes
may go there is the person's to say, and nothing that travels says it for them: what is allowed stands in the person's
own settings, not in a recipe and not in a workspace. A permission is for an origin (scheme, host, port) and for the
secrets that may go along. It holds for good, or for one run. The machine itself is asked about like any other.

Secrets live in the system's keyring, or in environment variables; nothing here writes one anywhere else.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock

from engine.around import Around
from engine.errors import ContactError
from engine.replies import Replies
from engine.settings import unwrapped
from engine.workspace import settings_folder

if TYPE_CHECKING:
    from engine.catalog import Catalog

FILE = "endpoints.json"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
PORTS = {"http": 80, "https": 443}
SERVICE = "athanor"  # the name under which the keyring files what is ours
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
MOST_RUNS = 500  # permissions for one run that are kept: a run that is resumed later is not asked about again
PROGRAM = "python main.py"


@dataclass(frozen=True)
class Contact:
    """That a part of a recipe wants to talk to a machine: where it stands, the origin, and the secret's name."""

    path: str
    part: str
    origin: str
    secret: str = ""

    @property
    def host(self) -> str:
        """The origin as a person reads it."""
        return self.origin.partition("://")[2]

    @property
    def command(self) -> str:
        """What a person types to allow it."""
        return f"{PROGRAM} allow {self.origin}" + (f" --secret {self.secret}" if self.secret else "")

    @property
    def sentence(self) -> str:
        """Why a run with it is refused."""
        along = f", with the secret {self.secret!r}" if self.secret else ""
        return (
            f"{self.part} would send text to {self.origin}{along}, which you have not allowed. Nothing was sent. "
            f"To allow it: `{self.command}`."
        )


def origin_of(url: str) -> str:
    """Scheme, host and port of an address. Raises ValueError for one that cannot be used."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{url!r} is no address: {error}.") from None
    if parts.scheme not in PORTS or not parts.hostname:
        raise ValueError(f"{url!r} is no address; write one such as http://127.0.0.1:11434/v1.")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError(f"The address of {parts.hostname} holds more than a host, a port and a path; name a secret.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port and port != PORTS[parts.scheme] else "")


def named_in(document: Mapping[str, Any], catalog: Catalog) -> list[Contact]:
    """The machines that a recipe's parts would talk to, those that a plan of many runs tries among them."""
    found = list(_contacts(document, "", catalog))
    for plan in ("search", "study"):
        for url in _addresses(document.get(plan) or {}):
            if not any(contact.origin == url for contact in found):
                found.append(Contact(plan, str(document[plan].get("use")), url))
    return found


def _contacts(value: Any, path: str, catalog: Catalog) -> Iterator[Contact]:
    if isinstance(value, list):
        value = {str(i): each for i, each in enumerate(value)}
    if not isinstance(value, Mapping) or not value.get("enabled", True):
        return
    entry = catalog.parts.get(str(value.get("use")))
    if entry is not None:
        fields = {name: unwrapped(field) for name, field in entry.schema.get("properties", {}).items()}
        given = {**entry.defaults(), **value}
        marked = {
            mark: [n for n, f in fields.items() if f.get(mark)] for mark in ("x-endpoint", "x-secret", "x-replay")
        }
        offline = any(given.get(name) == "only" for name in marked["x-replay"])
        secret = next((str(given[name]) for name in marked["x-secret"] if given.get(name)), "")
        for name in marked["x-endpoint"] if not offline else ():
            try:
                yield Contact(f"{path}.{name}", entry.id, origin_of(str(given.get(name))), secret)
            except ValueError:
                continue  # no address, so nobody is contacted: building the part says what is wrong with it
    for name, inner in value.items():
        yield from _contacts(inner, f"{path}.{name}" if path else str(name), catalog)


def _addresses(value: Any) -> Iterator[str]:
    """Whatever in a plan's own settings is an address."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _addresses(each)
    elif isinstance(value, str) and value.startswith(("http://", "https://")):
        try:
            yield origin_of(value)
        except ValueError:
            return


# -- what is allowed ---------------------------------------------------------------------------------------------------


class Permissions:
    """What a person has allowed, in a file among their own settings."""

    def __init__(self, path: Path | None = None):
        self.path = path or settings_folder() / FILE

    def allows(self, origin: str, secret: str = "", runs: tuple[str, ...] = ()) -> bool:
        """Whether bytes, and this secret with them, may go to an origin, for good or in one of these runs."""
        kept = self._read()
        tables = [kept["always"], *(kept["runs"].get(run, {}) for run in runs)]
        return any(secret in table.get(origin, ()) for table in tables)

    def refused(self, contacts: list[Contact], runs: tuple[str, ...] = ()) -> list[Contact]:
        """Those of a recipe's contacts that are not allowed, each once."""
        found: dict[tuple[str, str], Contact] = {}
        for contact in contacts:
            if not self.allows(contact.origin, contact.secret, runs):
                found.setdefault((contact.origin, contact.secret), contact)
        return list(found.values())

    def allow(self, origin: str, secret: str = "", run: str | None = None) -> None:
        """Allows an origin, with a secret where one is named; for one run where that is named."""
        with self._changing() as kept:
            table = kept["always"] if run is None else kept["runs"].setdefault(run, {})
            secrets = table.setdefault(origin, [])
            secrets += [each for each in dict.fromkeys(("", secret)) if each not in secrets]
            for oldest in list(kept["runs"])[:-MOST_RUNS]:
                del kept["runs"][oldest]

    def forbid(self, origin: str) -> bool:
        """Takes back all that was allowed for an origin; False where nothing was."""
        with self._changing() as kept:
            there = kept["always"].pop(origin, None) is not None
            for table in kept["runs"].values():
                there |= table.pop(origin, None) is not None
        return there

    def always(self) -> dict[str, list[str]]:
        """What is allowed for good: origins, with the names of the secrets that may go along."""
        return {origin: [name for name in names if name] for origin, names in self._read()["always"].items()}

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            kept = {}
        except (OSError, ValueError) as error:
            raise ContactError(f"{self.path}, which says what is allowed, cannot be read: {error}.") from None
        return {"always": kept.get("always", {}), "runs": kept.get("runs", {})}

    @contextmanager
    def _changing(self) -> Iterator[dict[str, dict[str, Any]]]:
        with FileLock(self.path.with_suffix(".lock"), mode=0o600):
            kept = self._read()
            yield kept
            part = self.path.with_suffix(".part")
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
                json.dump(kept, file, indent=1)
            part.replace(self.path)


# -- the surroundings of a run -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Surroundings:
    """Whose permissions hold (the run, and the sweep that planned it), and where replies are kept."""

    runs: tuple[str, ...] = ()
    replies: Replies = field(default_factory=Replies)


# Outside of a run only what is allowed for good is, and no reply is kept.
_held = Around("endpoints", Surroundings)
surroundings, around = _held.now, _held.changed


def require_all(document: Mapping[str, Any], catalog: Catalog) -> None:
    """Raises ContactError where a filled recipe would talk to a machine that the person has not allowed here."""
    contacts = named_in(document, catalog)
    refused = Permissions().refused(contacts, surroundings().runs) if contacts else []
    if refused:
        raise ContactError("\n".join(contact.sentence for contact in refused))


def require(contact: Contact) -> None:
    """Raises ContactError where the person has not allowed what a part is about to do."""
    if not Permissions().allows(contact.origin, contact.secret, surroundings().runs):
        raise ContactError(contact.sentence)
    if contact.secret and contact.origin.startswith("http://") and _name_of(contact.origin) not in LOOPBACK:
        raise ContactError(f"{contact.origin} is not encrypted, so the secret {contact.secret!r} is not sent there.")


def _name_of(origin: str) -> str:
    return urlsplit(origin).hostname or ""


# -- secrets -----------------------------------------------------------------------------------------------------------


def variable_of(name: str) -> str:
    """The environment variable that holds a secret where there is no keyring."""
    return f"ATHANOR_SECRET_{name.upper().replace('-', '_')}"


def secret(name: str) -> str:
    """The secret of this name: the environment's, or the keyring's. Raises ContactError where there is none."""
    _check_name(name)
    found = os.environ.get(variable_of(name))
    if found:
        return found
    import keyring
    from keyring.errors import KeyringError

    try:
        found = keyring.get_password(SERVICE, name)
    except KeyringError as error:
        raise ContactError(f"The secret {name!r} is not to be had: {_no_keyring(name, error)}") from None
    if not found:
        raise ContactError(
            f"There is no secret {name!r}. Store it with `{PROGRAM} secret set {name}`, or put it into the environment "
            f"variable {variable_of(name)}."
        )
    return found


def set_secret(name: str, value: str) -> None:
    """Puts a secret into the keyring. Raises ContactError where there is none that can hold it."""
    _check_name(name)
    if not value or value != value.strip() or not value.isprintable():
        raise ContactError("A secret is one line of text without spaces around it.")
    import keyring
    from keyring.errors import KeyringError

    try:
        keyring.set_password(SERVICE, name, value)
    except KeyringError as error:
        raise ContactError(f"The secret {name!r} could not be stored: {_no_keyring(name, error)}") from None


def remove_secret(name: str) -> None:
    """Takes a secret out of the keyring. Raises ContactError where it is not there."""
    _check_name(name)
    import keyring
    from keyring.errors import KeyringError, PasswordDeleteError

    try:
        keyring.delete_password(SERVICE, name)
    except PasswordDeleteError:
        raise ContactError(f"The keyring holds no secret {name!r}.") from None
    except KeyringError as error:
        raise ContactError(f"The secret {name!r} could not be removed: {_no_keyring(name, error)}") from None


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ContactError(f"{name!r} is no name for a secret: write small letters, digits and hyphens.")


def _no_keyring(name: str, error: Exception) -> str:
    from keyring.errors import NoKeyringError

    reason = "this system has no keyring" if isinstance(error, NoKeyringError) else "the system's keyring refuses"
    return f"{reason}. Put it into the environment variable {variable_of(name)} before you start Athanor."
