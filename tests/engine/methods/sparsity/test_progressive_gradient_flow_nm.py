import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from engine.errors import RecipeError
from engine.kit.weight_maps import add_map
from engine.methods.sparsity.progressive_gradient_flow_nm import (
    ProgressiveGradientFlowNM,
    ProgressiveMask,
    decay_factor,
    patterns,
)
from engine.parts import Progress
from engine.recipe import Recipe
from engine.training.assemble import assemble, filled
from engine.training.loop import Trainer
from engine.training.recorder import Memory, Recorder

ID = "progressive-gradient-flow-nm"


def ready(*, steps=20, model=None, optimizer=None, technique=True, **settings):
    memory = Memory()
    recipe = {
        "task": {"use": "digits", "train_limit": 128},
        "model": model or {"use": "mlp", "hidden": [32, 16]},
        "optimizer": optimizer or {"use": "adamw", "lr": 1e-2},
        "techniques": [{"use": ID, **settings}] if technique else [],
        "training": {"batch_size": 32, "evaluate_every": 0, "threads": 1},
        "budget": {"epochs": 0, "steps": steps},
    }
    return assemble(filled(Recipe.of(recipe)), Recorder(memory)), memory


def trained(**settings):
    run, memory = ready(**settings)
    return run, memory, Trainer(run).train()


def latents(run):
    return [p.detach() for p in run.model.parameters()]


# -- the mask ----------------------------------------------------------------------------------------------------------


def masked(gradient, beta, pattern=(1, 4)):
    layer = nn.Linear(8, 3).double()
    weight = layer.weight
    mask = ProgressiveMask(gradient)
    mask.set(pattern, beta)
    add_map(layer, "weight", mask, "mask", "test")
    return layer, weight, mask


@pytest.mark.parametrize("gradient", ["ste", "autograd"])
def test_the_factor_goes_from_the_dense_weight_to_the_bare_mask(gradient):
    for beta in (1.0, 0.3, 0.0):
        layer, weight, mask = masked(gradient, beta)
        kept = mask.mask(weight)
        assert kept.sum() == 6
        expected = torch.where(kept, weight, weight * torch.tensor(beta))
        assert torch.equal(layer.weight, expected)
        if beta == 1.0:
            assert torch.equal(layer.weight, weight)


def test_gradients_pass_straight_through_or_by_the_factor():
    for gradient, share in (("ste", 1.0), ("autograd", 0.25)):
        layer, weight, mask = masked(gradient, 0.25)
        upstream = torch.randn(3, 8, dtype=torch.float64)
        layer.weight.backward(upstream)
        torch.testing.assert_close(weight.grad, torch.where(mask.mask(weight), upstream, share * upstream))


def test_the_state_of_the_moment_is_in_the_models_state():
    layer, _, _ = masked("ste", 0.25, (2, 8))
    other, _, mask = masked("ste", 1.0, (1, 4))
    other.load_state_dict(layer.state_dict())
    assert (mask._pattern, mask._beta) == ((2, 8), 0.25)
    assert torch.equal(other.weight, layer.weight)


# -- over time ---------------------------------------------------------------------------------------------------------


def test_factors_are_the_formulas():
    assert [decay_factor("linear", 0.25, j, 100) for j in (0, 1, 4, 9)] == [1.0, 0.75, 0.0, 0.0]
    assert decay_factor("exponential", 0.1, 7, 100) == pytest.approx(math.exp(-0.7))
    assert decay_factor("linear", 0.0, 100, 100) == 0.0 and decay_factor("linear", 0.0, 50, 100) == 0.5
    assert decay_factor("exponential", 0.0, 100, 100) == pytest.approx(0.01)
    assert decay_factor("none", 0.5, 0, 100) == 0.0


def test_structures_tighten_to_the_pattern():
    assert patterns("stepwise", 1, 8) == [(7, 8), (4, 8), (2, 8), (1, 8)]
    assert patterns("stepwise", 2, 4) == [(3, 4), (2, 4)]
    assert patterns("geometric", 1, 4) == [(8, 32), (4, 16), (2, 8), (1, 4)]
    for n, m in ((1, 8), (2, 4), (3, 8), (4, 4), (1, 1), (7, 8)):
        for structure in ("stepwise", "geometric", "none"):
            stages = patterns(structure, n, m)
            assert stages[-1] == (n, m) and all(0 < a <= b for a, b in stages)


