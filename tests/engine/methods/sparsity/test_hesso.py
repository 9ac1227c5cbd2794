"""HESSO against its formulas, a slow naive version of its scores, its base optimizers, and nets cut by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import RecipeError
from engine.kit.tied import find_groups
from engine.methods.sparsity.hesso import HESSO, importance
from engine.parts import Batch
from engine.training.oracle import Oracle
from tests.engine.methods.short import ready, train

BASES = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.01, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.01, fused=True),
}
CNN: dict[str, Any] = {
    "task": {"use": "digits"},
    "model": {"use": "cnn", "widths": [4, 6]},
    "training": {"batch_size": 150, "evaluate_every": 0},
    "budget": {"steps": 16},
}
PRUNE = {"use": "hesso", "lr": 1e-3, "start_pruning_step": 2, "pruning_steps": 8, "pruning_periods": 4}


class Net(nn.Module):
    """Two convolutions with batch norm and a head: 6 + 8 channels that can go."""

    def __init__(self, first: int = 6, second: int = 8) -> None:
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(1, first, 3, padding=1), nn.BatchNorm2d(first)
        self.two, self.norm2 = nn.Conv2d(first, second, 3, padding=1), nn.BatchNorm2d(second)
        self.head = nn.Linear(second, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.one(x)).relu()
        return self.head(self.norm2(self.two(y)).relu().mean((2, 3)))

    def owned(self) -> list[list[Tensor]]:
        """Each channel's own entries, by hand."""
        found = []
        for conv, norm in ((self.one, self.norm1), (self.two, self.norm2)):
            for i in range(len(conv.weight)):
                found.append([conv.weight[i], conv.bias[i], norm.weight[i], norm.bias[i]])
        return found


def data() -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(24, 1, 6, 6, generator=generator)
    return Batch({"x": x}, torch.randint(4, (24,), generator=generator), torch.arange(24))


def made(**settings: Any) -> tuple[Net, HESSO, Batch]:
    torch.manual_seed(0)
    net, batch = Net(), data()
    for norm in (net.norm1, net.norm2):
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.uniform_(0.5, 1.0)
    optimizer = HESSO(net.parameters(), **{"lr": 0.01, **settings})
    optimizer.attach(net, Oracle(net, lambda out, b: {"task": F.cross_entropy(out, b.target)}, batch))
    return net, optimizer, batch


def steps(net: Net, optimizer: Any, batch: Batch, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        F.cross_entropy(net(batch.x), batch.target).backward()
        optimizer.step()


def silent(net: Net) -> list[bool]:
    return [not any(bool(entry.any()) for entry in own) for own in net.owned()]


@pytest.mark.parametrize("variant", BASES)
def test_without_a_target_it_is_its_base_bit_for_bit(variant: Any) -> None:
    net, optimizer, batch = made(variant=variant, target_group_sparsity=0.0)
    plain = copy.deepcopy(net)
    steps(net, optimizer, batch, 6)
    steps(plain, BASES[variant](plain.parameters()), batch, 6)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True))
    net, optimizer, batch = made(variant=variant, start_pruning_step=6)
    steps(net, optimizer, batch, 6)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True)), "nor before"


