import torch
from torch.nn.functional import cross_entropy

from engine.methods.losses.elr import ELR, penalty, remember
from engine.parts import Offer, Task
from engine.recipe import Recipe
from engine.training.assemble import assemble, filled
from engine.training.loop import Trainer
from engine.training.recorder import Memory, Recorder


def trained(techniques, steps=6, **changes):
    recipe = {
        "task": {"use": "digits", "train_limit": 96},
        "model": {"use": "mlp", "hidden": [16]},
        "optimizer": {"use": "sgd", "lr": 0.1},
        "training": {"batch_size": 32, "threads": 1},
        "budget": {"steps": steps},
        "techniques": techniques,
        **changes,
    }
    run = assemble(filled(Recipe.of(recipe)), Recorder(Memory()))
    return run, Trainer(run).train()


def test_without_weight_it_is_cross_entropy_bit_for_bit():
    plain = trained([])[1].weights
    assert trained([{"use": "elr", "lam": 0.0}])[1].weights == plain
    assert trained([{"use": "elr"}])[1].weights != plain


def test_the_rows_sum_to_what_their_visits_left():
    run, _ = trained([{"use": "elr", "beta": 0.7}], steps=15)  # five epochs of three batches
    table = run.techniques[0].table
    assert table.shape == (96, 10)
    torch.testing.assert_close(table.sum(1), torch.full((96,), 1 - 0.7**5), rtol=1e-5, atol=0)


def test_what_never_moves_stays_zero_and_costs_nothing():
    run, outcome = trained([{"use": "elr", "beta": 1.0}])
    assert not run.techniques[0].table.any()
    assert outcome.weights == trained([])[1].weights


def test_evaluation_leaves_the_table_alone():
    run, _ = trained([{"use": "elr"}], steps=3)
    before = run.techniques[0].table.clone()
    run.evaluate("train")
    run.evaluate("val")
    assert torch.equal(run.techniques[0].table, before)


def test_the_gradient_is_the_papers():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 5, dtype=torch.float64, generator=rng, requires_grad=True)
    target = torch.rand(7, 5, dtype=torch.float64, generator=rng)
    target = 0.9 * target / target.sum(1, keepdim=True)
    labels, lam = torch.arange(7) % 5, 3.0
    p = logits.softmax(1)
    (cross_entropy(logits, labels) + lam * penalty(p, target).mean()).backward()
    p, one_hot = p.detach(), torch.nn.functional.one_hot(labels, 5)
    pull = torch.stack([(p * (target - target[:, k : k + 1])).sum(1) for k in range(5)], 1)
    expected = p - one_hot + lam * p / (1 - (p * target).sum(1, keepdim=True)) * pull
    torch.testing.assert_close(logits.grad, expected / 7, rtol=1e-6, atol=1e-12)


def test_a_visit_moves_only_the_rows_that_were_seen():
    table = torch.full((4, 2), 0.5, dtype=torch.float64)
    p = torch.tensor([[0.9, 0.3], [0.2, 0.2]], dtype=torch.float64)
    rows = remember(table, torch.tensor([2, 0]), p, 0.75)
    expected = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.5625, 0.4375], [0.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(table, expected)
    torch.testing.assert_close(rows, expected[[2, 0]])


def test_a_task_without_classes_is_refused():
    class Words(Task):
        offer = Offer("tokens", (8,), "next-token", 20, vocabulary=20)

    assert ELR.requires({}, Words(), None, {}).startswith("It needs a task that offers classes")
