"""TextGrad in a run: prompts and answers improved by criticism, taken back where they got worse, replayed offline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.endpoints import Permissions
from engine.errors import ContactError, RecipeError
from engine.kit.sentence_rules import RULES, named
from engine.kit.text_graph import BACKWARD, MERGE, NEW, REWRITE, inside, section
from engine.kit.texts import Texts
from engine.log import Log
from engine.methods.language.rule_engine import RuleEngine
from engine.methods.procedures.textgrad import PROMPT, Textgrad
from engine.methods.tasks.sentence_rules import SentenceRules
from engine.parts import LanguageModel, Message, Reply
from engine.recipe import Recipe
from engine.training.loop import Outcome, Trainer
from engine.training.preview import preview
from engine.training.worker import work
from engine.workspace import Workspace
from tests.endpoint import by_rules, serving
from tests.engine.methods.short import ready, train

BASE: dict[str, Any] = {
    "task": {"use": "sentence-rules", "samples": 24},
    "procedure": {"use": "textgrad", "engine": {"use": "rule-engine"}},
    "training": {"batch_size": 3},
    "budget": {"steps": 6},
}


def recipe(**settings: Any) -> dict[str, Any]:
    return {**BASE, "procedure": {**BASE["procedure"], **settings}}


class Watched(LanguageModel):
    """Another model's answers, with what was asked for them."""

    def __init__(self, model: LanguageModel | None = None):
        self.model = model or RuleEngine()
        self.asked: list[Sequence[Message]] = []

    def reply(self, conversation: Sequence[Message], occasion: Sequence[int] = ()) -> Reply:
        self.asked.append(conversation)
        return self.model.reply(conversation, occasion)

    def count(self, system: str) -> int:
        return sum(conversation[0].text == system for conversation in self.asked)


