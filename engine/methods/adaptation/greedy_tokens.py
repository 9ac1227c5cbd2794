"""The likeliest token, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from engine.kit.decoding import Alphabet, greedy, together, writes
from engine.parts import Batch, Decoder, Task, decoder

if TYPE_CHECKING:
    import torch

    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run


@decoder(
    name="Greedy tokens",
    example={
        "task": {"use": "string-rewriting", "longest": 5, "alphabet": 4, "samples": 120, "held_out": 100},
        "model": {"use": "seq2seq-lstm", "layers": 1, "hidden": 8, "embed": 4},
    },
)
class GreedyTokens(Decoder):
    """Writes an answer token by token, always the likeliest, and never looks back.

        y_t = argmax p(y | y_<t, x), until the end

    Helps: speed; a model that is sure of itself has the same answer however it is sought.
    Hurts: an unlikely beginning of a likely answer is missed.
    Cost: one step of the model for each token.
    Choices: calls count the steps of all answers, and one for the likelihood of the right answer beside them.
    """

    outputs = ("sequence",)

    @property
    def cost(self) -> None:
        return None

    def predict(self, run: Run, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        logits, alphabet = run.answer(batch), Alphabet.of(run.offer)
        sources = list(batch.inputs.values())[:-1]

        def advance(state: Any, token: Tensor) -> tuple[Tensor, Any]:
            run.calls += len(token)
            return together([run.model])(state, token)  # type: ignore[list-item]

        with run.autocast():
            state = [run.model.begin(*sources)]  # type: ignore[operator]
            written = greedy(advance, state, len(batch), alphabet, run.device)
        return {"logits": logits, "tokens": written.tokens, "score": written.score}

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        return None if writes(anatomy.module) else "It writes token by token, which this model cannot."
