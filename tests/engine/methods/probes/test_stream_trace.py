"""The trace along a stream: its stretches by hand, in the stream's order, with the decoder's state going along."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.methods.probes.stream_trace import StreamTrace, windows
from engine.parts import Batch, Decoder
from engine.training.run import Run
from tests.engine.methods.short import train


def test_stretches_and_their_ends() -> None:
    ends, means = windows(torch.arange(10.0), 4)
    assert ends == [3, 6, 8, 10] and means == [1.0, 4.0, 6.5, 8.5]
    assert windows(torch.tensor([1.0, 3.0]), 9) == ([1, 2], [1.0, 3.0])


class Waking(Decoder):
    """Says class 0 at first and answers as the model does from the third batch on."""

    ordered = True

    def reset(self, run: Run, rng: torch.Generator) -> None:
        self._seen = 0

    def predict(self, run: Run, batch: Batch, rng: torch.Generator) -> Any:
        self._seen += 1
        answer = run.answer(batch)
        return answer if self._seen > 2 else torch.zeros_like(answer)


def test_the_trace_follows_the_decoder_and_leaves_no_trace() -> None:
    task = {"use": "two-moons", "samples": 400, "noise": 0.05}
    training = {"batch_size": 16, "evaluation_batch": 10}
    run, _, _ = train(task=task, training=training, budget={"steps": 60})
    plain = run.evaluate("test")
    run.decoder = Waking()
    found = StreamTrace(points=run.task.size("test") // 10).look(run)
    (series,) = found.figures["trace"]["series"]
    with run.answering() as answer:
        each = [run.task.metrics(answer(batch), batch)["accuracy"].mean().item() for batch in run.batches("test")]
    assert series["y"] == pytest.approx(each) and series["x"][:2] == [10, 20]
    zeros = [(batch.target == 0).float().mean().item() for batch in run.batches("test")]
    assert series["y"][:2] == pytest.approx(zeros[:2])
    assert found.scalars == {"accuracy-begin": series["y"][0], "accuracy-end": series["y"][-1]}
    run.decoder = None
    assert run.evaluate("test") == plain


def test_without_the_metric_a_sample_the_loss_is_shown() -> None:
    run, _, _ = train(task={"use": "tabular", "dataset": "diabetes"})
    found = StreamTrace(split="val", points=5).look(run)
    assert set(found.scalars) == {"loss-begin", "loss-end"}
    assert len(found.figures["trace"]["series"][0]["y"]) == 5
