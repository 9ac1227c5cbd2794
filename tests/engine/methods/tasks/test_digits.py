"""Digits: the data are scikit-learn's, and the settings do what they say."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from engine.methods.tasks.digits import Digits
from engine.parts import Batch


def loaded(**settings) -> Digits:
    task = Digits(**settings)
    task.load()
    return task


def test_the_splits_hold_scikit_learns_images_each_once() -> None:
    task = loaded(outer=0.1)
    data = load_digits()
    theirs = sorted(
        (*image.flatten().tolist(), int(label)) for image, label in zip(data.images, data.target, strict=True)
    )
    mine = [
        (*(16 * image).flatten().tolist(), int(label))
        for split in ("train", "val", "test", "outer")
        for image, label in zip(task.columns(split)["x"], task.columns(split)["target"], strict=True)
    ]
    assert sorted(mine) == theirs
    assert task.columns("train")["x"].shape[1:] == task.offer.shape


def test_sizes_and_strata() -> None:
    task = loaded()
    assert (task.size("train"), task.size("val"), task.size("test"), task.size("outer")) == (1259, 179, 359, 0)
    counts = task.columns("test")["target"].bincount()
    assert counts.min() >= 34 and counts.max() <= 37
    assert loaded(outer=0.2).size("outer") == pytest.approx(0.2 * 1797, abs=5)


def test_the_test_split_depends_on_the_seed_alone() -> None:
    plain = loaded().columns("test")
    for settings in ({"label_noise": 0.4}, {"imbalance": 0.7}, {"train_limit": 50}):
        assert torch.equal(loaded(**settings).columns("test")["x"], plain["x"])
        assert torch.equal(loaded(**settings).columns("test")["target"], plain["target"])
    assert not torch.equal(loaded(split_seed=1).columns("test")["x"], plain["x"])


def test_label_noise_keeps_the_clean_labels_beside() -> None:
    clean, train = loaded().columns("train"), loaded(label_noise=0.4).columns("train")
    assert torch.equal(train["x"], clean["x"])
    assert torch.equal(train["meta.clean"], clean["target"])
    assert int((train["target"] != train["meta.clean"]).sum()) == round(0.4 * 1259)


def test_imbalance_limit_and_gain() -> None:
    counts = loaded(imbalance=0.5).columns("train")["target"].bincount().tolist()
    full = loaded().columns("train")["target"].bincount().tolist()
    assert counts == [max(1, round(n * 0.5**k)) for k, n in enumerate(full)]
    limited = loaded(train_limit=100).columns("train")
    assert torch.equal(limited["x"], loaded().columns("train")["x"][:100])
    assert len(limited["meta.clean"]) == 100
    strong = loaded(gain=10.0)
    assert strong.offer.span == (0.0, 10.0)
    torch.testing.assert_close(strong.columns("val")["x"], 10 * loaded().columns("val")["x"])


def test_figure_shows_images_between_zero_and_one() -> None:
    figure = loaded(gain=10.0).figure()
    assert figure["kind"] == "image-grid" and len(figure["images"]) == len(figure["captions"]) == 32
    assert max(max(row) for image in figure["images"] for row in image) == 1.0


def test_one_hot_targets_are_the_classes_as_numbers() -> None:
    plain, regressed = loaded(label_noise=0.2), loaded(label_noise=0.2, target="one-hot")
    assert (regressed.offer.output, regressed.offer.size, regressed.metric) == ("values", 10, ("r2", "max"))
    for split in ("train", "val", "test"):
        one_hot, target = regressed.columns(split)["target"], plain.columns(split)["target"]
        assert torch.equal(one_hot.argmax(1), target) and torch.equal(one_hot.sum(1), torch.ones(len(target)))
    columns = regressed.columns("val")
    batch = Batch({"x": columns["x"]}, columns["target"], torch.arange(len(columns["x"])), "val")
    answer = columns["target"] * 0.5
    answer[:10] = answer[:10].roll(1, 1)
    found = regressed.metrics(answer, batch)
    assert float(found["accuracy"].mean()) == pytest.approx(1 - 10 / len(answer)) and "mse" in found
    figure = regressed.figure()
    assert figure is not None and figure["captions"] == plain.figure()["captions"]  # type: ignore[index]


def test_standardized_pixels() -> None:
    task = loaded(standardize=True, train_limit=300, gain=2.0)
    x = task.columns("train")["x"]
    std, mean = torch.std_mean(x, 0, correction=0)
    assert mean.abs().max() < 1e-5 and torch.allclose(std[std > 0], torch.tensor(2.0), atol=1e-4)
    assert task.offer.span is None
    raw = loaded(train_limit=300).columns("train")["x"]
    assert torch.equal(std > 0, raw.std(0) > 0), "a pixel that never changes stays 0"
