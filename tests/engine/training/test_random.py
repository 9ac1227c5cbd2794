"""Named streams: independent of each other and of the order in which they are asked for."""

from __future__ import annotations

import torch

from engine.training.random import Streams, derive_seed, forked, global_state, replayed

CPU = torch.device("cpu")


def draw(streams: Streams, name: str) -> list[float]:
    return torch.rand(4, generator=streams.get(name)).tolist()


def test_another_stream_changes_nothing() -> None:
    one, two = Streams(0, CPU), Streams(0, CPU)
    draw(two, "b")
    assert draw(one, "a") == draw(two, "a")
    assert draw(one, "a") == draw(two, "a")
    assert draw(one, "a") != draw(one, "b")
    assert draw(Streams(1, CPU), "a") != draw(Streams(0, CPU), "a")


def test_seeds_are_the_same_in_every_process() -> None:
    assert derive_seed(0, "data order") == 2341963780614413411


def test_state_round_trips() -> None:
    streams = Streams(0, CPU)
    draw(streams, "a")
    state = streams.state()
    expected = draw(streams, "a")
    fresh = Streams(0, CPU)
    fresh.load(state)
    assert draw(fresh, "a") == expected


def test_a_fork_leaves_no_trace_and_a_replay_draws_the_same() -> None:
    torch.manual_seed(5)
    state = global_state(CPU)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with forked(CPU, 99):
        torch.rand(7)
    with replayed(state, CPU):
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.rand(3), expected)
