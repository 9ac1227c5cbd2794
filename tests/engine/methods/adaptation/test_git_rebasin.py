"""Git Re-Basin: what it keeps, what it finds again, what it merges, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import RecipeError
from engine.kit.matching import permuted
from engine.methods.adaptation.git_rebasin import GitReBasin, barrier, mixed
from engine.recipe import Recipe, merge
from engine.training import checkpoint
from engine.training.assemble import filled
from engine.training.loop import Outcome, Trainer, train
from engine.training.preview import preview
from engine.training.recorder import Memory

TEACHER = "recipe:sources/small-digits.toml"
BASE: dict[str, Any] = {
    "task": {"use": "digits"},
    "model": {"use": "mlp", "hidden": [32, 32]},
    "procedure": {"use": "git-rebasin", "first": TEACHER, "second": f"{TEACHER}?seed=follow", "points": 5},
    "training": {"batch_size": 64},
    "seed": 3,
}


def carried_out(folder: Path | None = None, **patch: Any) -> tuple[Trainer, Memory, Outcome]:
    kept: list[Trainer] = []
    memory = Memory()
    outcome = train(filled(Recipe.of(merge(BASE, patch))), memory, folder, kept.append)
    return kept[0], memory, outcome


class Given:
    """A source that is at hand."""

    label = "given"

    def __init__(self, model: torch.nn.Module):
        self._model = model

    def model(self) -> torch.nn.Module:
        return self._model


def sources_of(trainer: Trainer) -> tuple[torch.nn.Module, torch.nn.Module]:
    procedure: Any = trainer.run.procedure
    return procedure.first.model(), procedure.second.model()


def test_barrier_and_mixture_in_closed_form() -> None:
    assert barrier([1.0, 1.0, 1.0]) == 0 and barrier([0.0, 3.0, 2.0]) == 2.0 and barrier([2.0, 0.0, 0.0]) == 0.0
    a = {"w": torch.tensor([0.0, 4.0]), "n": torch.tensor(7)}
    b = {"w": torch.tensor([2.0, 0.0]), "n": torch.tensor(9)}
    assert mixed(a, b, 0.25)["w"].tolist() == [0.5, 3.0] and mixed(a, b, 0.25)["n"] == 7


@pytest.mark.parametrize("match", ["weights", "activations"])
def test_a_permuted_copy_is_found_again(match: str) -> None:
    trainer, _, _ = carried_out()
    run = trainer.run
    model, copy = sources_of(trainer)
    rng = torch.Generator().manual_seed(0)
    groups = run.anatomy.tied()
    orders = [torch.randperm(group.size, generator=rng) for group in groups]
    copy.load_state_dict(permuted(model.state_dict(), groups, orders))
    part = GitReBasin(Given(model), Given(copy), match=match, points=3)  # type: ignore[arg-type]
    part.act(run)
    assert part.measured["distance"] == 0.0 and part.measured["distance_unmatched"] > 1
    assert abs(part.measured["barrier"]) < 1e-6 < part.measured["barrier_unmatched"]
    for name, tensor in run.model.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-6, atol=1e-7)


def test_it_is_a_run_without_steps_that_evaluates_draws_and_saves(tmp_path: Path) -> None:
    trainer, memory, outcome = carried_out(tmp_path)
    assert (outcome.state, outcome.steps) == ("done", 0) and "train/loss" not in memory.points
    one, other = sources_of(trainer)
    part: Any = trainer.run.procedure
    groups = trainer.run.anatomy.tied()
    orders = part.orders(trainer.run, one, other, groups)
    moved = permuted(other.state_dict(), groups, orders)
    for name, tensor in trainer.run.model.state_dict().items():
        torch.testing.assert_close(tensor, (one.state_dict()[name] + moved[name]) / 2, rtol=1e-5, atol=1e-6)
    saved = checkpoint.newest(tmp_path)
    assert saved is not None and saved["step"] == 0 and saved["phase"]["acted"]
    assert all(torch.equal(saved["model"][n], t) for n, t in trainer.run.model.state_dict().items())
    (figure,) = memory.figures
    matched, plain = (series["y"] for series in figure["data"]["series"])
    assert outcome.metrics["result/barrier"] == pytest.approx(barrier(matched))
    assert outcome.metrics["result/barrier_unmatched"] == pytest.approx(barrier(plain))
    assert outcome.metrics["result/barrier"] < outcome.metrics["result/barrier_unmatched"]
    # The ends of the way are the two networks.
    run = trainer.run
    for state, found in ((one.state_dict(), matched[0]), (other.state_dict(), matched[-1])):
        run.model.load_state_dict(state)
        assert run.evaluate("val")["loss"] == pytest.approx(found, abs=1e-5)


def test_what_it_did_is_not_done_again_on_resume(tmp_path: Path) -> None:
    _, _, outcome = carried_out(tmp_path)
    document = filled(Recipe.of(BASE))
    again = train(document, Memory(), tmp_path, lambda trainer: trainer.load(checkpoint.newest(tmp_path) or {}))
    assert again.weights == outcome.weights and again.metrics == outcome.metrics


def test_without_matching_the_networks_are_merged_as_they_are() -> None:
    trainer, _, outcome = carried_out(procedure={"match": "none", "share": 0.25})
    one, other = sources_of(trainer)
    for name, tensor in trainer.run.model.state_dict().items():
        expected = torch.lerp(one.state_dict()[name], other.state_dict()[name], 0.25)
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-7)
    assert outcome.metrics["result/barrier"] == outcome.metrics["result/barrier_unmatched"]


def test_another_structure_is_refused_and_so_is_a_budget() -> None:
    def problems(**patch: Any) -> dict[str, str]:
        return {p["path"]: p["message"] for p in preview(Recipe.of(merge(BASE, patch)).text())["problems"]}

    assert problems() == {}
    found = problems(model={"hidden": [32, 16]})
    assert "has another structure than [model]: hidden = [32, 32]. Write the same" in found["procedure"]
    found = problems(budget={"steps": 5})
    assert found == {"budget.steps": "git-rebasin trains nothing: it acts once. Leave [budget] out."}
    found = problems(procedure={"second": "recipe:nowhere.toml"})
    assert "there is no recipe file" in found["procedure.second"]
    with pytest.raises(RecipeError):
        carried_out(model={"hidden": [32, 16]})


def test_statistics_are_measured_anew_between_the_networks() -> None:
    from engine.kit.calibration import norms_of

    trainer, _, _ = carried_out()
    run = trainer.run
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8)).to(run.device)
    run.model = run._call = model
    part = GitReBasin(Given(model), Given(model), samples=200)  # type: ignore[arg-type]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    part.put(run, state)
    (norm,) = norms_of(model)
    x = run.columns("train")["x"][:200].flatten(1)
    with torch.no_grad():
        torch.testing.assert_close(norm.running_mean, model[1](x).mean(0), rtol=1e-4, atol=1e-5)
    part.put(run, state, between=False)
    assert torch.equal(norm.running_mean, state["2.running_mean"]), "at the ends they are the networks' own"
