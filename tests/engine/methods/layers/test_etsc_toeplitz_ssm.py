"""From Toeplitz to state space: the same answers, a constant cost, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.methods.layers.etsc_toeplitz_ssm import ETSC, RecurrentToeplitz
from engine.methods.layers.gated_toeplitz import GatedToeplitz
from engine.methods.models.mlp import MLP
from engine.parts import Batch, Offer
from tests.engine.methods.layers.test_gated_toeplitz import TEXT
from tests.engine.methods.models.test_tnn import model
from tests.engine.methods.short import train


def sample(rows: int = 3) -> Batch:
    x = torch.randint(9, (rows, 12), generator=torch.Generator().manual_seed(0))
    return Batch({"x": x}, None, torch.arange(rows))


@pytest.mark.parametrize("half", [True, False])
def test_the_logits_are_the_same_at_every_position(half: bool) -> None:
    batch = sample()
    before = model().eval()
    expected = before(batch.x)
    made = ETSC(use_symmetry=half).apply(model().eval(), batch)
    assert made.model is not None
    assert not any(isinstance(m, GatedToeplitz) for m in made.model.modules())
    assert sum(isinstance(m, RecurrentToeplitz) for m in made.model.modules()) == 2
    assert torch.allclose(made.model(batch.x), expected, atol=1e-4)
    state = made.model.begin(batch.x[:, :0])  # type: ignore[operator]
    for place, token in enumerate(batch.x.unbind(1)):
        log_p, state = made.model.advance(state, token)  # type: ignore[operator]
        assert torch.allclose(log_p, expected[:, place].log_softmax(-1), atol=1e-4)
    assert made.facts["kernel_error"] < 5e-12 and made.facts["closing_mode"] < 1e-12
    assert made.facts["modes"] == (6 if half else 12)


def test_it_may_be_exact_for_more_than_the_samples() -> None:
    made = ETSC(n=21).apply(model().eval(), sample())
    assert made.model is not None and made.facts["modes"] == 11
    x = torch.randint(9, (2, 21))
    assert torch.allclose(made.model(x), model().eval()(x), atol=1e-4)
    with pytest.raises(ValueError, match="exact for 21"):
        made.model(torch.randint(9, (2, 22)))


def test_what_is_not_exact_enough_or_has_no_convolution_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="the model has none"):
        ETSC().apply(MLP(Offer("vector", (3,), "classes", 2)), sample())
    import engine.methods.layers.etsc_toeplitz_ssm as etsc

    monkeypatch.setitem(etsc.TOLERANCES, "complex64", 1e-9)
    with pytest.raises(ValueError, match="take complex128"):
        ETSC(state_dtype="complex64").apply(model().eval(), sample())
    assert ETSC(state_dtype="complex64", check=False).apply(model().eval(), sample()).model is not None


def test_units_in_another_model_are_converted_too() -> None:
    recipe = {**TEXT, "transforms": [{"use": "etsc-toeplitz-ssm"}]}
    run, _, outcome = train(**recipe)
    assert outcome.metrics["transform/etsc-toeplitz-ssm/error"] < 1e-4
    assert "transform/etsc-toeplitz-ssm/seconds_anew_growth" not in outcome.metrics, "it does not write by itself"
    assert any(isinstance(m, GatedToeplitz) for m in run.model.modules()), "the run's own model stays as it is"


def test_a_run_measures_and_draws_it() -> None:
    text = {"use": "python-text", "characters": 10000, "length": 24}
    recipe: dict[str, Any] = {"task": text, "model": {"use": "tnn", "width": 8, "depth": 1, "rpe_dim": 4}}
    _, memory, outcome = train(
        **recipe, optimizer={"use": "adamw", "lr": 0.01}, transforms=[{"use": "etsc-toeplitz-ssm"}]
    )
    found = {n.removeprefix("transform/etsc-toeplitz-ssm/"): v for n, v in outcome.metrics.items()}
    assert found["error"] < 1e-4 and found["test/bits_after"] == pytest.approx(found["test/bits_before"], abs=1e-5)
    assert found["seconds_recurrent_last_quarter"] > 0 and found["seconds_anew_last_quarter"] > 0
    (figure,) = [f["data"] for f in memory.figures if f["probe"] == "etsc-toeplitz-ssm"]
    assert [len(s["x"]) for s in figure["series"]] == [24, 24]