def test_a_run_is_dense_then_decays_then_tunes():
    part = ProgressiveGradientFlowNM(n=1, m=4, decay_coef=0.1, dense_fraction=0.2, finetune_fraction=0.3)
    seen = [part.at(Progress(step, 20)) for step in range(20)]
    assert seen[:4] == [((4, 4), 1.0)] * 4
    assert [beta for _, beta in seen[4:14]] == pytest.approx([1 - 0.1 * j for j in range(10)])
    assert seen[14:] == [((1, 4), 0.0)] * 6
    assert all(pattern == (1, 4) for pattern, _ in seen[4:])


def test_a_structure_takes_equal_stretches():
    part = ProgressiveGradientFlowNM(n=1, m=8, structure="stepwise", dense_fraction=0.0, finetune_fraction=0.2)
    kept = [part.at(Progress(step, 20)) for step in range(20)]
    assert [n for (n, _), _ in kept] == [7] * 4 + [4] * 4 + [2] * 4 + [1] * 8
    assert {beta for _, beta in kept} == {0.0}


# -- in a run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["none", "stepwise", "geometric"])
def test_in_the_end_every_group_has_exactly_n(structure):
    run, _, _ = trained(n=1, m=4, structure=structure, model={"use": "mlp", "hidden": [32, 32]})
    for block in run.model.blocks:
        hardened = block.linear.parametrizations.weight.original
        assert (hardened.view(-1, 4) != 0).sum(1).tolist() == [1] * (hardened.numel() // 4)
        assert torch.equal(block.linear.weight, hardened)
    assert not parametrize.is_parametrized(run.model.head)


def test_keeping_all_is_dense_training_bit_for_bit():
    sparse, dense = trained(n=4, m=4)[0], trained(technique=False)[0]
    named = dict(dense.model.named_parameters())
    for name, parameter in sparse.model.named_parameters():
        name = name.replace("parametrizations.weight.original", "weight")
        assert torch.equal(parameter, named.pop(name))
    assert not named


def test_the_pull_adds_its_share_of_the_pruned_weights_to_the_gradient():
    settings = {"n": 2, "m": 4, "decay": "none", "dense_fraction": 0.0, "steps": 1}
    optimizer = {"use": "sgd", "lr": 0.1}
    plain, _ = ready(**settings, optimizer=optimizer)
    pulled, _ = ready(**settings, optimizer=optimizer, grad="sr-ste", srste_lambda=0.5)
    before = [p.clone() for p in latents(plain)]
    for run in (plain, pulled):
        batch = next(run.batches("train", 32))
        run.batch = batch
        run.procedure.step(run, batch)
    pruned = {id(weight): mask for weight, mask in pulled.techniques[0]._pruned}
    assert len(pruned) == 2
    for start, one, other, own in zip(before, latents(plain), latents(pulled), pulled.model.parameters(), strict=True):
        pull = start.masked_fill(pruned[id(own)].mask(start), 0.0) if id(own) in pruned else torch.zeros_like(start)
        torch.testing.assert_close(other, one - 0.1 * 0.5 * pull, rtol=1e-6, atol=1e-8)


def test_the_pruned_weights_gradients_fade_with_the_factor():
    _, memory, _ = trained(n=1, m=8, grad="autograd", steps=41, dense_fraction=0.0, finetune_fraction=0.0)
    steps, ratios = memory.points[f"{ID}/gradient-variance-ratio"]
    betas = memory.points[f"{ID}/beta"][1]
    assert steps == [0, 10, 20, 30, 40] and betas == sorted(betas, reverse=True)
    assert ratios[-1] < 0.05 * ratios[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"m": 48, "n": 1}, r"blocks\.0\.linear has 64 inputs, not a multiple of 48"),
        ({"m": 16, "structure": "geometric"}, "not a multiple of 128"),
        ({"targets": "norm"}, "No layer is at 'norm'"),
        ({"targets": "blocks.9"}, "is neither a role"),
        ({"n": 5, "m": 4}, "n must be at most m"),
        ({"dense_fraction": 0.6, "finetune_fraction": 0.6}, "together they must be at most 1"),
    ],
)
def test_what_cannot_work_is_refused_with_a_sentence(settings, words):
    with pytest.raises(RecipeError, match=words):
        ready(**settings)
