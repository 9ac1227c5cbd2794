"""muP: nothing at the base width, the table's powers elsewhere, and features that move alike at every width."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.errors import RecipeError
from engine.kit.anatomy import derive
from engine.methods.initializers.adam_mup import kind_of, rescale, width_of
from engine.methods.models.transformer import Attention
from engine.training.loop import Trainer
from tests.engine.methods.short import ready, train

ADAM = {"use": "adamw", "lr": 0.01, "eps": 1e-6, "weight_decay": 0.1}


def mup(**settings: Any) -> list[dict[str, Any]]:
    return [{"use": "adam-mup", **settings}]


def wide(width: int) -> dict[str, Any]:
    return {"use": "mlp", "hidden": [width, width, width]}


@pytest.mark.parametrize("parametrization", ["mup", "ntk"])
@pytest.mark.parametrize("model", [wide(16), {"use": "transformer", "width": 16, "heads": 2}])
def test_at_the_base_width_it_is_the_plain_run_bit_for_bit(parametrization: str, model: dict[str, Any]) -> None:
    plain, _, _ = train(model=model, optimizer=ADAM)
    settings = mup(base_width=16, parametrization=parametrization)
    run, _, _ = train(model=model, optimizer=ADAM, techniques=settings)
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), run.model.parameters(), strict=True))


def options(run: Any) -> dict[str, dict[str, float]]:
    """Rate, eps and decay by parameter name."""
    names = {id(p): name for name, p in run.model.named_parameters()}
    return {
        names[id(p)]: {key: group[key] for key in ("lr", "eps", "weight_decay")}
        for group in run.roles["main"].optimizer.param_groups
        for p in group["params"]
    }


def test_rates_eps_and_decay_follow_the_table() -> None:
    run, _ = ready(model=wide(64), optimizer=ADAM, techniques=mup(base_width=16))
    found = options(run)
    lr, eps, decay = 0.01, 1e-6, 0.1
    expected = {
        "blocks.0.linear.weight": (lr, eps / 4, decay),
        "blocks.0.linear.bias": (lr, eps / 4, decay),
        "blocks.1.linear.weight": (lr / 4, eps / 4, decay * 4),
        "blocks.1.linear.bias": (lr, eps / 4, decay),
        "head.weight": (lr / 4, eps, decay * 4),
        "head.bias": (lr, eps, decay),
    }
    for name, values in expected.items():
        assert tuple(found[name].values()) == pytest.approx(values, rel=1e-12), name
    run, _ = ready(model=wide(64), optimizer=ADAM, techniques=mup(base_width=16, parametrization="ntk"))
    found = options(run)
    for name, rate in {"blocks.0.linear.weight": 1 / 2, "blocks.1.linear.weight": 1 / 8, "head.weight": 1 / 4}.items():
        assert found[name]["lr"] == pytest.approx(lr * rate)
        assert found[name]["lr"] * found[name]["weight_decay"] == pytest.approx(lr * decay)


def test_the_start_keeps_what_must_not_shrink_and_shrinks_the_output() -> None:
    plain, _ = ready(model=wide(64), optimizer=ADAM)
    run, _ = ready(model=wide(64), optimizer=ADAM, techniques=mup(base_width=16))
    ratios = {
        name: float((p / q).detach().median())
        for (name, p), q in zip(run.model.named_parameters(), plain.model.parameters(), strict=True)
    }
    assert ratios["head.weight"] == pytest.approx(0.5)
    assert ratios["blocks.1.linear.bias"] == pytest.approx(2.0)
    assert ratios["blocks.1.linear.weight"] == ratios["blocks.0.linear.weight"] == 1
    run, _ = ready(model=wide(64), optimizer=ADAM, techniques=mup(base_width=16, zero_init_output=True))
    assert not run.model.head.weight.any()


def test_adams_step_does_not_see_gradients_and_eps_scaled_together() -> None:
    """Why eps follows the gradients' size."""
    steps = []
    for scale in (1.0, 256.0):
        weight = torch.linspace(-1, 1, 50, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([weight], lr=0.1, eps=1e-3 * scale)
        for step in range(5):
            weight.grad = scale * torch.sin(torch.arange(50, dtype=torch.float64) + step)
            optimizer.step()
        steps.append(weight.detach())
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-12, atol=1e-12)


def movement(width: int, techniques: list[dict[str, Any]]) -> tuple[float, float]:
    """How far the last hidden features and the answers move in a few steps, as root mean squares."""
    run, _ = ready(
        task={"use": "digits", "train_limit": 128}, model=wide(width), training={"batch_size": 128},
        optimizer={"use": "adamw", "lr": 0.002, "weight_decay": 0.0}, budget={"steps": 5}, techniques=techniques,
    )  # fmt: skip
    x = run.columns("train")["x"]

    def look() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            h = run.model.blocks(run.model.stem(x))
            return h, run.model.head(h)

    before = look()
    trainer = Trainer(run)
    for _ in range(5):
        trainer._step()
    hidden, answer = (float((b - a).square().mean().sqrt()) for a, b in zip(before, look(), strict=True))
    return hidden, answer


def slopes(techniques: list[dict[str, Any]]) -> tuple[float, float]:
    widths = [64, 128, 256, 512]
    moved = np.log([movement(width, techniques) for width in widths])
    hidden, answer = np.polyfit(np.log(widths), moved, 1)[0]
    return float(hidden), float(answer)


def test_features_move_alike_at_every_width() -> None:
    hidden, answer = slopes(mup(base_width=64))
    assert abs(hidden) < 0.15 and abs(answer) < 0.25
    hidden, answer = slopes([])
    assert max(hidden, answer) > 0.3, "with one rate for all, wider networks move further"
    hidden, _ = slopes(mup(base_width=64, parametrization="ntk"))
    assert hidden == pytest.approx(-0.5, abs=0.15)


def test_attention_scores_are_divided_by_the_size_of_a_head() -> None:
    wide_one = Attention(64, 2, 0.0, False)
    rescale(wide_one, 4.0)
    assert wide_one.scale == pytest.approx((32 / 4) ** 0.5 / 32)
    base = Attention(16, 2, 0.0, False)
    rescale(base, 1.0)
    assert base.scale == pytest.approx(8**-0.5)


class Own(nn.Module):
    """A person's own network, which does not say what it is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm, self.last = (
            nn.Linear(5, 8),
            nn.Linear(8, 8),
            nn.LayerNorm(8),
            nn.Linear(8, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(torch.relu(self.second(torch.relu(self.first(x))))))


def test_the_kinds_are_told_of_a_persons_own_module() -> None:
    anatomy = derive(Own())
    kinds = {name: kind_of(anatomy, name, p) for name, p in anatomy.module.named_parameters()}
    assert kinds == {
        "first.weight": "input", "first.bias": "bias", "second.weight": "hidden", "second.bias": "bias",
        "norm.weight": "vector", "norm.bias": "vector", "last.weight": "output", "last.bias": "output bias",
    }  # fmt: skip
    assert width_of(anatomy) == 8


def test_other_optimizers_are_refused() -> None:
    with pytest.raises(RecipeError, match="choose one that has betas"):
        ready(model=wide(16), optimizer={"use": "sgd", "lr": 0.1}, techniques=mup())
