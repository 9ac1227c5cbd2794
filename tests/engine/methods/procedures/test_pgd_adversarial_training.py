import pytest
import torch
from torch.nn.functional import softplus

from engine.methods.procedures.pgd_adversarial_training import PGDRobustness, ascend, lengths, random_start
from engine.recipe import Recipe
from engine.training.assemble import assemble, filled
from engine.training.loop import Trainer
from engine.training.recorder import Memory, Recorder

RECIPE = {
    "task": {"use": "digits", "train_limit": 192},
    "model": {"use": "mlp", "hidden": [24]},
    "optimizer": {"use": "adamw", "lr": 1e-2},
    "training": {"batch_size": 64, "evaluate_every": 0, "threads": 1},
    "budget": {"epochs": 12},
}


def ready(**changes):
    return assemble(filled(Recipe.of({**RECIPE, **changes})), Recorder(Memory()))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def clean():
    run = ready()
    Trainer(run).train()
    return run


# -- the attack --------------------------------------------------------------------------------------------------------

W = torch.randn(12, dtype=torch.float64, generator=rng(1))
X = torch.randn(50, 12, dtype=torch.float64, generator=rng(2))
Y = torch.where(torch.arange(50) % 2 == 0, 1.0, -1.0).double()


def slope(x):
    x = x.detach().requires_grad_(True)
    return torch.autograd.grad(softplus(-Y * (x @ W + 0.3)).sum(), x)[0]


def worst_margin(**settings):
    *_, last = ascend(slope, X, rng=rng(), **settings)
    return Y * (last @ W + 0.3)


def test_a_linear_classifier_falls_to_its_closed_form_once_the_steps_reach_across():
    linf = Y * (X @ W + 0.3) - 0.1 * W.abs().sum()
    torch.testing.assert_close(worst_margin(eps=0.1, alpha=0.025, steps=8), linf, rtol=0, atol=1e-6)
    torch.testing.assert_close(worst_margin(eps=0.1, alpha=0.025, steps=4, start=False), linf, rtol=0, atol=1e-6)
    assert (worst_margin(eps=0.1, alpha=0.025, steps=7) - linf).max() > 1e-3
    l2 = Y * (X @ W + 0.3) - 0.1 * W.norm()
    torch.testing.assert_close(worst_margin(norm="l2", eps=0.1, alpha=0.05, steps=200), l2, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_point_stays_in_the_ball_and_in_the_valid_range(norm):
    x = torch.rand(40, 1, 8, 8, generator=rng(3))
    points = list(ascend(torch.sin, x, norm=norm, eps=0.3, alpha=0.1, steps=9, span=(0.0, 1.0), rng=rng()))
    assert len(points) == 10
    for point in points:
        far = (point - x).flatten(1).abs().amax(1) if norm == "linf" else (point - x).flatten(1).norm(dim=1)
        assert far.max() <= 0.3 + 1e-6 * (norm == "l2") + 1e-7
        assert point.min() >= 0 and point.max() <= 1
    assert far.min() > 0.1


def test_random_starts_fill_the_ball():
    x = torch.zeros(4000, 3, dtype=torch.float64)
    box, ball = random_start(x, "linf", 0.5, rng()), random_start(x, "l2", 0.5, rng())
    assert box.abs().max() <= 0.5 and abs(float((box.abs() < 0.25).double().mean()) - 0.5) < 0.03
    assert lengths(ball).max() <= 0.5
    inner = (lengths(ball) < 0.25).double().mean()  # an eighth of the volume
    assert abs(float(inner) - 0.125) < 0.02


def test_one_full_step_from_the_input_is_the_fast_gradient_sign():
    *_, point = ascend(slope, X, eps=0.2, alpha=0.2, steps=1, start=False)
    torch.testing.assert_close(point, X + 0.2 * slope(X).sign())


# -- in a run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_at_distance_zero_it_is_clean_training_bit_for_bit(norm):
    short = {"budget": {"steps": 4}}
    part = {"use": "pgd-adversarial-training", "eps": 0.0, "steps": 2, "norm": norm}
    attacked, plain = ready(techniques=[part], **short), ready(**short)
    assert Trainer(attacked).train().weights == Trainer(plain).train().weights


def test_the_attack_leaves_model_gradients_and_draws_as_they_were():
    run = ready(
        model={"use": "mlp", "hidden": [16], "norm": "batch", "dropout": 0.3},
        techniques=[{"use": "pgd-adversarial-training"}],
    )
    batch = next(run.batches("train", 32))
    state = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    draws = torch.get_rng_state()
    attacked = run.techniques[0].on_batch(run, batch)
    assert all(torch.equal(tensor, state[name]) for name, tensor in run.model.state_dict().items())
    assert all(p.grad is None for p in run.model.parameters())
    assert torch.equal(torch.get_rng_state(), draws)
    assert run.model.training and not attacked.x.requires_grad
    assert torch.equal(attacked.target, batch.target) and not torch.equal(attacked.x, batch.x)


def test_the_attack_raises_the_loss(clean):
    batch = next(clean.batches("test", 128))
    *_, point = ascend(clean.oracle(batch).input_grad, batch.x, span=(0.0, 1.0), rng=rng())
    assert clean.oracle(batch.with_x(point)).value() > 1.5 * clean.oracle(batch).value()


# -- the probe ---------------------------------------------------------------------------------------------------------


def robust(run, **settings):
    return PGDRobustness(**settings).look(run).scalars["accuracy"]


def test_more_steps_restarts_and_distance_never_help_the_model(clean):
    settings = {"alpha": 0.025, "samples": 128}
    few, many = robust(clean, steps=3, restarts=1, **settings), robust(clean, steps=12, restarts=1, **settings)
    again = robust(clean, steps=12, restarts=3, **settings)
    assert 0.2 < many <= few and again <= many
    assert robust(clean, eps=1.0, steps=20, restarts=1, samples=128) <= 0.02


def test_at_distance_zero_it_is_the_accuracy_and_training_on_attacks_raises_it(clean):
    scalars = PGDRobustness(eps=0.0, steps=1, restarts=1).look(clean).scalars
    assert scalars["accuracy"] == scalars["clean"] == pytest.approx(clean.evaluate("test")["accuracy"], abs=1e-12)
    run = ready(techniques=[{"use": "pgd-adversarial-training", "steps": 4, "alpha": 0.05}])
    Trainer(run).train()
    assert robust(run, restarts=1, steps=8) > robust(clean, restarts=1, steps=8) + 0.05


def test_looking_repeats_itself_and_leaves_the_run_as_it_was(clean):
    draws, weights = torch.get_rng_state(), [p.clone() for p in clean.model.parameters()]
    assert robust(clean, samples=64, steps=4) == robust(clean, samples=64, steps=4)
    assert torch.equal(torch.get_rng_state(), draws) and clean.model.training
    assert all(torch.equal(p, w) and p.grad is None for p, w in zip(clean.model.parameters(), weights, strict=True))
