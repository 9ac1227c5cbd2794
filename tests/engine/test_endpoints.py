"""What a recipe would talk to, what a person has allowed, and where secrets are."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.errors import PasswordDeleteError

from engine import endpoints
from engine.catalog import Catalog, Entry
from engine.endpoints import Contact, Permissions, named_in, origin_of
from engine.errors import ContactError


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://127.0.0.1:11434/v1", "http://127.0.0.1:11434"),
        ("https://API.Example.com/v1/", "https://api.example.com"),
        ("https://api.example.com:443", "https://api.example.com"),
        ("http://[::1]:8080/v1", "http://[::1]:8080"),
    ],
)
def test_the_origin_of_an_address(url: str, origin: str) -> None:
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    "url",
    ["example.com/v1", "ftp://example.com", "http://", "http://a:b@c.de/v1", "http://a.de?key=1", "http://a:99999/"],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ValueError):
        origin_of(url)


def catalog() -> Catalog:
    def entry(id: str, kind: str, **fields: Any) -> Entry:
        return Entry(id, id, "own", kind, "Words.", f"own:{id}", {"properties": fields, "required": []})

    text = {"type": "string"}
    model = {
        "url": {**text, "x-endpoint": True, "default": "http://127.0.0.1:1/v1"},
        "key": {**text, "x-secret": True, "default": ""},
        "replay": {"enum": ["record", "only"], "x-replay": True, "default": "record"},
    }
    asking = {
        "speaker": {"x-part": "language-model"},
        "other": {"anyOf": [{"x-part": "language-model"}, {"type": "null"}]},
    }
    return Catalog(
        [entry("server", "language-model", **model), entry("asks", "procedure", **asking), entry("t", "task")]
    )


def contacts(procedure: dict[str, Any], **sections: Any) -> list[Contact]:
    return named_in({"task": {"use": "t"}, "procedure": procedure, **sections}, catalog())


def test_what_a_recipe_would_talk_to() -> None:
    use = {
        "use": "asks",
        "speaker": {"use": "server"},
        "other": {"use": "server", "url": "https://b.de/v1", "key": "b"},
    }
    assert contacts(use) == [
        Contact("procedure.speaker.url", "server", "http://127.0.0.1:1"),
        Contact("procedure.other.url", "server", "https://b.de", "b"),
    ]
    use["other"]["replay"] = "only"
    assert len(contacts(use)) == 1, "who only replays contacts nobody"
    assert contacts({**use, "enabled": False}) == [] and contacts({"use": "asks"}) == []
    assert contacts({"use": "asks", "speaker": {"use": "server", "url": "nonsense"}}) == []


def test_what_a_plan_tries_counts_too() -> None:
    search = {"use": "grid", "space": {"procedure.speaker.url": ["https://a.de/v1", "https://b.de/v1"]}}
    found = contacts({"use": "asks", "speaker": {"use": "server", "url": "https://a.de/v1"}}, search=search)
    assert [contact.origin for contact in found] == ["https://a.de", "https://b.de"]


def test_permissions_are_kept_in_the_persons_settings() -> None:
    permissions = Permissions()
    assert str(permissions.path).startswith(os.environ["ATHANOR_SETTINGS"])
    assert not permissions.allows("https://a.de") and permissions.always() == {}
    permissions.allow("https://a.de")
    assert Permissions().allows("https://a.de") and not Permissions().allows("https://a.de", "key")
    assert not permissions.allows("http://a.de") and not permissions.allows("https://a.de:8443")
    permissions.allow("https://a.de", "key")
    assert permissions.allows("https://a.de", "key") and permissions.always() == {"https://a.de": ["key"]}
    assert stat.S_IMODE(permissions.path.stat().st_mode) == 0o600
    assert permissions.forbid("https://a.de") and not permissions.forbid("https://a.de")
    assert not permissions.allows("https://a.de")


def test_a_permission_for_one_run_is_no_other_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    permissions = Permissions()
    permissions.allow("https://a.de", "key", run="one")
    assert permissions.allows("https://a.de", "key", ("one",)) and not permissions.allows(
        "https://a.de", "key", ("two",)
    )
    assert permissions.always() == {}
    monkeypatch.setattr(endpoints, "MOST_RUNS", 3)
    for i in range(5):
        permissions.allow("https://a.de", run=f"later-{i}")
    assert list(json.loads(permissions.path.read_text())["runs"]) == ["later-2", "later-3", "later-4"]


def test_what_is_refused_comes_once() -> None:
    one, other = Contact("a", "p", "https://a.de"), Contact("b", "p", "https://a.de")
    assert Permissions().refused([one, other]) == [one]
    Permissions().allow("https://a.de")
    assert Permissions().refused([one, other]) == []


def test_a_damaged_file_allows_nothing(tmp_path: Path) -> None:
    (tmp_path / "endpoints.json").write_text("{")
    with pytest.raises(ContactError, match="cannot be read"):
        Permissions(tmp_path / "endpoints.json").allows("https://a.de")


def test_a_secret_does_not_go_over_a_plain_line() -> None:
    for origin, refused in (("http://far.de", True), ("http://localhost:1", False), ("https://far.de", False)):
        Permissions().allow(origin, "key")
        contact = Contact("", "p", origin, "key")
        if refused:
            with pytest.raises(ContactError, match="not encrypted"):
                endpoints.require(contact)
        else:
            endpoints.require(contact)


class Memory(KeyringBackend):
    """A keyring in memory."""

    priority = 1  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        if (service, username) not in self.kept:
            raise PasswordDeleteError
        del self.kept[service, username]


@pytest.fixture
def ring() -> Any:
    before = keyring.get_keyring()
    keyring.set_keyring(Memory())
    yield keyring.get_keyring()
    keyring.set_keyring(before)


def test_secrets_live_in_the_keyring(ring: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoints.set_secret("open-ai", "abc")
    assert endpoints.secret("open-ai") == "abc" and ring.kept == {("athanor", "open-ai"): "abc"}
    monkeypatch.setenv("ATHANOR_SECRET_OPEN_AI", "from outside")
    assert endpoints.secret("open-ai") == "from outside"
    monkeypatch.delenv("ATHANOR_SECRET_OPEN_AI")
    endpoints.remove_secret("open-ai")
    for act in (endpoints.secret, endpoints.remove_secret):
        with pytest.raises(ContactError, match="no secret 'open-ai'"):
            act("open-ai")


@pytest.mark.parametrize("value", ["", "two\nlines", " spaced out "])
def test_what_is_no_secret(ring: Memory, value: str) -> None:
    with pytest.raises(ContactError) as error:
        endpoints.set_secret("mine", value)
    assert ring.kept == {} and (not value or value not in str(error.value))
    with pytest.raises(ContactError, match="no name for a secret"):
        endpoints.set_secret("No Name", "abc")


def test_without_a_keyring_an_environment_variable_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    from keyring.backends.fail import Keyring

    before = keyring.get_keyring()
    keyring.set_keyring(Keyring())
    try:
        for act in (lambda: endpoints.set_secret("mine", "abc"), lambda: endpoints.secret("mine")):
            with pytest.raises(ContactError, match=r"no keyring.*ATHANOR_SECRET_MINE") as error:
                act()
            assert "abc" not in str(error.value)
    finally:
        keyring.set_keyring(before)
