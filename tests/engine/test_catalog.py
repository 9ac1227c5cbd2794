"""The catalog: made in a process of its own, cached under the sources' digest."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import catalog as catalog_module
from engine import registry
from engine.catalog import Catalog, digest


def test_loaded_equals_made_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATHANOR_CACHE", str(tmp_path))
    loaded = Catalog.load()
    assert loaded.parts == registry.catalog().parts
    assert loaded.sections == registry.catalog().sections
    monkeypatch.setattr(catalog_module, "_make", lambda *_: pytest.fail("the cache was not used"))
    assert Catalog.load().parts == loaded.parts


def test_a_damaged_cache_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATHANOR_CACHE", str(tmp_path))
    made = Catalog.load()
    (file,) = tmp_path.glob("catalog-*.json")
    file.write_text("{ not JSON")
    assert Catalog.load().parts == made.parts


def test_the_digest_follows_the_sources(tmp_path: Path) -> None:
    before = digest(tmp_path)
    assert digest(tmp_path) == before
    (tmp_path / "mine.py").write_text("x = 1\n")
    with_part = digest(tmp_path)
    assert with_part != before
    (tmp_path / "mine.py").write_text("x = 2\n")
    assert digest(tmp_path) != with_part
