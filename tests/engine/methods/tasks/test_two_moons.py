"""Two moons: on their circles without noise, repeatable, balanced."""

from __future__ import annotations

import torch

from engine.methods.tasks.two_moons import TwoMoons


def loaded(**settings) -> TwoMoons:
    task = TwoMoons(**settings)
    task.load()
    return task


def test_without_noise_the_points_are_on_their_half_circles() -> None:
    train = loaded(noise=0.0).columns("train")
    upper, lower = (train["x"][train["target"] == k] for k in (0, 1))
    torch.testing.assert_close(upper.norm(dim=1), torch.ones(len(upper)))
    assert (upper[:, 1] >= -1e-6).all()
    torch.testing.assert_close((lower - torch.tensor([1.0, 0.5])).norm(dim=1), torch.ones(len(lower)))
    assert (lower[:, 1] <= 0.5 + 1e-6).all()


def test_noise_has_its_standard_deviation() -> None:
    noisy, plain = loaded(samples=20000, noise=0.3), loaded(samples=20000, noise=0.0)
    difference = noisy.columns("train")["x"] - plain.columns("train")["x"]
    assert abs(float(difference.std()) - 0.3) < 0.005


def test_sizes_balance_and_seed() -> None:
    task = loaded(samples=601)
    sizes = [task.size(split) for split in ("train", "val", "test", "outer")]
    assert sum(sizes) == 601 and sizes[1:] == [60, 120, 0]
    assert task.columns("test")["target"].bincount().tolist() == [60, 60]
    assert torch.equal(loaded().columns("val")["x"], loaded().columns("val")["x"])
    assert not torch.equal(loaded().columns("val")["x"], loaded(split_seed=1).columns("val")["x"])
    assert len(task.figure()["series"]) == 2
