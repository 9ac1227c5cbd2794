"""Corrupted digits: what each corruption does, the stream's order, and the accuracy of single passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.kit.supervised import seeded
from engine.methods.tasks.corrupted_digits import CorruptedDigits, blurred, corrupt
from engine.methods.tasks.digits import images_and_labels
from engine.parts import Batch


def loaded(**settings: Any) -> CorruptedDigits:
    task = CorruptedDigits(**settings)
    task.load()
    return task


def test_each_corruption_by_its_formula() -> None:
    x, _ = images_and_labels()
    x = x[:300]
    rng = seeded(0)
    assert torch.allclose(corrupt(x, "contrast", 1.0, rng), 0.2 + 0.6 * x, atol=1e-6)
    assert torch.allclose(corrupt(x, "brightness", 0.5, rng), (x + 0.1).clamp(max=1), atol=1e-6)
    noisy = corrupt(torch.full((200, 1, 8, 8), 0.5), "noise", 0.5, rng) - 0.5
    assert abs(noisy.mean()) < 0.005 and noisy.std().item() == pytest.approx(0.1, rel=0.03)
    for kind in ("none", "contrast", "brightness", "noise", "blur"):
        changed = corrupt(x, kind, 1.0, seeded(1))
        assert changed.min() >= 0 and changed.max() <= 1
        assert torch.equal(changed, x) == (kind == "none")
        assert torch.allclose(corrupt(x, kind, 0.0, rng), x, atol=1e-6), "severity 0 leaves the images as they are"


def test_blur_is_a_gaussian_that_keeps_what_is_even() -> None:
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = 1.0
    spot = blurred(x, 1.0)[0, 0]
    assert spot.sum().item() == pytest.approx(1.0)
    assert torch.allclose(spot, spot.T) and torch.allclose(spot, spot.flip(0))
    assert (spot[4, 5] / spot[4, 4]).item() == pytest.approx(torch.tensor(-0.5).exp().item(), rel=1e-5)
    even = torch.full((1, 1, 5, 5), 0.7)
    assert torch.allclose(blurred(even, 2.0), even)


def test_only_the_test_is_spoilt_and_the_rest_is_apart_from_it() -> None:
    x, target = images_and_labels()
    task = loaded(corruption="contrast")
    clean = loaded(corruption="none")
    for split in ("train", "val"):
        assert torch.equal(task.splits[split]["x"], clean.splits[split]["x"])
    assert torch.allclose(task.splits["test"]["x"], 0.2 + 0.6 * clean.splits["test"]["x"], atol=1e-6)
    assert sum(task.size(split) for split in ("train", "val", "test")) == len(x) == len(target)
    assert task.size("test") == pytest.approx(len(x) / 2, abs=10)


def test_a_sorted_stream_comes_class_by_class_and_again() -> None:
    one, task = loaded(order="sorted"), loaded(order="sorted", passes=3)
    target, number = task.splits["test"]["target"], task.splits["test"]["meta.pass"]
    n = one.size("test")
    assert task.size("test") == 3 * n and number.tolist() == sorted(number.tolist())
    for k in range(3):
        part = slice(k * n, (k + 1) * n)
        assert torch.equal(target[part], target[part].sort().values) and set(number[part].tolist()) == {k}
        assert torch.equal(task.splits["test"]["x"][part], one.splits["test"]["x"])
    shuffled = loaded().splits["test"]
    assert torch.equal(shuffled["target"].sort().values, target[:n]), "the same images in another order"
    assert not torch.equal(shuffled["target"], target[:n])


def test_single_passes_are_measured() -> None:
    task = loaded(passes=4)
    columns = task.columns("test")
    right = torch.rand(len(columns["x"]), generator=seeded(3)) < 0.25 + 0.2 * columns["meta.pass"]
    answer = torch.where(right, columns["target"], (columns["target"] + 1) % 10)
    batch = Batch({"x": columns["x"]}, columns["target"], torch.arange(len(right)), meta={"pass": columns["meta.pass"]})
    found = task.metrics(torch.nn.functional.one_hot(answer, 10).float(), batch)
    each = right.float().view(4, -1).mean(1)
    assert found["accuracy"].mean().item() == pytest.approx(each.mean().item(), abs=1e-6)
    assert found["accuracy-first"].mean().item() == pytest.approx(each[0].item(), abs=1e-6)
    assert found["accuracy-last"].mean().item() == pytest.approx(each[3].item(), abs=1e-6)
    assert set(loaded().metrics(torch.zeros(len(batch), 10), batch)) == {"accuracy"}
