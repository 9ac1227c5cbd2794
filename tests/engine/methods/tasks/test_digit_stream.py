"""The digit stream: which experience a digit belongs to, and that nothing else differs from the digits."""

from __future__ import annotations

import pytest

from engine.methods.tasks.digit_stream import DigitStream


@pytest.mark.parametrize(("each", "experiences"), [(1, 10), (2, 5), (3, 4), (5, 2)])
def test_classes_come_in_groups_by_number(each: int, experiences: int) -> None:
    task = DigitStream(classes_each=each)
    task.load()
    for split in ("train", "val", "test"):
        columns = task.columns(split)
        assert (columns["meta.experience"] == columns["target"] // each).all()
        assert columns["meta.experience"].unique().tolist() == list(range(experiences))
        assert columns["target"].unique().tolist() == list(range(10))
    assert len(task.groups) == experiences and task.groups[0] == f"0-{each - 1}" and task.groups[-1].endswith("-9")
    assert sum(task.size(split) for split in ("train", "val", "test")) == 1797
