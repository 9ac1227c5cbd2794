"""Python text: the standard library's own characters, shifted by one, splits by file."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
import torch

from engine.methods.tasks.python_text import PythonText, sources


def loaded(**settings) -> PythonText:
    task = PythonText(**{"characters": 60000, "length": 50} | settings)
    task.load()
    return task


def test_the_target_is_the_next_character() -> None:
    for split in ("train", "val", "test"):
        columns = loaded().columns(split)
        assert columns["x"].dtype == columns["target"].dtype == torch.long
        assert torch.equal(columns["x"][:, 1:], columns["target"][:, :-1])
        assert torch.equal(columns["x"].flatten()[1:], columns["target"].flatten()[:-1])
        assert int(columns["x"].max()) < 128


def test_sizes() -> None:
    task = loaded(outer=0.2)
    sizes = {split: task.size(split) for split in ("train", "val", "test", "outer")}
    assert sizes == {"train": 36000 // 50, "val": 120, "test": 120, "outer": 240}


def test_the_text_is_in_the_files_and_no_file_is_in_two_splits() -> None:
    task = loaded()
    texts = {split: bytes(task.columns(split)["x"].flatten().tolist()) for split in ("train", "val", "test")}
    starts = {split: text[:1500] for split, text in texts.items()}
    holders = {split: [p for p in sources(0) if p.read_bytes().startswith(start)] for split, start in starts.items()}
    assert all(len(found) == 1 for found in holders.values())
    for split, start in starts.items():
        assert not any(start in text for other, text in texts.items() if other != split)


def test_sources_are_the_standard_librarys_and_ordered_by_the_seed() -> None:
    root = Path(sysconfig.get_path("stdlib"))
    assert root / "argparse.py" in sources(0)
    assert not any({"site-packages", "test", "tests"} & set(p.relative_to(root).parts) for p in sources(0))
    assert sources(0) == sources(0) and sources(0) != sources(1)
    assert sorted(sources(0)) == sorted(sources(1))


def test_too_long_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="too little text"):
        loaded(characters=10000, length=5000)
