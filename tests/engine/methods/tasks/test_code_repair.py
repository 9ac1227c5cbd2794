"""Functions with one mistake: every mistake fails a test, every right version passes all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from engine.kit.sandbox import try_out
from engine.kit.text_graph import NEW, REWRITE, inside, section
from engine.kit.texts import pack, unpack
from engine.methods.tasks.code_repair import EXERCISES, CodeRepair, unfenced
from engine.parts import Batch, LanguageModel, Message, Reply
from engine.training.loop import Trainer
from tests.engine.methods.short import ready


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.right.split("(")[0][4:])
def test_the_mistake_fails_and_the_right_version_passes(exercise: Any) -> None:
    assert exercise.right.count(exercise.mistake[0]) == 1
    right, wrong = (try_out(source, exercise.tests) for source in (exercise.right, exercise.question))
    assert not any(right), right
    assert any(wrong)


def loaded() -> tuple[CodeRepair, Batch]:
    task = CodeRepair()
    task.load()
    columns = task.columns("train")
    return task, Batch({"x": columns["x"]}, None, torch.arange(4), meta={"exercise": columns["meta.exercise"]})


def test_answers_are_judged_by_their_own_tests() -> None:
    task, batch = loaded()
    rights = [EXERCISES[i].right for i in batch.meta["exercise"].tolist()]
    fenced = [f"Here it is:\n```python\n{rights[0]}```\nDone.", *rights[1:]]
    found = task.metrics(pack(fenced), batch)
    assert found["score"].tolist() == found["solved"].tolist() == [1.0] * 4
    asked = task.metrics(batch.x, batch)
    assert (asked["score"] < 1).all() and asked["solved"].tolist() == [0.0] * 4
    assert task.metrics(pack(["import os"] * 4), batch)["score"].tolist() == [0.0] * 4
    assert unfenced("```\nx = 1\n```") == "x = 1\n" and unfenced("x = 1") == "x = 1"


def test_the_critic_is_told_which_tests_fail() -> None:
    task, batch = loaded()
    said = task.facts(unpack(batch.x), unpack(batch.x), batch)
    assert all(text.startswith("Tests that fail:\n") for text in said)
    rights = [EXERCISES[i].right for i in batch.meta["exercise"].tolist()]
    assert task.facts(unpack(batch.x), rights, batch) == ["All tests pass."] * 4


def test_every_exercise_is_in_one_split() -> None:
    task = CodeRepair(split_seed=3)
    task.load()
    numbers = [i for split in task.splits.values() for i in split["meta.exercise"].tolist()]
    assert sorted(numbers) == list(range(len(EXERCISES))) and task.size("val") == task.size("test") == 4


class Mending(LanguageModel):
    """Knows every right version, and uses it once its criticism says that a test fails."""

    def reply(self, conversation: Sequence[Message], occasion: Sequence[int] = ()) -> Reply:
        system, asked = conversation[0].text, conversation[-1].text
        if system == REWRITE:
            value, told = inside(asked, "VALUE")[0], "\n".join(inside(asked, "CRITICISM"))
            names = [e for e in EXERCISES if f"def {e.right.split('(')[0][4:]}(" in value]
            return Reply(section(NEW, names[0].right if "fail" in told else value))
        if "VARIABLE" in asked:
            return Reply("It fails." if "Tests that fail" in asked else "Nothing is wrong.")
        return Reply(asked if system != CodeRepair.instruction else "A judgement.")


def test_answers_are_mended_by_criticism_that_knows_the_tests() -> None:
    answers = {"use": "textgrad", "engine": {"use": "rule-engine"}, "optimize": "answers", "iterations": 1}
    scores = []
    for feedback in (True, False):
        run, _ = ready(task={"use": "code-repair"}, procedure={**answers, "feedback": feedback})
        run.procedure.engine = Mending()
        Trainer(run)
        scores.append(run.evaluate("test")["solved"])
    assert scores == [1.0, 0.0]
