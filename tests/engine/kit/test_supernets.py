"""Networks inside an elastic one as genes: there and back, which are the same, what they cost and are worth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from engine.kit.supernets import Encoding, Measurer, error_of
from tests.engine.methods.short import ready

MODEL = {"use": "elastic-cnn", "widths": [3, 4], "width_shares": [0.5, 0.6, 1.0], "kernels": [1, 3], "depths": [1, 2]}
RECIPE = {
    "task": {"use": "digits", "train_limit": 100},
    "model": MODEL,
    "training": {"normalization": "recalibrated", "calibration_batches": 1, "batch_size": 64},
}


def test_genes_are_configurations_there_and_back() -> None:
    model: Any = ready(**RECIPE)[0].model
    encoding = Encoding(model)
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        config = model.sample(rng)
        genes = encoding.encode(config)
        assert encoding.decode(genes) == config and len(genes) == len(encoding.sizes)
        assert all(0 <= gene < size for gene, size in zip(genes, encoding.sizes, strict=True))
    hot = encoding.one_hot(np.array([genes, genes]))
    assert hot.shape == (2, sum(size for size in encoding.sizes if size > 1))
    assert hot.sum() == 2 * sum(size > 1 for size in encoding.sizes)


def test_the_same_network_has_the_same_canonical_genes() -> None:
    """Half and 0.6 of three or four channels are two; the plain modules of both are the same, number for number."""
    model: Any = ready(**RECIPE)[0].model
    encoding = Encoding(model)
    rng = torch.Generator().manual_seed(0)
    by_genes: dict[Any, list[Any]] = {}
    for _ in range(60):
        config = model.sample(rng)
        genes = encoding.canonical(encoding.encode(config))
        assert encoding.canonical(genes) == genes
        by_genes.setdefault(genes, []).append(config)
    merged = [configs for configs in by_genes.values() if len({str(c) for c in configs}) > 1]
    assert merged
    x = torch.rand(2, 1, 8, 8)
    for configs in merged[:3]:
        answers = [model.extract(config).eval()(x) for config in configs]
        assert all(torch.equal(answers[0], each) for each in answers[1:])
    drawn = {encoding.sample(rng) for _ in range(200)}
    shapes = {str({n: t.shape for n, t in model.extract(encoding.decode(g)).state_dict().items()}) for g in drawn}
    assert len(shapes) == len(drawn), "and different ones are different"


def test_a_chosen_network_is_that_network() -> None:
    run, _ = ready(**RECIPE)
    whole: Any = run.model
    encoding = Encoding(whole)
    genes = encoding.sample(torch.Generator().manual_seed(3))
    alone: Any = ready(**{**RECIPE, "model": {**MODEL, "chosen": list(genes)}})[0].model
    alone.load_state_dict(whole.state_dict())
    assert alone.count() == 1 and alone.config == encoding.decode(genes)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(alone.eval()(x), whole.extract(encoding.decode(genes)).eval()(x))
    for chosen, sentence in (([0], "chosen has 1 places"), ([9] * len(genes), "names place 9 of resolution")):
        with pytest.raises(Exception, match=sentence):
            ready(**{**RECIPE, "model": {**MODEL, "chosen": chosen}})


def test_a_measurement_is_an_evaluation_of_that_network_alone() -> None:
    run, _ = ready(**RECIPE)
    model: Any = run.model
    measure = Measurer(run, ["multiply-adds", "parameters"])
    small, large = measure(model.smallest()), measure(model.largest())
    assert small[1] < large[1] and small[2] < large[2] and model.config == model.largest()
    assert large[0] == error_of(run) == 1 - run.evaluate("val")["accuracy"]
    plain = model.extract(model.smallest())
    assert small[2] == sum(p.numel() for p in plain.parameters())
    with model.configured(model.smallest()):
        assert small[0] == 1 - run.evaluate("val")["accuracy"]
    part = Measurer(run, ["parameters"], limit=32)
    with model.configured(model.smallest()):
        assert part(model.smallest())[0] == 1 - run.evaluate("val", limit=32)["accuracy"]
    assert Measurer(run, ["latency"]).cost(model.largest())[0] > 0
