"""Replay: a reservoir holds every sample seen with one chance, and its samples come with the batch."""

from __future__ import annotations

from typing import Any

import torch

from engine.methods.data.experience_replay import ExperienceReplay, joined
from engine.parts import Batch
from tests.engine.methods.short import ready

STREAM = {"task": {"use": "digit-stream"}, "sampler": {"use": "experiences"}, "training": {"batch_size": 16}}


def reservoir(index: list[int], size: int, draws: list[float]) -> list[int]:
    """Vitter's algorithm R, a sample at a time."""
    kept: list[int] = []
    for t, (sample, draw) in enumerate(zip(index, draws, strict=True)):
        place = int(draw * (t + 1))
        if t < size:
            kept.append(sample)
        elif place < size:
            kept[place] = sample
    return kept


def test_it_is_reservoir_sampling_batch_by_batch() -> None:
    part = ExperienceReplay(buffer=5)
    part.kept = torch.zeros(5, dtype=torch.long)
    rng, same = (torch.Generator().manual_seed(3) for _ in range(2))
    samples = torch.arange(100, 160)
    draws: list[float] = []
    for batch in samples.split(7):
        part.keep(batch, rng)
        draws += torch.rand(len(batch), generator=same).tolist()
    assert part.kept.tolist() == reservoir(samples.tolist(), 5, draws) and part.seen == 60


def test_every_sample_has_the_same_chance() -> None:
    counts = torch.zeros(40)
    rng = torch.Generator().manual_seed(0)
    rounds = 3000
    for _ in range(rounds):
        part = ExperienceReplay(buffer=10)
        part.kept = torch.zeros(10, dtype=torch.long)
        for batch in torch.arange(40).split(8):
            part.keep(batch, rng)
        counts[part.kept] += 1
    spread = (0.25 * 0.75 / rounds) ** 0.5
    assert ((counts / rounds - 0.25).abs() < 5 * spread).all()


def test_the_batch_grows_by_samples_of_before() -> None:
    run, _ = ready(
        **STREAM, techniques=[{"use": "experience-replay", "buffer": 30, "replayed": 8}], model={"use": "cnn"}
    )
    (part,) = run.techniques
    first, second = run.stream.next(), run.stream.next()
    assert part.on_batch(run, first) is first, "nothing was seen before it"
    held = set(part.kept[:16].tolist())
    grown = part.on_batch(run, second)
    assert len(grown) == 24 and torch.equal(grown.index[:16], second.index)
    assert set(grown.index[16:].tolist()) <= held
    columns = run.columns("train")
    torch.testing.assert_close(grown.x, columns["x"][grown.index])
    assert torch.equal(grown.target, columns["target"][grown.index])
    assert torch.equal(grown.meta["experience"], columns["meta.experience"][grown.index])


def test_joining_keeps_all_that_a_batch_has() -> None:
    def batch(start: int) -> Batch:
        index = torch.arange(start, start + 2)
        extra: dict[str, Any] = {"weight": index.float(), "mask": index.view(2, 1) > 0, "meta": {"group": index}}
        return Batch({"x": index.view(2, 1)}, index, index, **extra)

    both = joined(batch(0), batch(5))
    assert both.target.tolist() == both.index.tolist() == both.meta["group"].tolist() == [0, 1, 5, 6]
    assert both.x.shape == both.mask.shape == (4, 1) and both.weight.tolist() == [0, 1, 5, 6]  # type: ignore[union-attr]
