"""The catalog: made in a process of its own, cached under the sources' digest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import catalog as catalog_module
from engine import registry
from engine.catalog import Catalog, digest

ROOT = Path(__file__).resolve().parents[2]


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


PART = '''
"""A schedule of one's own."""

from engine.parts import Progress, Schedule, schedule


@schedule(name="My ramp")
class MyRamp(Schedule):
    """Rises evenly from nothing to the full rate."""

    def factor(self, at: Progress) -> float:
        return at.fraction
'''


def parts_as_seen_elsewhere(folder: Path | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "ATHANOR_PARTS"}
    if folder is not None:
        environment["ATHANOR_PARTS"] = str(folder)
    command = [sys.executable, "main.py", "parts", "--json"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_part_of_ones_own_is_there_when_its_folder_was_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PART)
    parts = {part["id"]: part for part in json.loads(parts_as_seen_elsewhere(tmp_path).stdout)}
    assert parts["my-ramp"]["slot"] == "own" and parts["my-ramp"]["name"] == "My ramp"
    assert "my-ramp" not in parts_as_seen_elsewhere(None).stdout


def test_a_part_file_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    done = parts_as_seen_elsewhere(tmp_path)
    assert done.returncode == 2 and "broken.py cannot be loaded" in done.stderr and "Traceback" not in done.stderr
    done = parts_as_seen_elsewhere(tmp_path / "none")
    assert done.returncode == 2 and "is not a folder" in done.stderr
