"""Compressors against their definitions, plans against every combination, and runs against the uncompressed one."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import RecipeError
from engine.methods.gradients import l_greco as lg
from engine.training.loop import Trainer
from tests.engine.methods.short import ready, train


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_top_k_keeps_the_largest_and_is_the_best_of_its_size() -> None:
    g = torch.randn(6, 7, generator=rng())
    found = lg.top_k(g, 0.2)
    kept = found != 0
    assert int(kept.sum()) == 8 and float(g[kept].abs().min()) >= float(g[~kept].abs().max())
    assert torch.equal(found[kept], g[kept]) and torch.equal(lg.top_k(g, 1.0), g)
    assert lg.bits_of((6, 7), "top-k", 0.2) == 8 * (32 + 6) and lg.bits_of((6, 7), "top-k", 1.0) == 42 * 32
    assert int((lg.top_k(g, 1e-9) != 0).sum()) == 1


def test_rounding_is_right_on_average_and_off_by_less_than_a_step() -> None:
    g = torch.randn(5, 4, generator=rng(), dtype=torch.float64)
    many = torch.stack([lg.quantized(g, 3, rng(seed)) for seed in range(3000)])
    step = g.abs().max() / 3
    torch.testing.assert_close(many.mean(0), g, rtol=0, atol=4 * float(step) / 2 / math.sqrt(3000))
    assert float((many - g).abs().max()) < float(step)
    assert len((many / step).round().unique()) <= 7, "three steps to either side, and zero"
    assert torch.equal(lg.quantized(g, 32, rng()), g)
    assert not bool(lg.quantized(torch.zeros(3), 4, rng()).any())
    assert lg.bits_of((5, 4), "quantize", 3) == 20 * 3 + 32


def test_a_rank_that_saves_nothing_sends_the_matrix() -> None:
    assert lg.bits_of((100, 50), "low-rank", 2) == 32 * 2 * 150
    assert lg.bits_of((8, 8), "low-rank", 4) == 32 * 64
    assert lg.bits_of((8, 4, 3, 3), "low-rank", 1) == 32 * (8 + 36)


def test_settings_reach_around_the_reference() -> None:
    found = lg.knobs_around("top-k", 0.1, (0.5, 2.0), 5)
    assert found[0] == pytest.approx(0.05) and found[-1] == pytest.approx(0.2) and 0.1 in found
    assert lg.knobs_around("low-rank", 4, (0.5, 2.0), 9) == [2, 3, 4, 5, 6, 7, 8]
    assert lg.knobs_around("quantize", 3, (0.5, 2.0), 9) == [2, 3, 4, 5, 6]


KNOBS = [0.02, 0.1, 0.3, 1.0]


def layers() -> list[Tensor]:
    """Four layers of very different widths; some gradients are concentrated, some flat."""
    shapes = ((40, 30), (10, 40), (25, 10), (5, 5))
    return [torch.randn(s, generator=rng(i)).pow(2 * i + 1) for i, s in enumerate(shapes)]


def test_a_plan_is_the_best_of_all_combinations_and_never_beyond_the_error() -> None:
    made = lg.LGreco(reference=0.1, knobs=KNOBS, buckets=500)
    sizes, errors = made.measure(layers(), rng())
    limit = sum(row[1] for row in errors)
    best = math.inf
    for pick in itertools.product(range(4), repeat=4):
        units = sum(math.ceil(errors[i][c] / limit * 500) for i, c in enumerate(pick))
        if units <= 500:
            best = min(best, sum(sizes[i][c] for i, c in enumerate(pick)))
    chosen = [KNOBS.index(c) for c in made.choose(layers(), rng())]
    assert sum(sizes[i][c] for i, c in enumerate(chosen)) == best
    assert sum(errors[i][c] for i, c in enumerate(chosen)) <= limit
    assert best < sum(row[1] for row in sizes)
    other = [pick for pick in itertools.product(range(4), repeat=4) if pick != tuple(chosen)]
    same = [p for p in other if sum(sizes[i][c] for i, c in enumerate(p)) <= best]
    mine = sum(errors[i][c] for i, c in enumerate(chosen))
    worse = [p for p in same if sum(errors[i][c] for i, c in enumerate(p)) > mine]
    assert len(worse) > 0.9 * len(same), "what sends as little otherwise loses more"


def test_squared_errors_may_be_counted_instead() -> None:
    length, square = (lg.LGreco(reference=0.1, knobs=KNOBS, error_power=p) for p in (1, 2))  # type: ignore[arg-type]
    one, two = (made.measure(layers(), rng())[1] for made in (length, square))
    assert [v**2 for v in one[0]] == pytest.approx(two[0]) and one[0][-1] == 0.0


def test_the_reference_stays_where_nothing_smaller_fits() -> None:
    """The reference is the cheapest of every layer: rounding up leaves no plan at all."""
    sizes, errors = [[1.0, 5.0]] * 7, [[1.0, 0.5]] * 7
    assert lg.plan(sizes, errors, 0, 1.0, 100) == [0] * 7
    found = lg.plan(sizes, errors, 0, 0.8, 100)
    assert sum(row[c] for row, c in zip(errors, found, strict=True)) <= 0.8 * 7


RUN: dict[str, Any] = {
    "task": {"use": "digits", "train_limit": 320},
    "model": {"use": "mlp", "hidden": [96, 12]},
    "training": {"batch_size": 32, "workers": 4},
    "budget": {"steps": 12},
}


def weights(run: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


@pytest.mark.parametrize(("compressor", "reference"), [("top-k", 1.0), ("quantize", 32.0), ("low-rank", 99.0)])
def test_a_setting_without_loss_is_the_uncompressed_run(compressor: str, reference: float) -> None:
    settings = {"compressor": compressor, "reference": reference, "knobs": [reference], "period_steps": 4}
    plain, _, _ = train(**RUN)
    run, _, _ = train(**RUN, techniques=[{"use": "l-greco", **settings}])
    torch.testing.assert_close(weights(run), weights(plain), rtol=0, atol=1e-6)
    technique: Any = run.techniques[0]
    assert max(float(m.abs().max()) for own in technique.residuals for m in own) < 1e-7
    assert run.counts["bytes-sent"] == plain.counts["bytes-sent"]


@pytest.mark.parametrize(("compressor", "reference"), [("top-k", 0.05), ("quantize", 3.0), ("low-rank", 2.0)])
def test_what_was_not_sent_is_kept_and_nothing_is_lost(compressor: str, reference: float) -> None:
    """Step by step: the sum of what was stepped with and what is left is the sum of the true gradients."""
    settings = {"use": "l-greco", "compressor": compressor, "reference": reference, "period_steps": 99}
    run, _ = ready(**RUN, optimizer={"use": "sgd", "lr": 0.05, "momentum": 0.0}, techniques=[settings])
    technique: Any = run.techniques[0]
    true: list[Tensor] = []
    inner = technique.reduce
    start = [p.detach().clone() for p in run.model.parameters() if p.dim() > 1]

    def watching(run: Any, role: Any, shards: Any) -> Any:
        mean = [torch.stack(each).mean(0) for each in zip(*shards, strict=True)]
        true[:] = [a + b for a, b in zip(true, mean, strict=True)] if true else mean
        return inner(run, role, shards)

    technique.reduce = watching
    from engine.training.roles import collect_hooks

    collect_hooks(run.roles["main"], run.techniques)
    trainer = Trainer(run)
    for _ in range(5):
        trainer._step()
    now = [p.detach() for p in run.model.parameters() if p.dim() > 1]
    matrices = [t for t, p in zip(true, run.roles["main"].parameters, strict=True) if p.dim() > 1]
    left = [torch.stack(each).mean(0) for each in zip(*technique.residuals, strict=True)]
    assert max(float(m.abs().max()) for m in left) > 1e-4
    for before, after, total, kept in zip(start, now, matrices, left, strict=True):
        torch.testing.assert_close((before - after) / 0.05 + kept, total, rtol=1e-3, atol=1e-5)


def test_the_messages_are_counted_and_get_smaller_by_the_plan() -> None:
    settings = {"use": "l-greco", "reference": 0.1, "period_steps": 4, "acc_steps": 2}
    run, log, _ = train(**RUN, techniques=[settings])
    technique: Any = run.techniques[0]
    assert len(set(technique.chosen)) > 1 and technique.summed == 0
    shapes = [p.shape for p in run.model.parameters() if p.dim() > 1]
    vectors = sum(p.numel() for p in run.model.parameters() if p.dim() == 1)

    def message(knobs: list[float]) -> int:
        bits = sum(lg.bits_of(s, "top-k", c) for s, c in zip(shapes, knobs, strict=True))
        return math.ceil((bits + 32 * vectors) / 8)

    uniform = 4 * message([0.1] * 3)
    first, last = run.counts["bytes-sent"] - 8 * uniform, 4 * message(technique.chosen)
    assert last < uniform, "a plan sends less than the reference"
    assert 4 * uniform + 8 * last * 0.8 < run.counts["bytes-sent"] < 12 * uniform and first < 4 * uniform
    assert log.points["l-greco/ratio"][1][-1] > log.points["l-greco/ratio"][1][0] > 1


def test_settings_that_cannot_be_are_refused() -> None:
    wrong = [("top-k", 1.5, "densities up to 1"), ("quantize", 1.0, "2 to 32 bits"), ("low-rank", 1.5, "ranks from 1")]
    for compressor, reference, sentence in wrong:
        with pytest.raises(RecipeError, match=sentence):
            ready(**RUN, techniques=[{"use": "l-greco", "compressor": compressor, "reference": reference}])
    with pytest.raises(RecipeError, match="does already; there can be one"):
        ready(**RUN, techniques=[{"use": "l-greco"}, {"use": "l-greco"}])


@pytest.mark.parametrize("compressor", ["top-k", "low-rank"])
def test_after_surgery_the_new_layers_are_compressed(compressor: str) -> None:
    run, _ = ready(**RUN, techniques=[{"use": "l-greco", "compressor": compressor, "reference": 1.0}])
    trainer = Trainer(run)
    trainer._step()
    model: Any = run.model
    model.blocks[1][0], model.head = torch.nn.Linear(96, 20), torch.nn.Linear(20, 10)
    run.add_role("main", model)
    technique: Any = run.techniques[0]
    technique.on_surgery(run, {})
    trainer._step()
    assert [tuple(m.shape) for m in technique.residuals[0]] == [(96, 64), (20, 96), (10, 20)]
