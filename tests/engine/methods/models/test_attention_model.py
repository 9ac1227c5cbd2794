"""The attention model: a distribution over tours, the same for points in any order, by its formulas step by step."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kit.routing import Partial, every_start, greedy, is_tour, roll_out, sampler, tour_length
from engine.methods.models.attention_model import AttentionModel
from engine.parts import Offer


def policy(n: int = 5, **settings: object) -> AttentionModel:
    torch.manual_seed(0)
    model = AttentionModel(Offer("points", (n, 2), "tour", n), width=16, heads=4, layers=2, hidden=24, **settings)  # type: ignore[arg-type]
    return model.double()


def points(batch: int, n: int, seed: int = 1) -> Tensor:
    return torch.rand(batch, n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def following(tours: Tensor) -> object:
    """Chooses what these tours [B, S, n] do, from their second point on where starts are given."""
    steps = iter(tours.unbind(-1))
    return lambda scores: next(steps)


@pytest.mark.parametrize("free", [False, True])
def test_the_probabilities_of_all_tours_sum_to_one(free: bool) -> None:
    """24 from one given first point, 120 where the first is chosen too."""
    model, x = policy(), points(3, 5)
    orders = torch.tensor([p for p in permutations(range(5)) if free or p[0] == 2]).expand(3, -1, -1)
    starts = None if free else orders[..., 0]
    choose = following(orders if free else orders[..., 1:])
    found = roll_out(model, x, choose, starts, orders.shape[1])  # type: ignore[arg-type]
    assert torch.equal(found.tours, orders) and orders.shape[1] == (120 if free else 24)
    torch.testing.assert_close(found.log_prob.exp().sum(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert found.log_prob.exp().std() > 1e-4, "not all alike"


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_it_says_the_same_of_points_in_any_order(norm: str) -> None:
    model, x = policy(9, norm=norm), points(6, 9)
    order = torch.randperm(9)
    where = order.argsort()  # the place of each old point among the new ones
    one = roll_out(model, x, greedy, every_start(6, 9, x.device))
    two = roll_out(model, x[:, order], greedy, where.expand(6, -1))
    assert torch.equal(order[two.tours], one.tours) and is_tour(one.tours).all()
    torch.testing.assert_close(two.log_prob, one.log_prob)
    torch.testing.assert_close(tour_length(x[:, order], two.tours), tour_length(x, one.tours))
    assert len({tuple(tour) for tour in one.tours[:, 0].tolist()}) > 1


def test_a_step_is_what_the_formulas_say() -> None:
    """By torch's own attention, one instance and one tour at a time."""
    model, x = policy(6), points(2, 6)
    h = model.blocks(model.stem(x))
    first, last, visited = torch.tensor([[1, 4], [0, 0]]), torch.tensor([[3, 4], [5, 2]]), [[1, 3], [4], [0, 5], [0, 2]]
    closed = torch.zeros(2, 2, 6, dtype=torch.bool)
    for row, taken in zip(closed.view(4, 6), visited, strict=True):
        row[taken] = True
    found = model.scores(model.encode(x), Partial(closed, first, last))
    keys, values = model.glimpse.weight.chunk(2)
    for b in range(2):
        for s in range(2):
            context = torch.cat([h[b].mean(0), h[b, last[b, s]], h[b, first[b, s]]])
            query = torch.cat([m.weight for m in (model.of_graph, model.of_last, model.of_first)], 1) @ context
            seen, _ = F.multi_head_attention_forward(
                query[None], h[b], h[b], 16, 4,
                in_proj_weight=torch.cat([torch.eye(16, dtype=torch.float64), keys, values]), in_proj_bias=None,
                bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0, out_proj_weight=model.merge.weight,
                out_proj_bias=None, attn_mask=closed[b, s][None],  # type: ignore[arg-type]
            )  # fmt: skip
            logits = 10 * torch.tanh(h[b] @ model.head.weight.T @ seen[0] / math.sqrt(16))
            torch.testing.assert_close(found[b, s], logits.masked_fill(closed[b, s], -torch.inf))


def test_the_first_step_has_learned_words_for_what_is_not_yet_known() -> None:
    model, x = policy(), points(2, 5)
    model.zero_grad()
    roll_out(model, x, sampler(torch.Generator().manual_seed(0))).log_prob.sum().backward()
    assert model.before.grad is not None and model.before.grad.abs().max() > 0
    model.zero_grad()
    given = every_start(2, 5, x.device)
    roll_out(model, x, sampler(torch.Generator().manual_seed(0)), given).log_prob.sum().backward()
    assert model.before.grad is None, "no use where the first point is given"


def test_its_logits_stay_within_the_clip() -> None:
    model, x = policy(clip=0.5), 50 * points(4, 5)
    partial = Partial.none(4, 5, 5, x.device).go(every_start(4, 5, x.device))
    scores = model.scores(model.encode(x), partial)
    open = scores[~partial.visited]
    assert open.abs().max() <= 0.5 and scores[partial.visited].eq(-torch.inf).all()


def test_called_alone_it_answers_with_the_greedy_tour() -> None:
    model, x = policy(), points(4, 5)
    assert torch.equal(model(x), roll_out(model, x, greedy).tours[:, 0]) and is_tour(model(x)).all()
    assert torch.equal(model(torch.cat([x, x]))[:4], model(x))


def test_it_refuses_other_tasks_and_widths() -> None:
    with pytest.raises(ValueError, match="offers vector and asks for classes"):
        AttentionModel(Offer("vector", (4,), "classes", 3))
    with pytest.raises(ValueError, match="cannot be shared by 5 heads"):
        AttentionModel(Offer("points", (4, 2), "tour", 4), width=32, heads=5)
