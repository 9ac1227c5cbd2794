"""A warm helper process that answers questions about recipes and saved runs: `python -m engine.training.clerk`.

One JSON document a line: {"id", "verb", ...} on standard input; {"id", "answer"} or {"id", "error"} on standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from engine import registry
from engine.errors import AthanorError
from engine.log import Log, SeriesWriter
from engine.recipe import Recipe
from engine.training import checkpoint, sources
from engine.training.assemble import assemble, filled
from engine.training.loop import Trainer
from engine.training.preview import fits, preview
from engine.training.recorder import Recorder
from engine.workspace import Workspace


def answer(question: dict[str, Any], workspace: Workspace | None) -> dict[str, Any]:
    """Carries out one question."""
    verb = question.get("verb")
    if verb == "preview":
        with sources.around(workspace=workspace):
            return preview(question["recipe"])
    if verb == "fits":
        with sources.around(workspace=workspace):
            return {"reasons": fits(question["recipe"], question["section"])}
    if verb == "probe":
        if workspace is None:
            raise AthanorError("A probe of a run needs a workspace.")
        return look(workspace, question["run"], question["probe"])
    raise AthanorError(f"The clerk does not know {verb!r}; it knows preview, fits and probe.")


def look(workspace: Workspace, id: str, use: dict[str, Any]) -> dict[str, Any]:
    """Runs a probe on a saved run's newest checkpoint and stores its figures in the log."""
    with Log(workspace.database) as log:
        row = log.run(id)
    if row is None:
        raise AthanorError(f"There is no run {id}.")
    state = checkpoint.newest(workspace.run_folder(id))
    if state is None:
        raise AthanorError(f"Run {id} has no checkpoint yet, so there is nothing to look at.")
    recipe = Recipe.parse(row["recipe"])
    recipe.set("probes", [use])
    recipe.set("training.device", "cpu")
    around = sources.around(workspace=workspace, folder=workspace.run_folder(id))
    with around, SeriesWriter(workspace.database, id) as sink:
        document = filled(recipe)
        trainer = Trainer(assemble(document, Recorder(sink)))
        trainer.load(state)
        probe = registry.build(document["probes"][0])
        scalars = trainer.look(probe)
        trainer.run.recorder.flush(wait=True)
    return {"scalars": scalars}


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
            question = json.loads(line)
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
