"""Tables: the data are scikit-learn's; standardized by the training rows; spread keeps the information."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import datasets

from engine.methods.tasks.tabular import Tabular, read


def loaded(**settings) -> Tabular:
    task = Tabular(**settings)
    task.load()
    return task


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("breast-cancer", datasets.load_breast_cancer()),
        ("wine", datasets.load_wine()),
        ("diabetes", datasets.load_diabetes(scaled=False)),
    ],
)
def test_the_tables_are_scikit_learns(name: str, theirs) -> None:
    x, target = read(name)
    assert np.array_equal(x.numpy(), theirs.data)
    assert np.array_equal(target.numpy(), theirs.target)
    task = loaded(dataset=name)
    assert task.offer.features == theirs.data.shape[1]
    assert sum(task.size(split) for split in ("train", "val", "test")) == len(theirs.target)


def test_standardized_by_the_training_rows_alone() -> None:
    task = loaded(dataset="wine")
    train, test = task.columns("train")["x"], task.columns("test")["x"]
    torch.testing.assert_close(train.mean(0), torch.zeros(13), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std(0, correction=0), torch.ones(13), atol=1e-5, rtol=0)
    assert test.mean(0).abs().max() > 0.05
    raw = loaded(dataset="wine", standardize=False)
    assert raw.columns("train")["x"][:, 12].min() > 100


def test_spread_multiplies_each_feature_once_for_all_rows() -> None:
    plain, spread = loaded(), loaded(spread=3.0)
    factors = spread.columns("train")["x"] / plain.columns("train")["x"]
    torch.testing.assert_close(factors, factors[:1].expand_as(factors), rtol=1e-4, atol=0)
    torch.testing.assert_close(
        spread.columns("test")["x"] / plain.columns("test")["x"], factors[:113], rtol=1e-4, atol=0
    )
    assert factors[0].log().abs().max() <= 3.0 and factors[0].log().std() > 1.0


def test_diabetes_is_a_standardized_number() -> None:
    task = loaded(dataset="diabetes")
    assert (task.offer.output, task.offer.size, task.metric) == ("values", 1, ("r2", "max"))
    target = task.columns("train")["target"]
    assert target.shape == (task.size("train"), 1) and target.dtype == torch.float32
    assert float(target.mean()) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="no labels to change"):
        Tabular(dataset="diabetes", label_noise=0.1)


def test_label_noise() -> None:
    train = loaded(label_noise=0.25).columns("train")
    assert int((train["target"] != train["meta.clean"]).sum()) == round(0.25 * 399)
