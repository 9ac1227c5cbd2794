import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from engine.methods.probes.filter_normalized_landscape import (
    FilterNormalizedLandscape,
    direction,
    negative_curvature,
    scan,
)
from engine.recipe import Recipe
from engine.training.assemble import assemble, filled
from engine.training.recorder import Memory, Recorder


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def ready(**model):
    recipe = {
        "task": {"use": "digits", "train_limit": 64},
        "model": {"use": "mlp", "hidden": [12], **model},
        "optimizer": {"use": "sgd", "lr": 0.1},
        "training": {"threads": 1},
        "budget": {"steps": 1},
    }
    return assemble(filled(Recipe.of(recipe)), Recorder(Memory()))


def test_each_filter_of_a_direction_is_as_long_as_the_weights():
    weights = [torch.randn(5, 3, 2, 2, generator=rng(1)), torch.randn(4, 6, generator=rng(2)), torch.ones(4)]
    kernel, matrix, bias = direction(weights, rng())
    torch.testing.assert_close(kernel.flatten(1).norm(dim=1), weights[0].flatten(1).norm(dim=1), rtol=1e-6, atol=0)
    torch.testing.assert_close(matrix.norm(dim=1), weights[1].norm(dim=1), rtol=1e-6, atol=0)
    assert not bias.any()
    whole = direction(weights, rng(), "layer")
    assert float(whole[1].norm()) == pytest.approx(float(weights[1].norm()), rel=1e-6)
    assert not torch.allclose(whole[1].norm(dim=1), weights[1].norm(dim=1), rtol=1e-2)


def test_a_quadratic_loss_gives_an_exact_parabola():
    w, d = [torch.randn(4, 3, dtype=torch.float64)], [torch.randn(4, 3, dtype=torch.float64)]
    e = [torch.randn(4, 3, dtype=torch.float64)]
    grid = [-1.0, -0.5, 0.0, 0.5, 1.0]
    found = scan(lambda point: point[0].square().sum(), w, [d, e], grid)
    for i, a in enumerate(grid):
        for j, b in enumerate(grid):
            assert float(found[i, j]) == pytest.approx(float((w[0] + a * d[0] + b * e[0]).square().sum()), rel=1e-12)
    assert found[:, 2].diff(n=3).abs().max() < 1e-12


def rescaled_surfaces(norm):
    """The surfaces of a bias-free ReLU net and of the same net with its layers rescaled against each other."""
    model = nn.Sequential(nn.Linear(6, 9, bias=False), nn.ReLU(), nn.Linear(9, 4, bias=False)).double()
    x, y = torch.randn(30, 6, dtype=torch.float64, generator=rng(3)), torch.arange(30) % 4
    names = [name for name, _ in model.named_parameters()]

    def loss(point):
        return cross_entropy(functional_call(model, dict(zip(names, point, strict=True)), (x,)), y)

    surfaces = []
    for c in (1.0, 7.0):
        weights = [w.detach() * f for w, f in zip(model.parameters(), (c, 1 / c), strict=True)]
        draws = rng(5)
        along = [direction(weights, draws, norm) for _ in range(2)]
        surfaces.append(scan(loss, weights, along, [-1.0, -0.5, 0.0, 0.5, 1.0]))
    return surfaces


def test_rescaling_layers_against_each_other_leaves_the_picture_as_it_is():
    torch.testing.assert_close(*rescaled_surfaces("filter"), rtol=1e-9, atol=1e-9)
    raw, other = rescaled_surfaces("none")
    assert (raw - other).abs().max() > 0.1


def test_curvature_is_counted_where_a_surface_bends_down():
    x, y = torch.meshgrid(torch.linspace(-1, 1, 9), torch.linspace(-1, 1, 9), indexing="ij")
    assert negative_curvature(x.square() + y.square()) == 0.0
    assert negative_curvature(x.square() - y.square()) == 1.0
    assert negative_curvature(x * y) == 1.0
    assert negative_curvature(3 * x + y) == 0.0
    assert 0.2 < negative_curvature(torch.sin(3 * x)) < 0.8


def test_looking_measures_the_runs_loss_and_changes_nothing():
    run = ready(norm="batch", dropout=0.2)
    state = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    draws = torch.get_rng_state()
    finding = FilterNormalizedLandscape(grid=5, samples=40, span=0.5).look(run)
    assert all(torch.equal(tensor, state[name]) for name, tensor in run.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), draws) and run.model.training
    loss = run.evaluate("train", limit=40)["loss"]
    assert finding.scalars["loss"] == pytest.approx(loss, rel=1e-6)
    curve, surface = finding.figures["curve"], finding.figures["surface"]
    assert curve["series"][0]["x"] == surface["x"]["values"] == [-0.5, -0.25, 0.0, 0.25, 0.5]
    assert surface["z"][2][2] == curve["series"][0]["y"][2] == finding.scalars["loss"]
    assert [row[2] for row in surface["z"]] == curve["series"][0]["y"]
    assert len(surface["z"]) == 5 and len({value for row in surface["z"] for value in row}) == 25


def test_the_same_seed_draws_the_same_picture():
    run = ready()
    look = [FilterNormalizedLandscape(show="curve", grid=3, seed=s).look(run).scalars["edge"] for s in (0, 0, 1)]
    assert look[0] == look[1] != look[2]


def test_an_even_grid_is_refused():
    with pytest.raises(ValueError, match="grid = 24 is even"):
        FilterNormalizedLandscape(grid=24)
