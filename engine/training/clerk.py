"""A warm helper process that answers questions about recipes and saved runs: `python -m engine.training.clerk`.

One JSON document a line: {"id", "verb", ...} on standard input; {"id", "answer"} or {"id", "error"} on standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from engine import endpoints, registry
from engine.errors import AthanorError, Problem, RecipeError
from engine.log import Log, SeriesWriter
from engine.recipe import SECTIONS, Recipe
from engine.training import checkpoint, sources
from engine.training.assemble import assemble, filled
from engine.training.loop import Trainer, keeping_replies
from engine.training.preview import fits, preview
from engine.training.recorder import Recorder
from engine.training.worker import runs_of
from engine.workspace import Workspace

WANTED: dict[str, dict[str, type]] = {
    "preview": {"recipe": str},
    "fits": {"recipe": str, "section": str},
    "probe": {"run": str, "probe": dict},
    "transform": {"run": str, "transform": dict},
    "evaluate": {"run": str},
}
"""What a question needs beside its verb, and what it may have."""
MAY: dict[str, type] = {"split": str, "changes": dict}
WORDS: dict[type, str] = {str: "text", dict: "a table"}


def require(question: Mapping[str, Any]) -> None:
    """Raises AthanorError where a question lacks something, or has something else in its place."""
    wanted = WANTED.get(str(question.get("verb")), {})
    for key, kind in wanted.items():
        if not isinstance(question.get(key), kind):
            raise AthanorError(f"The question {question['verb']!r} needs {key!r}: {WORDS[kind]}.")
    for key, kind in MAY.items() if wanted else ():
        if not isinstance(question.get(key) or kind(), kind):
            raise AthanorError(f"What the question {question['verb']!r} has for {key!r} is not {WORDS[kind]}.")


def read(line: str) -> dict[str, Any]:
    """One question from its line."""
    try:
        question = json.loads(line)
    except (ValueError, RecursionError):
        question = None
    if not isinstance(question, dict):
        raise AthanorError("A question is a table in JSON, on one line.")
    return question


def answer(question: dict[str, Any], workspace: Workspace | None) -> dict[str, Any]:
    """Carries out one question."""
    require(question)
    verb = question.get("verb")
    if verb == "preview":
        with sources.around(workspace=workspace):
            return preview(question["recipe"])
    if verb == "fits":
        with sources.around(workspace=workspace):
            return {"reasons": fits(question["recipe"], question["section"])}
    carry_out = OF_A_RUN.get(str(verb))
    if carry_out is None:
        known = ["preview", "fits", *OF_A_RUN]
        raise AthanorError(f"The clerk does not know {verb!r}; it knows {', '.join(known[:-1])} and {known[-1]}.")
    if workspace is None:
        raise AthanorError(f"To {verb} a run needs a workspace.")
    return carry_out(workspace, question)


@contextmanager
def saved(workspace: Workspace, id: str, change: Callable[[Recipe], None]) -> Iterator[Trainer]:
    """A saved run as its newest checkpoint left it, on the CPU, its recipe changed; what it says goes to its log."""
    with Log(workspace.database) as log:
        row = log.run(id)
    if row is None:
        raise AthanorError(f"There is no run {id}.")
    state = checkpoint.newest(workspace.run_folder(id))
    if state is None:
        raise AthanorError(f"Run {id} has no checkpoint yet, so there is nothing to look at.")
    recipe = Recipe.parse(row["recipe"])
    change(recipe)
    recipe.set("training.device", "cpu")
    around = sources.around(workspace=workspace, folder=workspace.run_folder(id))
    with ExitStack() as stack:
        stack.enter_context(around)
        stack.enter_context(endpoints.around(runs=runs_of(row)))
        stack.enter_context(keeping_replies(workspace, None))
        sink = stack.enter_context(SeriesWriter(workspace.database, id))
        document = filled(recipe)
        trainer = Trainer(assemble(document, Recorder(sink)), workspace.run_folder(id))
        trainer.load(state)
        yield trainer


def act(
    kind: str, does: Callable[[Trainer, Any], dict[str, float]], workspace: Workspace, question: Mapping[str, Any]
) -> dict[str, Any]:
    """Has a part of a kind act on a saved run's newest checkpoint; what it says is kept in the log."""
    section = next(section.name for section in SECTIONS if section.kind == kind)
    with saved(workspace, question["run"], lambda recipe: recipe.set(section, [question[kind]])) as trainer:
        use = trainer.run.recipe[section][0]
        scalars = does(trainer, trainer.run.probes[0] if kind == "probe" else registry.build(use))
        trainer.run.recorder.flush(wait=True)
    return {"scalars": scalars}


def evaluate(workspace: Workspace, question: Mapping[str, Any]) -> dict[str, Any]:
    """Measures a split with a saved run's weights, by another decoder, normalization or variant of the data."""
    split, changes = question.get("split") or "test", question.get("changes") or {}
    with saved(workspace, question["run"], lambda recipe: change_evaluation(recipe, changes)) as trainer:
        if not trainer.run.columns_of(split).size:
            raise AthanorError(f"The task has no samples in a split {split!r}.")
        metrics = trainer.measure(split)
        document = trainer.run.recipe
        says = ", ".join(f"{path} = {value}" for path, value in changes.items()) or "as it was trained"
        results = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        trainer.run.note(f"Evaluated again ({says}): {results}.", kind="evaluation")
    return {"split": split, "step": trainer.run.step, "metrics": metrics, "decoder": document["decoder"]}


def change_evaluation(recipe: Recipe, changes: Mapping[str, Any]) -> None:
    """Writes settings that an evaluation may have of its own: what a checkpoint holds must stay as it is."""
    for path, value in changes.items():
        section = path.split(".")[0]
        if section not in EXCHANGED:
            sentence = f"only {', '.join(EXCHANGED)} can be changed for an evaluation of a saved run."
            raise RecipeError([Problem(path, value, sentence)])
        if path == "decoder" and value == "none":
            recipe.remove("decoder")
        elif path == f"{section}.use" and value in registry.classes():
            recipe.choose(section, value, registry.catalog())
        else:
            recipe.set(path, value)


EXCHANGED = ("decoder", "training", "task")
OF_A_RUN: dict[str, Callable[[Workspace, Mapping[str, Any]], dict[str, Any]]] = {
    "probe": partial(act, "probe", Trainer.look),
    "transform": partial(act, "transform", Trainer.transform),
    "evaluate": evaluate,
}


def main(arguments: list[str] | None = None) -> int:
    ask = argparse.ArgumentParser(prog="engine.training.clerk", description="Answers questions, one JSON a line.")
    ask.add_argument("--workspace")
    given = ask.parse_args(arguments)
    workspace = Workspace(given.workspace) if given.workspace else None
    registry.catalog()
    replies, sys.stdout = sys.stdout, sys.stderr  # what a part prints must not pass for an answer
    for line in sys.stdin:
        question: dict[str, Any] = {}
        try:
            question = read(line)
            reply: dict[str, Any] = {"id": question.get("id"), "answer": answer(question, workspace)}
        except AthanorError as error:
            reply = {"id": question.get("id"), "error": str(error)}
        except Exception as error:  # a part's own mistake must not take the clerk down
            reply = {"id": question.get("id"), "error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply, default=str) + "\n")
        replies.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