@pytest.mark.parametrize("cosine", ["redundant", "important"])
def test_scores_are_those_of_a_slow_naive_version(cosine: str) -> None:
    torch.manual_seed(0)
    xs = [torch.randn(n, dtype=torch.float64) for n in (3, 5, 4, 7)]
    ds = [torch.randn(n, dtype=torch.float64) for n in (3, 5, 4, 7)]
    weights = (0.1, 0.2, 0.3, 0.4, 0.5)
    rows: list[list[float]] = []
    for x, d in zip(xs, ds, strict=True):
        dot = float((x * d).sum())
        near = dot / float(x.norm() * d.norm())
        sign = -1 if cosine == "redundant" else 1
        rows.append([float(x.norm()), float(x.norm()) / len(x), 1 + sign * near, abs(dot), 0.5 * dot**2])
    table = torch.tensor(rows, dtype=torch.float64)
    expected = (table / table.norm(dim=0) * torch.tensor(weights, dtype=torch.float64)).sum(1)
    sums = [
        torch.stack([(a * b).sum() for a, b in zip(one, two, strict=True)])
        for one, two in ((xs, xs), (ds, ds), (xs, ds))
    ]
    sizes = torch.tensor([3.0, 5.0, 4.0, 7.0], dtype=torch.float64)
    torch.testing.assert_close(importance(*sums, sizes, weights, cosine), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", BASES)
def test_the_lowest_scores_are_chosen_from_the_base_optimizers_direction(variant: Any) -> None:
    """Directions from the formulas of SGD, Adam and AdamW (decoupled decay is no part of them)."""
    net, optimizer, batch = made(variant=variant, target_group_sparsity=0.3, pruning_steps=5, pruning_periods=1)
    before = copy.deepcopy(net)
    F.cross_entropy(net(batch.x), batch.target).backward()
    twin = copy.deepcopy(before)
    with torch.no_grad():
        for p, original in zip(twin.parameters(), net.parameters(), strict=True):
            g = original.grad + (0 if variant == "adamw" else 0.01 * p)
            p.copy_(g if variant == "sgd" else g / (g.abs() + 1e-8))
    optimizer.step()
    scores = []
    for x, d in zip(before.owned(), twin.owned(), strict=True):
        a, b = torch.cat([e.reshape(-1) for e in x]), torch.cat([e.reshape(-1) for e in d])
        dot = (a * b).sum()
        scores.append([a.norm(), a.norm() / len(a), 1 - dot / (a.norm() * b.norm()), dot.abs(), 0.5 * dot**2])
    table = torch.tensor([[float(each.detach()) for each in row] for row in scores])
    total = (0.2 * table / table.norm(dim=0)).sum(1)
    expected = torch.zeros(14, dtype=torch.bool)
    expected[total.topk(int(0.3 * 14), largest=False).indices] = True
    assert torch.equal(optimizer.redundant, expected)


def test_with_no_rate_redundant_channels_fall_linearly_to_zero_and_the_others_stay() -> None:
    net, optimizer, batch = made(target_group_sparsity=0.5, pruning_steps=10, pruning_periods=1)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    start = copy.deepcopy(net)
    for t in range(1, 11):
        steps(net, optimizer, batch, 1)
        if t == 1:
            chosen = optimizer.redundant.tolist()
            assert sum(chosen) == 7
        for now, then, falls in zip(net.owned(), start.owned(), chosen, strict=True):
            for a, b in zip(now, then, strict=True):
                torch.testing.assert_close(a, (1 - t / 10) * b if falls else b, rtol=1e-6, atol=1e-6)
    assert silent(net) == chosen


@pytest.mark.parametrize(("target", "periods"), [(0.5, 3), (0.3, 1), (0.71, 4)])
def test_exactly_the_target_is_silent_after_the_last_period_and_stays_so(target: float, periods: int) -> None:
    net, optimizer, batch = made(target_group_sparsity=target, pruning_steps=12, pruning_periods=periods)
    shares = []
    for _ in range(12):
        steps(net, optimizer, batch, 1)
        shares.append(sum(silent(net)))
    goal = int(14 * target)
    period = 12 // periods
    assert shares[period - 1 :: period][:periods] == [goal // periods * (i + 1) for i in range(periods - 1)] + [goal]
    steps(net, optimizer, batch, 5)
    assert sum(silent(net)) == goal, "what is pruned stays at zero, and nothing else goes"


def test_no_layer_is_emptied_and_what_stays_is_divisible() -> None:
    net, optimizer, batch = made(target_group_sparsity=1.0, pruning_steps=4, pruning_periods=2)
    steps(net, optimizer, batch, 4)
    kept = [not each for each in silent(net)]
    assert (sum(kept[:6]), sum(kept[6:])) == (1, 1)
    net, optimizer, batch = made(target_group_sparsity=0.5, pruning_steps=4, pruning_periods=2, group_divisible=4)
    steps(net, optimizer, batch, 4)
    kept = [not each for each in silent(net)]
    assert sum(kept[:6]) in (4, 6) and sum(kept[6:]) in (4, 8) and sum(kept) < 14


def test_the_corrective_variant_comes_back_to_its_weights_and_then_prunes_the_target() -> None:
    settings = {
        "cric": True,
        "cric_sampling_steps": 3,
        "cric_max_cycles": 4,
        "pruning_steps": 5,
        "start_pruning_step": 2,
    }
    net, optimizer, batch = made(target_group_sparsity=0.5, pruning_periods=1, **settings)
    steps(net, optimizer, batch, 2)
    cached = [p.detach().clone() for p in net.parameters()]
    sampled = 0
    while optimizer.begin is None:
        steps(net, optimizer, batch, 1)
        sampled += 1
        if sampled % 3 == 0:
            assert all(torch.equal(a, b) for a, b in zip(net.parameters(), cached, strict=True)), "restored"
        elif sampled % 3 == 1:
            assert not torch.equal(net.one.weight, cached[0])
    assert sampled % 3 == 0 and 3 <= sampled <= 12
    assert int(optimizer.redundant.sum()) == 7 and not optimizer.pruned.any()
    steps(net, optimizer, batch, 5)
    assert sum(silent(net)) == 7 and torch.equal(torch.tensor(silent(net)), optimizer.pruned)


def test_trial_projections_are_the_losses_with_parts_of_a_layer_at_zero() -> None:
    net, optimizer, batch = made(cric=True, target_group_sparsity=0.5, pruning_periods=1)
    net.eval()
    scores = torch.arange(14.0).roll(3)
    before = [p.detach().clone() for p in net.parameters()]
    found = optimizer._project(before, scores)
    with torch.no_grad():
        reference = F.cross_entropy(net(batch.x), batch.target)
        for first, size in ((0, 6), (6, 8)):
            ratios = []
            for share in (0.25, 0.5, 0.75):
                twin = copy.deepcopy(net)
                owned = twin.owned()
                for i in scores[first : first + size].argsort()[: int(size * share)].tolist():
                    for entry in owned[first + i]:
                        entry.zero_()
                ratios.append(F.cross_entropy(twin(batch.x), batch.target) / reference)
            expected = torch.stack(ratios).mean() / size
            torch.testing.assert_close(found[first : first + size], expected.expand(size), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("settings", [{"pruning_periods": 2}, {"cric": True, "cric_sampling_steps": 4}])
def test_its_state_goes_through_a_file(settings: Any, tmp_path: Any) -> None:
    kinds = {"target_group_sparsity": 0.5, "pruning_steps": 8, **settings}
    net, optimizer, batch = made(**{"pruning_periods": 1, **kinds})
    steps(net, optimizer, batch, 6)
    torch.save([net.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    again, other, _ = made(**{"pruning_periods": 1, **kinds})
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(weights)
    other.load_state_dict(state)
    for model, each in ((net, optimizer), (again, other)):
        steps(model, each, batch, 12)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


# -- in a run ----------------------------------------------------------------------------------------------------------


def logits(run: Any) -> Tensor:
    (batch,) = run.batches("val", size=64, limit=64)
    return run.predict(batch)


def test_the_sliced_model_answers_as_the_masked_one() -> None:
    whole, _, _ = train(**CNN, optimizer={**PRUNE, "slicing": "never"})
    small, memory, outcome = train(**CNN, optimizer=PRUNE)
    goal = int(20 * 0.5)
    assert whole.roles["main"].optimizer._channels.count == 20
    assert outcome.state == "done" and len(whole.masks)
    torch.testing.assert_close(logits(small), logits(whole), atol=1e-5, rtol=1e-5)
    assert sum(group.size for group in small.model.anatomy().tied()) == 20 - goal
    assert sum(p.numel() for p in small.model.parameters()) < 0.6 * sum(p.numel() for p in whole.model.parameters())
    (event,) = [event for event in memory.events if event["kind"] == "surgery"]
    assert event["text"].startswith("hesso: slice.")


def test_sliced_at_once_it_trains_on_as_the_masked_one() -> None:
    """The steps after the cut are those of the masked run, momentum and schedule included, to rounding."""
    ends = [train(**CNN, optimizer={**PRUNE, "slicing": slicing}) for slicing in ("pruned", "end")]
    (early, log, _), (late, _, _) = ends
    assert early.structure.log[0]["step"] == 10 and late.structure.log[0]["step"] == 16
    torch.testing.assert_close(logits(early), logits(late), atol=1e-4, rtol=1e-3)
    assert log.points["group-sparsity"][1][-1] == 0.0, "of the channels that are left none is pruned"


def test_an_average_brings_no_pruned_channel_back() -> None:
    ema = {"use": "switch-ema", "decay": 0.9, "unit": "step", "switch_interval": 3}
    run, _, outcome = train(**CNN, optimizer={**PRUNE, "slicing": "never"}, techniques=[ema])
    optimizer = run.roles["main"].optimizer
    held = [p[mask == 0] for p, mask in zip(*optimizer._clamped, strict=True)]
    assert outcome.state == "done" and held and not any(bool(each.any()) for each in held)
    shadows = dict(zip(run.techniques[0]._live, run.techniques[0].shadow, strict=True))
    ghosts = [shadows[p][mask == 0] for p, mask in zip(*optimizer._clamped, strict=True)]
    assert any(bool(each.any()) for each in ghosts), "the average itself still remembers"
    with run.variants()["ema"]():
        assert not any(bool(p[mask == 0].any()) for p, mask in zip(*optimizer._clamped, strict=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {
                "model": {"use": "mlp", "hidden": [16, 16]},
                "techniques": [{"use": "progressive-gradient-flow-nm", "n": 1, "m": 2}],
            },
            "both want to mask the weight 'blocks.0.linear.weight'",
        ),
        ({"model": {"use": "cnn", "widths": [4], "norm": "layer"}}, "normalizes each channel with all others"),
        ({"optimizer": {**PRUNE, "pruning_steps": 2}}, "2 pruning steps cannot be split into 4 periods"),
        (
            {"techniques": [{"use": "replace", "layer": {"use": "weight-norm"}, "sites": "conv"}]},
            "fold the model first",
        ),
        ({"procedure": {"use": "collaborative-forward-forward"}}, "holds on to those that it found at the start"),
    ],
)
def test_what_it_cannot_do_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        ready(**{**CNN, "optimizer": PRUNE, **changes})


def test_a_model_without_an_anatomy_is_followed_on_the_oracles_batch() -> None:
    net, optimizer, _ = made()
    assert optimizer._channels is not None and optimizer._channels.count == 14
    assert len(find_groups(net, torch.empty(2, 1, 6, 6, device="meta"))) == 2
    lonely = HESSO(Net().parameters())
    with pytest.raises(RuntimeError, match=r"Call attach\(model, oracle\) first"):
        lonely.step()
