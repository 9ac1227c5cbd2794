"""LISA: which weights move, what the optimizer remembers, and how often each block is drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.errors import RecipeError
from engine.methods.adaptation.lisa import block_parameters
from engine.training.loop import Trainer
from tests.engine.methods.short import ready, train

DEEP = {"use": "mlp", "hidden": [16, 16, 16, 16]}
DECAYING = {"use": "adamw", "lr": 0.01, "weight_decay": 0.1}


def lisa(**settings: Any) -> list[dict[str, Any]]:
    return [{"use": "lisa", **settings}]


def weights(run: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in run.model.parameters()]


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_with_every_block_active_it_is_the_optimizer_bit_for_bit(optimizer: str) -> None:
    settings = {"model": DEEP, "optimizer": {**DECAYING, "use": optimizer}, "budget": {"steps": 12}}
    plain, _, _ = train(**settings)
    run, _, _ = train(**settings, techniques=lisa(n_active=4, interval=3))
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(run), strict=True))


def test_frozen_blocks_do_not_move_and_the_optimizer_forgets_them() -> None:
    run, _ = ready(model=DEEP, optimizer=DECAYING, budget={"steps": 9}, techniques=lisa(n_active=1, interval=3))
    (part,) = run.techniques
    optimizer = run.roles["main"].optimizer
    blocks = block_parameters(run.model, run.anatomy.blocks)
    trainer = Trainer(run)
    changed = []
    for step in range(9):
        before = [[p.detach().clone() for p in block] for block in blocks]
        head = run.model.head.weight.detach().clone()
        kept = list(part.active)
        trainer._step()
        moved = [k for k, old in enumerate(before) if any(map(lambda a, b: not torch.equal(a, b), blocks[k], old))]
        assert moved == part.active and len(moved) == 1 and not torch.equal(head, run.model.head.weight)
        assert [k for k, block in enumerate(blocks) if any(p in optimizer.state for p in block)] == part.active
        state = optimizer.state[blocks[part.active[0]][0]]
        if step % 3 == 0:
            changed.append(kept != part.active)
            fresh = kept != part.active
            assert (float(state["step"]) == 1) is fresh, "a block that is drawn twice in a row keeps its state"
    assert any(changed)


def test_the_state_can_be_kept() -> None:
    settings = lisa(n_active=1, interval=1, drop_state=False)
    run, _, _ = train(model=DEEP, optimizer=DECAYING, budget={"steps": 40}, techniques=settings)
    assert len(run.roles["main"].optimizer.state) == len(list(run.model.parameters()))


def test_each_block_is_drawn_as_often_as_the_others() -> None:
    run, _ = ready(model=DEEP, budget={"steps": 1}, techniques=lisa(n_active=2, interval=1))
    (part,) = run.techniques
    draws = 2000
    counts = torch.zeros(4)
    for step in range(draws):
        run.step = step
        part.on_batch(run, None)  # type: ignore[arg-type]
        assert len(set(part.active)) == 2
        counts[part.active] += 1
    share, spread = 0.5, (0.25 / draws) ** 0.5
    assert ((counts / draws - share).abs() < 4 * spread).all()


def test_a_weight_used_outside_of_the_blocks_is_always_trained() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
            self.head = torch.nn.Linear(4, 4)
            self.head.weight = self.blocks[0].weight

    model = Tied()
    first, second = block_parameters(model, list(model.blocks))
    assert [id(p) for p in first] == [id(model.blocks[0].bias)]
    assert len(second) == 2


def test_more_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(RecipeError, match="the model has 4 blocks; write at most 4"):
        ready(model=DEEP, techniques=lisa(n_active=5))
    train(model=DEEP, techniques=lisa(n_active=0), budget={"steps": 2})