class Spoiling(RuleEngine):
    """An editor whose every third prompt is worse than the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.edits = 0

    def reply(self, conversation: Sequence[Message], occasion: Sequence[int] = ()) -> Reply:
        if conversation[0].text == REWRITE:
            self.edits += 1
            if self.edits % 3 == 0:
                return Reply(section(NEW, "Answer with anything."))
        return super().reply(conversation, occasion)


def run_of(engine: LanguageModel | None = None, critic: LanguageModel | None = None, **settings: Any) -> Any:
    run, _ = ready(**recipe(**settings))
    if engine is not None:
        run.procedure.engine = engine
    run.procedure.backward_engine = critic
    return run, Trainer(run)


def outcome(**sections: Any) -> Outcome:
    return train(**sections)[2]


def test_a_prompt_learns_all_rules_from_criticism_and_none_without() -> None:
    with_it, without = outcome(**recipe()), outcome(**recipe(feedback=False))
    assert with_it.metrics["test/solved"] == 1.0 and without.metrics["test/solved"] < 0.2
    assert len(named(with_it.found["procedure.start"])) == len(RULES)
    assert without.found["procedure.start"] == SentenceRules.start


def test_every_answer_keeps_all_five_rules_after_five_steps_and_not_without_feedback() -> None:
    answers = {"optimize": "answers", "iterations": 5}
    metrics = [outcome(**recipe(**answers, feedback=feedback)).metrics for feedback in (True, False)]
    assert metrics[0]["test/solved"] == metrics[0]["val/solved"] == 1.0
    assert metrics[1]["test/solved"] == 0.0
    one = outcome(**recipe(optimize="answers", iterations=1)).metrics["test/score"]
    two = outcome(**recipe(optimize="answers", iterations=2)).metrics["test/score"]
    assert metrics[1]["test/score"] < one < two < 1.0, "one complaint a criticism, one rule a step"


def test_what_is_asked_in_a_step() -> None:
    engine, critic = Watched(), Watched()
    run, trainer = run_of(engine, critic, revert_on_val_drop=False)
    trainer._step()
    assert len(engine.asked) == 3 + 1, "three answers and a rewriting"
    assert critic.count(BACKWARD) == 3 + 3 and critic.count(run.task.instruction) == 3 and len(critic.asked) == 9
    prompt = engine.asked[-1][1].text
    assert len(inside(prompt, "CRITICISM")) == 3 and inside(prompt, "VALUE") == [SentenceRules.start]
    assert run.model[PROMPT] != SentenceRules.start
    critic.asked.clear()
    _, trainer = run_of(Watched(), critic, revert_on_val_drop=False, reduction="mean")
    trainer._step()
    assert critic.count(BACKWARD) == 6 and critic.count(MERGE) == 1


def scores(revert: bool, steps: int = 12) -> tuple[list[float], Any]:
    run, trainer = run_of(Spoiling(), RuleEngine(), revert_on_val_drop=revert)
    found = [run.evaluate("val")["score"]]
    for _ in range(steps):
        trainer._step()
        found.append(run.evaluate("val")["score"])
    return found, run


def test_with_revert_the_validation_score_never_falls_and_without_it_does() -> None:
    with_it, run = scores(True)
    assert with_it == sorted(with_it) and with_it[-1] > with_it[0]
    assert run.procedure.reverted >= 2 and any("taken back" in row[-1] for row in run.procedure.told)
    without, run = scores(False)
    falls = sum(after < before for before, after in pairwise(without))
    assert falls >= 1 and run.procedure.reverted == 0


def test_the_engine_of_rules_spoils_on_its_occasions() -> None:
    spoiled = {"use": "rule-engine", "spoils_every": 3}
    found = [outcome(**{**recipe(engine=spoiled, revert_on_val_drop=r), "budget": {"steps": 9}}) for r in (True, False)]
    assert found[0].metrics["result/reverted"] > 0 and found[1].metrics["result/reverted"] == 0
    assert found[0].metrics["test/score"] > found[1].metrics["test/score"]


def test_replies_without_tags_change_nothing_and_are_told() -> None:
    run, trainer = run_of(RuleEngine(plain=True), RuleEngine())
    for _ in range(2):
        trainer._step()
    assert run.model[PROMPT] == SentenceRules.start and run.procedure.untagged == 2
    told = [event for event in run.recorder.sink.events if event["level"] == "error"]
    assert len(told) == 2 and "tags" in told[0]["text"]
    assert run.procedure.result(run) == {"reverted": 0.0, "replies_without_tags": 2.0}


def test_windows_reach_the_rewriting_call_and_survive_a_resume(tmp_path: Path) -> None:
    engine = Watched()
    run, trainer = run_of(engine, RuleEngine(), momentum_window=1, gradient_memory=2, constraints=["Be brief."])
    for _ in range(4):
        trainer._step()
    prompts = [c[1].text for c in engine.asked if c[0].text == REWRITE]
    assert inside(prompts[3], "EARLIER_VALUES") == inside(prompts[2], "VALUE")
    assert len(run.procedure.criticisms[PROMPT]) == 2 and inside(prompts[0], "EARLIER_VALUES") == []
    assert all(inside(prompt, "CONSTRAINTS") == ["Be brief."] for prompt in prompts)
    state = trainer.state()
    other, again = run_of(momentum_window=1, gradient_memory=2, constraints=["Be brief."])
    state["procedure"].pop("engine", None)
    state["procedure"].pop("backward_engine", None)
    again.load(state)
    assert isinstance(other.model, Texts) and other.model.texts == run.model.texts
    assert other.procedure.criticisms == run.procedure.criticisms and other.procedure.score == run.procedure.score


def test_figures_show_the_text_before_and_after_and_what_was_said() -> None:
    run, trainer = run_of()
    trainer._step()
    figures = run.procedure.figures(run)
    before, after = (column["text"] for column in figures["text"]["columns"])
    assert figures["text"]["difference"] and before == SentenceRules.start and after.startswith(before)
    (row,) = figures["criticism"]["rows"]
    assert row[:2] == [0, "the prompt"] and "rewritten" in row[3] and named(row[2])
    run, trainer = run_of(optimize="answers")
    for _ in range(2):
        trainer._step()
    columns = run.procedure.figures(run)["text"]["columns"]
    assert len(columns[1]["text"].splitlines()) == 6 and columns[0]["text"] != columns[1]["text"]


def test_the_loss_is_what_the_score_lacks() -> None:
    run, trainer = run_of(revert_on_val_drop=False)
    trainer._step()
    first = next(iter(run.batches("train")))
    score = run.task.metrics(first.x, first)["score"]
    trainer._flush()
    value = run.recorder.sink.points["train/loss"][1][0]
    assert 0 < value < 1 and min(1 - score) <= value <= max(1 - score)


def test_who_cannot_take_text_is_refused() -> None:
    with pytest.raises(RecipeError, match="no loss to descend"):
        ready(task={"use": "sentence-rules"}, model={"use": "mlp"}, procedure={"use": "backprop"})
    with pytest.raises(RecipeError, match="takes text"):
        ready(**{**BASE, "task": {"use": "digits"}})


def test_the_preview_says_how_often_a_model_is_asked() -> None:
    shown = preview(Recipe.of(recipe()).text())
    assert shown["problems"] == [] and shown["calls"] == 6 * (3 * 3 + 1 + 6) + 12
    asked = preview(Recipe.of(recipe(optimize="answers")).text())
    assert asked["calls"] == 6 * 9 + 12 * (1 + 9)


def remote(url: str, **settings: Any) -> dict[str, Any]:
    return recipe(engine={"use": "chat-endpoint", "model": "scripted", "url": url, **settings})


def worked(workspace: Workspace, document: dict[str, Any]) -> dict[str, Any]:
    with Log(workspace.database) as log:
        run = log.create_run(Recipe.of(document).text(), state="starting")
        work(workspace, run)
        return log.run(run) or {}


def test_a_saved_run_replays_without_its_server_bit_for_bit(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with serving(by_rules()) as server:
        refused = worked(workspace, remote(server.url))
        assert refused["state"] == "failed" and f"main.py allow {server.origin}`" in refused["message"]
        assert server.requests == []
        Permissions().allow(server.origin)
        first = worked(workspace, remote(server.url, temperature=0.5))
        sent = len(server.requests)
        again = worked(workspace, remote(server.url, temperature=0.5))
        assert len(server.requests) == sent > 20, "the second run asks nothing that was kept"
        assert first["state"] == "done", first["message"]
    Permissions().forbid(server.origin)
    offline = worked(workspace, remote(server.url, temperature=0.5, replay="only"))
    for other in (again, offline):
        assert other["weights"] == first["weights"]
        assert other["metrics"] == first["metrics"] and other["metrics"]["count/tokens"] > 0
    unknown = worked(workspace, {**remote(server.url, temperature=0.5, replay="only"), "seed": 5})
    assert unknown["state"] == "failed" and "not kept" in unknown["message"]


def test_a_permission_for_one_run_holds_for_what_it_plans(tmp_path: Path) -> None:
    with serving(by_rules()) as server:
        Permissions().allow(server.origin, run="the-sweep")
        workspace = Workspace(tmp_path)
        with Log(workspace.database) as log:
            text = Recipe.of(remote(server.url)).text()
            planned, stranger = (log.create_run(text, state="starting", sweep=s) for s in ("the-sweep", None))
            for run in (planned, stranger):
                work(workspace, run)
            states = [(log.run(run) or {})["state"] for run in (planned, stranger)]
    assert states == ["done", "failed"]


def test_a_slow_server_is_asked_several_things_at_once() -> None:
    with serving(by_rules()) as server:
        server.delay = 0.1
        Permissions().allow(server.origin)
        run, _ = ready(**remote(server.url, at_once=6))
        began = time.perf_counter()
        run.evaluate("val")
        assert len(server.requests) == 6 and time.perf_counter() - began < 0.35


def test_it_works_without_the_workbench() -> None:
    from engine.kit.text_graph import TextualGradientDescent, Variable, ask

    task = SentenceRules()
    engine = RuleEngine()
    answer = Variable("the old mill needs 2 lamps", task.role)
    judge = Variable(task.instruction, "the judge", requires_grad=False)
    optimizer = TextualGradientDescent(engine, [answer])
    for _ in range(5):
        (loss,), _ = ask(engine, [(judge, answer)], "the judgement")
        loss.backward(engine)
        optimizer.step()
        optimizer.zero_grad()
    assert answer.value == "The old mill needs two lamps."
    assert torch.is_grad_enabled() and Textgrad(engine).critic is engine


def test_no_server_is_contacted_by_a_preview() -> None:
    with serving(by_rules()) as server:
        Permissions().allow(server.origin)
        assert preview(Recipe.of(remote(server.url)).text())["problems"] == []
        assert server.requests == []
        Permissions().forbid(server.origin)
        with pytest.raises(ContactError, match="not allowed"):
            train(**remote(server.url))
