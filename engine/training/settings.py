"""The recipe's own sections: how to train, and how long. Their signatures are their forms, like a part's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from engine.fields import Count, NonNegative, Positive, SourceField, Whole


@dataclass(frozen=True)
class Training:
    """How a run trains, whatever it trains.

    Args:
        batch_size: Samples in one optimizer step.
        accumulate: Micro-batches that a step is split into, to save memory.
        workers: Workers that share each step's batch; they take turns in one process, each with a gradient of its own.
        precision: Arithmetic of the forward pass; bf16 and fp16 keep the weights in fp32.
        device: Where to train; auto takes the first free GPU, or the CPU.
        threads: CPU threads; 0 takes all cores but one.
        compile: Compile the model with torch.compile; falls back with a message where a part forbids it.
        evaluate_every: Epochs between evaluations on the validation split; 0 evaluates at the end alone.
        evaluation_batch: Samples in one batch of an evaluation; it matters where a batch's own statistics take part.
        normalization: What normalizes an evaluation: the running statistics, each batch's own, or statistics measured
            anew on training batches before each evaluation and put back after it.
        calibration_batches: Training batches from which recalibrated statistics are measured.
        checkpoint_every: Seconds between checkpoints.
        keep: Periodic checkpoints to keep, beside the best and the last.
        early_stop: Series that must go on improving, such as val/loss; empty trains through.
        patience: Evaluations without improvement before an early stop.
        outer: Share of the training samples, of each class alike, that is kept apart for tuning hyperparameters.
        start_from: What the weights start from, such as run:ID@best or recipe:FILE; without a [model] of its own the
            recipe trains the source's.
    """

    batch_size: Count = 32
    accumulate: Count = 1
    workers: Count = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$")] = "auto"
    threads: Annotated[int, Field(ge=0, le=256)] = 0
    compile: bool = False
    evaluate_every: NonNegative = 1.0
    evaluation_batch: Count = 1024
    normalization: Literal["running", "batch", "recalibrated"] = "running"
    calibration_batches: Count = 10
    checkpoint_every: Positive = 10.0
    keep: Count = 2
    early_stop: str = ""
    patience: Count = 5
    outer: Annotated[float, Field(ge=0, lt=1)] = 0.0
    start_from: SourceField | None = None


@dataclass(frozen=True)
class Budget:
    """How long a run trains: the first limit reached ends it. Where none is set, it trains for 10 epochs.

    Args:
        epochs: Passes over the training split; 0 sets no limit.
        steps: Optimizer steps; 0 sets no limit.
        seconds: Seconds of training; 0 sets no limit. A run that ends by the clock is not reproducible bit for bit.
        amount: How much of what `count` names may be used up; 0 sets no limit.
        count: What the amount counts: gradient-passes, samples, oracle-calls, environment-steps, evaluations, tokens,
            bytes-sent, or whatever else the parts of the run count.
        share: The part of the budget after which the run ends, able to go on; schedules span the whole budget.
    """

    epochs: NonNegative = 0.0
    steps: Whole = 0
    seconds: NonNegative = 0.0
    amount: NonNegative = 0.0
    count: str = "gradient-passes"
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
