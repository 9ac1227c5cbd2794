"""The likeliest answers that a few beginnings lead to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from engine.fields import Count, SourcesField
from engine.kit.decoding import Alphabet, Average, beam_search, together, writes
from engine.kit.supervised import mean_answer
from engine.parts import Batch, Decoder, Source, Task, decoder

if TYPE_CHECKING:
    import torch

    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run


@decoder(
    name="Beam search",
    paper="Sequence to Sequence Learning with Neural Networks",
    arxiv="1409.3215",
    example={
        "task": {"use": "string-rewriting", "longest": 5, "alphabet": 4, "samples": 120, "held_out": 100},
        "model": {"use": "seq2seq-lstm", "layers": 1, "hidden": 8, "embed": 4},
        "decoder": {"width": 3},
    },
)
class BeamSearch(Decoder):
    """Writes several beginnings of an answer side by side and keeps the likeliest ones, token by token. Other models
    that were trained on the same task may join in: then they choose each token together.

        beam <- the B likeliest of {y_<t y: y_<t in the beam, y any token},  by log p(y_1 .. y_t | x)
        one that ends leaves the beam, which then holds one less;  the answer is the likeliest that has ended

    Helps: models that are not sure of each token; two beginnings give most of what twelve do.
    Hurts: a wide beam prefers short answers, since each token makes an answer less likely; nothing corrects for it.
    Cost: as many steps a token as the beam is wide, times the models.
    Choices: no correction for the length. The search ends early where no beginning is likelier than an answer that has
        ended, which changes nothing. Where nothing has ended within the longest answer, the likeliest beginning is the
        answer. With a width of one it is greedy. Calls count the steps of all beginnings and models.

    Args:
        width: Beginnings that are kept.
        ensemble: Models trained elsewhere on this task, beside the one that is trained here.
        average: Whether the models' probabilities are averaged, or their logarithms.
    """

    outputs = ("sequence",)

    def __init__(
        self,
        width: Count = 12,
        ensemble: SourcesField = [],  # noqa: B006 - the default is shown in the form; it is never changed
        average: Average = "probabilities",
    ):
        self.width, self.average = width, average
        self.ensemble: list[Source] = ensemble
        self._others: list[Any] = []

    @property
    def cost(self) -> None:
        return None

    def setup(self, run: Run) -> None:
        self._others = [source.model() for source in self.ensemble]

    def predict(self, run: Run, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        logits, alphabet = run.answer(batch), Alphabet.of(run.offer)
        models: list[Any] = [run.model, *self._others]
        write = together(models, self.average)
        sources = list(batch.inputs.values())[:-1]

        def advance(state: Any, token: Tensor) -> tuple[Tensor, Any]:
            run.calls += len(token) * len(models)
            return write(state, token)

        with run.autocast():
            state = [each.begin(*sources) for each in models]
            written = beam_search(advance, state, len(batch), self.width, alphabet, run.device)
            if self._others:
                logits = mean_answer([logits, *(batch.call(other) for other in self._others)], run.offer.output)
        return {"logits": logits, "tokens": written.tokens, "score": written.score}

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if not writes(anatomy.module):
            return "It writes token by token, which this model cannot."
        for source in settings["ensemble"]:
            if source.recipe["task"] != recipe["task"]:
                return f"{source.label} was trained on another task, whose tokens may mean something else."
        return None
