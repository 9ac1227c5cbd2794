"""Dynamical low-rank training: exact properties of the integrator against dense matrices, and whole runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.errors import RecipeError
from engine.methods.sparsity.dlrt import DLRT, LowRank, augmented, ranks, turned
from engine.training.loop import Trainer
from engine.training.run import Run
from tests.engine.methods.short import ready, train

SGD = {"use": "sgd", "lr": 0.1, "momentum": 0.0}
NET: dict[str, Any] = {"model": {"use": "mlp", "hidden": [12, 10]}, "optimizer": SGD}
FREE = {"use": "dlrt", "tau": 0.0, "r_max": 0, "r_min": 1}


def factors(m: int, n: int, r: int) -> tuple[Tensor, Tensor, Tensor]:
    u, v = torch.linalg.qr(torch.randn(m, r)).Q, torch.linalg.qr(torch.randn(n, r)).Q
    return u, torch.randn(r, r), v


def off(matrix: Tensor) -> float:
    """How far the columns are from orthonormal."""
    return float((matrix.T @ matrix - torch.eye(matrix.shape[1])).abs().max())


def layers(run: Run) -> list[LowRank]:
    return [module for module in run.model.modules() if isinstance(module, LowRank)]


@pytest.mark.parametrize(("m", "n", "r"), [(9, 7, 3), (9, 7, 5), (4, 20, 4), (6, 6, 1)])
def test_augmenting_changes_the_bases_and_not_the_matrix(m: int, n: int, r: int) -> None:
    torch.manual_seed(0)
    old = factors(m, n, r)
    K, L = torch.randn(m, r), torch.randn(n, r)
    u, s, v = augmented(old, K, L)
    assert u.shape == (m, min(m, 2 * r)) and v.shape == (n, min(n, 2 * r)) and s.shape == (u.shape[1], v.shape[1])
    assert off(u) < 1e-5 and off(v) < 1e-5
    torch.testing.assert_close(u @ s @ v.T, old[0] @ old[1] @ old[2].T, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(u @ (u.T @ K), K, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(v @ (v.T @ L), L, atol=1e-5, rtol=1e-5)


def test_the_fixed_rank_step_projects_on_the_new_bases() -> None:
    torch.manual_seed(0)
    old = factors(9, 7, 3)
    K, L = torch.randn(9, 3), torch.randn(7, 3)
    u, s, v = turned(old, K, L)
    project_u, project_v = K @ torch.linalg.pinv(K), L @ torch.linalg.pinv(L)
    expected = project_u @ (old[0] @ old[1] @ old[2].T) @ project_v
    assert s.shape == (3, 3)
    torch.testing.assert_close(u @ s @ v.T, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("module", [nn.Linear(6, 8), nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(3, 4, 2, bias=False)])
def test_a_layer_is_its_weight_and_both_bases_get_the_gradients_of_the_dense_weight(module: Any) -> None:
    """dLoss/dK = G V and dLoss/dL = G^T U with G of the dense layer, from one pass."""
    torch.manual_seed(0)
    low = LowRank(module, 3)
    with torch.no_grad():
        module.weight.copy_(low.weight())
        low.S.copy_(low.S + 0.0)
    x = torch.randn(5, 6) if isinstance(module, nn.Linear) else torch.randn(5, 3, 8, 8)
    out = module(x)
    torch.testing.assert_close(low(x), out, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(low.fold()(x), out, atol=1e-5, rtol=1e-4)
    upstream = torch.randn_like(out)
    (G,) = torch.autograd.grad((out * upstream).sum(), module.weight)
    G = G.flatten(1)
    K, L = (low.U @ low.S).detach().requires_grad_(), (low.V @ low.S.T).detach().requires_grad_()
    low._bases = (K, L, L.detach().clone())
    found = low(x)
    torch.testing.assert_close(found, out, atol=1e-5, rtol=1e-4)
    grads = torch.autograd.grad((found * upstream).sum(), [K, L])
    torch.testing.assert_close(grads[0], G @ low.V, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(grads[1], G.T @ low.U, atol=1e-4, rtol=1e-4)
    low._bases = None
    (grad,) = torch.autograd.grad((low(x) * upstream).sum(), low.S)
    torch.testing.assert_close(grad, low.U.T @ G @ low.V, atol=1e-4, rtol=1e-4)


def test_ranks_against_a_plain_search() -> None:
    torch.manual_seed(0)
    sigmas = [torch.rand(n).sort(descending=True).values ** 3 for n in (8, 5, 12)] + [torch.tensor([3.0, 0.0, 0.0])]
    for tau in (0.0, 0.05, 0.3, 0.9):
        expected = []
        for sigma in sigmas:
            rank = next(r for r in range(len(sigma) + 1) if sigma[r:].norm() <= tau * sigma.norm() or r == len(sigma))
            expected.append(min(max(rank, 2), 6, len(sigma)))
        assert ranks(sigmas, tau, 2, 6) == expected
    assert ranks(sigmas, 0.0, 1, 0) == [8, 5, 12, 1], "no limit"


def test_square_bases_before_truncation_make_the_plain_dense_step() -> None:
    """Ranks of at least half of both sizes: U' and V' span everything, and the S-step is a step of SGD on W."""
    run, _ = ready(**{**NET, "procedure": {**FREE, "init_rank": 8, "layers": "blocks.1, weight"}})
    (low,) = layers(run)
    dense: list[Tensor] = []

    def watch(part: Any, run: Run, layers: Any) -> list[Any]:
        (layer,) = layers
        dense.append(layer.weight().detach())
        return whole(part, layers)

    whole = DLRT._truncated
    before = low.weight().detach().requires_grad_()
    batch = run.stream.next()
    with torch.no_grad():
        names = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    x = run.model.blocks[0](run.model.stem(batch.x)).detach()
    h = torch.relu(nn.functional.linear(x, before, low.bias.detach()))
    logits = nn.functional.linear(h, names["head.weight"], names["head.bias"])
    loss = nn.functional.cross_entropy(logits, batch.target)
    (gradient,) = torch.autograd.grad(loss, before)
    run.procedure._truncated = lambda layers: watch(run.procedure, run, layers)
    run.before_step()
    run.batch = batch
    run.procedure.step(run, batch)
    torch.testing.assert_close(dense[0], before.detach() - 0.1 * gradient, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(low.weight().detach(), dense[0], atol=1e-5, rtol=1e-4)
    assert low.S.shape == (10, 10), "with tau = 0 and no limit truncation keeps all"


def test_with_all_layers_square_a_run_is_the_dense_run() -> None:
    """Every layer, tau = 0, no limit: the same losses as backpropagation with plain SGD, step for step."""
    wide = {**NET, "model": {"use": "mlp", "hidden": [12, 10], "activation": "tanh"}}
    _, dense, _ = train(**wide)
    _, memory, outcome = train(**{**wide, "procedure": {**FREE, "init_rank": 64, "layers": "weight"}})
    assert outcome.state == "done"
    assert memory.points["train/loss"][1] == pytest.approx(dense.points["train/loss"][1], rel=1e-3)


def test_every_step_keeps_bases_orthonormal_truncates_within_tau_and_counts_what_it_holds() -> None:
    tau = 0.45
    run, memory = ready(**{**NET, "procedure": {"use": "dlrt", "tau": tau, "init_rank": 5, "layers": "blocks, weight"}})
    procedure: Any = run.procedure
    cuts: list[tuple[Tensor, Tensor]] = []
    whole = procedure._truncated

    def watched(found: Any) -> Any:
        before = [layer.weight().detach() for layer in found]
        factors = whole(found)
        cuts.extend((w, u @ s @ v.T) for w, (u, s, v) in zip(before, factors, strict=True))
        return factors

    procedure._truncated = watched
    seen: list[list[int]] = []
    trainer = Trainer(run)
    for _ in range(8):
        trainer._step()
        seen.append([len(layer.S) for layer in layers(run)])
        for layer, r in zip(layers(run), seen[-1], strict=True):
            assert off(layer.U) < 1e-5 and off(layer.V) < 1e-5
            assert (layer.U.shape[1], layer.S.shape[1], layer.V.shape[1]) == (r, r, r)
        held = sum(r * (m + n) + r**2 for r, (m, n) in zip(seen[-1], [(12, 2), (10, 12)], strict=True))
        biases, head = 12 + 10, 10 * 2 + 2
        assert sum(p.numel() for p in run.model.parameters()) == held + biases + head
    assert all(float((a - b).norm()) <= tau * float(a.norm()) + 1e-5 for a, b in cuts)
    assert len({tuple(each) for each in seen}) > 1, "ranks move"
    assert max(max(each) for each in seen) <= 10 and min(min(each) for each in seen) >= 2
    (resize,) = [entry for entry in run.structure.log if entry["operation"] == "resize"]
    assert len(run.structure.log) == 2 and resize["step"] == 7, "the log keeps the last sizes alone"
    events = [event["text"] for event in memory.events if event["kind"] == "surgery"]
    assert len(events) == 2, "its start and its first change of rank are told, not every step"


def test_ranks_stay_within_their_limits() -> None:
    limits = {"use": "dlrt", "init_rank": 6, "layers": "blocks, weight", "r_min": 3, "r_max": 4}
    for tau, expected in ((0.0, 4), (0.9, 3)):
        run, _, _ = train(**{**NET, "procedure": {**limits, "tau": tau}})
        assert [len(layer.S) for layer in layers(run)] == [2, expected], "the first layer has two inputs"


def test_without_adaption_the_rank_stays_and_at_the_end_the_bases_do() -> None:
    fixed = {"use": "dlrt", "init_rank": 3, "adaptive": False, "layers": "blocks.1, weight"}
    run, _, _ = train(**{**NET, "procedure": fixed})
    (low,) = layers(run)
    assert low.S.shape == (3, 3) and off(low.U) < 1e-5
    run, _ = ready(**{**NET, "budget": {"epochs": 3}, "procedure": {**fixed, "finetune_epochs": 1}})
    trainer = Trainer(run)
    bases, sizes = [], []
    while not trainer._finished():
        trainer._step()
        bases.append(layers(run)[0].U.detach().clone())
        sizes.append(layers(run)[0].S.detach().clone())
    last = run.steps_per_epoch
    assert all(torch.equal(bases[-1 - last], each) for each in bases[-last:])
    assert not torch.equal(bases[-2 - last], bases[-1 - last]) and not torch.equal(sizes[-2], sizes[-1])


def test_the_first_pass_leaves_running_statistics_and_whole_weights_alone() -> None:
    normed = {**NET, "model": {"use": "mlp", "hidden": [12, 10], "norm": "batch"}}
    run, _ = ready(**{**normed, "procedure": {"use": "dlrt", "init_rank": 4}})
    Trainer(run)._step()
    (norm, *_) = [module for module in run.model.modules() if isinstance(module, nn.BatchNorm1d)]
    assert int(norm.num_batches_tracked) == 1
    assert all(p.grad is None for p in run.model.parameters())


def test_what_an_optimizer_remembers_of_factors_is_dropped_and_of_the_rest_kept() -> None:
    heavy = {**NET, "optimizer": {"use": "sgd", "lr": 0.05, "momentum": 0.9}}
    run, _, _ = train(**{**heavy, "procedure": {"use": "dlrt", "init_rank": 4}})
    state = run.roles["main"].optimizer.state
    assert not any(state[layer.S]["momentum_buffer"].any() for layer in layers(run))
    assert all(state[p]["momentum_buffer"].any() for p in (run.model.head.weight, layers(run)[0].bias))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"accumulate": 2}}, "cannot be split"),
        ({"procedure": {"use": "dlrt", "layers": "norm"}}, "No layer is at 'norm'"),
        ({"procedure": {"use": "dlrt", "layers": "activation"}}, "not a linear layer"),
        ({"procedure": {"use": "dlrt", "r_min": 9, "r_max": 4}}, "r_min = 9 is above r_max = 4"),
        ({"optimizer": {"use": "lbfgs"}}, "asks for more than gradients"),
        ({"procedure": {"use": "dlrt", "finetune_epochs": 1}, "budget": {"seconds": 1}}, "counts from the end"),
        (
            {"techniques": [{"use": "progressive-gradient-flow-nm", "n": 1, "m": 2, "targets": "blocks.1, linear"}]},
            "dlrt puts factors in the place of the weight blocks.1.linear.weight",
        ),
        ({"techniques": [{"use": "replace", "layer": {"use": "weight-norm"}, "sites": "linear"}]}, "weight is mapped"),
    ],
)
def test_what_it_cannot_do_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        train(**{**NET, "procedure": {"use": "dlrt"}, **changes})


def test_a_mask_on_another_layer_is_welcome() -> None:
    apart = {"use": "progressive-gradient-flow-nm", "n": 1, "m": 2, "targets": "blocks.1, linear"}
    assert (
        train(**{**NET, "procedure": {"use": "dlrt", "layers": "blocks.0, weight"}, "techniques": [apart]})[2].state
        == "done"
    )
