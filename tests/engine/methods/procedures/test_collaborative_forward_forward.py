from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from engine.errors import RecipeError
from engine.methods.procedures.collaborative_forward_forward import Layer, goodness, layer_losses, unit
from engine.recipe import Recipe
from engine.training.assemble import assemble, filled
from engine.training.loop import Trainer
from engine.training.recorder import Memory, Recorder


def stack(widths=(7, 6, 5, 4)):
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(i, o), nn.ReLU()).double() for i, o in pairwise(widths)]


def climb(blocks, x):
    """The textbook pass: each layer gets the row below at unit length, cut off from its gradient."""
    good, h = [], x
    for block in blocks:
        h = block(h.detach() / h.detach().norm(dim=1, keepdim=True))
        good.append(h.square().sum(1))
    return good


POSITIVE = torch.rand(8, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
NEGATIVE = torch.rand(8, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_a_layers_loss_reaches_no_other_layer():
    blocks = stack()
    losses = layer_losses(climb(blocks, POSITIVE), climb(blocks, NEGATIVE), 2.0, True)
    for k, each in enumerate(losses):
        grads = torch.autograd.grad(each.sum(), [b[0].weight for b in blocks], retain_graph=True, allow_unused=True)
        assert [g is not None and bool(g.any()) for g in grads] == [t == k for t in range(3)]


def test_alone_each_layer_has_the_plain_loss():
    good, bad = climb(stack(), POSITIVE), climb(stack(), NEGATIVE)
    for k, each in enumerate(layer_losses(good, bad, 2.0, False)):
        assert torch.equal(each, F.softplus(-(good[k] - 2.0)) + F.softplus(bad[k] - 2.0))
    one = (good[:1], bad[:1], 2.0)
    assert torch.equal(layer_losses(*one, True)[0], layer_losses(*one, False)[0])


def test_together_each_layer_moves_as_under_the_one_loss_of_the_sum():
    blocks = stack()
    weights = [p for b in blocks for p in b.parameters()]
    losses = layer_losses(climb(blocks, POSITIVE), climb(blocks, NEGATIVE), 2.0, True)
    ours = torch.autograd.grad(sum(each.mean() for each in losses), weights)
    margins = torch.cat([sum(climb(blocks, x)) - 2.0 for x in (POSITIVE, NEGATIVE)])
    labels = torch.cat([torch.ones(8), torch.zeros(8)]).double()
    whole = 2 * F.binary_cross_entropy_with_logits(margins, labels)
    for mine, theirs in zip(ours, torch.autograd.grad(whole, weights), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-12)


def test_the_length_of_what_comes_from_below_does_not_matter():
    layer = Layer(stack()[1])
    h = torch.rand(9, 6, dtype=torch.float64)
    torch.testing.assert_close(goodness(layer(h)), goodness(layer(1e3 * h)), rtol=1e-9, atol=0)
    assert unit(torch.zeros(2, 3)).isfinite().all()
    torch.testing.assert_close(goodness(h, "mean") * 6, goodness(h))


def test_the_first_layer_sees_input_and_label_side_by_side():
    layer = Layer(stack()[0], classes=4).double()
    x, labels = torch.rand(5, 7, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    weight = torch.cat([layer.block[0].weight, layer.labels.weight], 1)
    for k in range(4):
        both = torch.cat([x, labels[k].expand(5, 4)], 1)
        dense = F.relu(F.linear(both / both.norm(dim=1, keepdim=True), weight, layer.block[0].bias))
        torch.testing.assert_close(layer.first(x, labels[k].expand(5, 4)), dense)
        torch.testing.assert_close(layer.first(x, labels, every=True).view(5, 4, -1)[:, k], dense)


def ready(steps=60, task=None, model=None, **settings):
    recipe = {
        "task": task or {"use": "digits", "train_limit": 300},
        "model": model or {"use": "mlp", "hidden": [48, 32]},
        "optimizer": {"use": "adamw", "lr": 5e-3, "weight_decay": 0.0},
        "procedure": {"use": "collaborative-forward-forward", **settings},
        "training": {"batch_size": 64, "evaluate_every": 0, "threads": 1},
        "budget": {"epochs": 0, "steps": steps},
    }
    return assemble(filled(Recipe.of(recipe)), Recorder(Memory()))


def test_it_learns_digits_with_one_optimizer_a_layer_and_leaves_the_head_alone():
    run = ready(120, theta=4.0)
    head = run.model.head.weight.clone()
    before = run.evaluate("test")["accuracy"]
    outcome = Trainer(run).train()
    assert list(run.roles) == ["layer0", "layer1"]
    assert outcome.metrics["test/accuracy"] > before + 0.3
    assert torch.equal(run.model.head.weight, head)


def test_the_answer_is_the_label_of_most_goodness():
    run = ready(2)
    batch = next(run.batches("test", 10))
    answer = run.predict(batch)
    blocks = [layer.block for layer in run.procedure._layers]
    assert blocks[0] is run.model.blocks[0]
    for k in range(10):
        label = F.one_hot(torch.full((10,), k), 10).float()
        h = run.procedure._layers[0].first(batch.x.flatten(1), label)
        total = h.square().sum(1)
        for block in blocks[1:]:
            h = block(h / h.norm(dim=1, keepdim=True))
            total = total + h.square().sum(1)
        torch.testing.assert_close(answer[:, k], total)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"use": "mlp", "hidden": []}}, "choose a model whose blocks each begin with one"),
        ({"model": {"use": "cnn"}}, "choose a model whose blocks each begin with one"),
    ],
)
def test_a_model_that_is_no_stack_is_refused(changes, words):
    with pytest.raises(RecipeError, match=words):
        ready(**changes)
