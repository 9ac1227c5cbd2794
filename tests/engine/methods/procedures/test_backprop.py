import torch
from torch import nn
from torch.nn.functional import cross_entropy

from engine.recipe import Recipe
from engine.training.assemble import assemble, filled
from engine.training.recorder import Memory, Recorder


def test_a_step_is_the_textbook_step():
    recipe = {
        "task": {"use": "two-moons"},
        "model": {"use": "mlp", "hidden": [8]},
        "optimizer": {"use": "sgd", "lr": 0.1, "momentum": 0.9},
        "budget": {"steps": 3},
    }
    run = assemble(filled(Recipe.of(recipe)), Recorder(Memory()))
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, run.offer.size))
    model.load_state_dict(dict(zip(model.state_dict(), run.model.state_dict().values(), strict=True)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batch in (next(run.batches("train", 16)) for _ in range(3)):
        run.batch = batch
        output = run.procedure.step(run, batch)
        answer = model(batch.x.flatten(1))
        assert torch.equal(output, answer)
        optimizer.zero_grad()
        cross_entropy(answer, batch.target).backward()
        optimizer.step()
    for ours, theirs in zip(run.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
