"""Greedy and beam search, against every answer there is, and a beam search written with lists."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from engine.kit.decoding import Alphabet, beam_search, greedy, rows_of, together, writes

CPU = torch.device("cpu")
ALPHABET = Alphabet(padding=0, begin=1, end=2, longest=4)


class Table:
    """A model that remembers all it has written: log-probabilities drawn for each source and beginning."""

    def __init__(self, size: int, longest: int, sources: int = 3, seed: int = 0, sharp: float = 1.0):
        self.size, self.longest = size, longest
        self.table: dict[tuple[int, ...], Tensor] = {}
        rng = torch.Generator().manual_seed(seed)
        for source in range(sources):
            for length in range(longest):
                for written in itertools.product(range(size), repeat=length):
                    logits = sharp * torch.randn(size, generator=rng, dtype=torch.float64)
                    self.table[(source, *written)] = logits.log_softmax(0)

    def begin(self, source: Tensor) -> Any:
        return {"written": [source.unsqueeze(1)], "steps": torch.zeros(len(source))}

    def advance(self, state: Any, token: Tensor) -> tuple[Tensor, Any]:
        written = state["written"][0]
        if (state["steps"] > 0).all():
            written = torch.cat([written, token.unsqueeze(1)], 1)
        log_p = torch.stack([self.table[tuple(row)] for row in written.tolist()])
        return log_p, {"written": [written], "steps": state["steps"] + 1}

    def score(self, source: int, tokens: tuple[int, ...]) -> float:
        return sum(float(self.table[(source, *tokens[:i])][token]) for i, token in enumerate(tokens))


def whole(size: int, alphabet: Alphabet) -> list[tuple[int, ...]]:
    """Every answer that ends."""
    inner = [token for token in range(size) if token != alphabet.end]
    return [(*body, alphabet.end) for n in range(alphabet.longest) for body in itertools.product(inner, repeat=n)]


def cut(row: Tensor, alphabet: Alphabet) -> tuple[int, ...]:
    tokens = row.tolist()
    return tuple(tokens[: tokens.index(alphabet.end) + 1] if alphabet.end in tokens else tokens)


def slow_beam(model: Table, source: int, width: int, alphabet: Alphabet) -> tuple[tuple[int, ...], float]:
    """The same search, hypothesis by hypothesis."""
    beam: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    done: list[tuple[tuple[int, ...], float]] = []
    room = width
    for _ in range(alphabet.longest):
        wider = [((*h, v), s + float(model.table[(source, *h)][v])) for h, s in beam for v in range(model.size)]
        best = sorted(wider, key=lambda each: -each[1])[:room]
        done += [each for each in best if each[0][-1] == alphabet.end]
        beam = [each for each in best if each[0][-1] != alphabet.end]
        room = width - len(done)
    return max(done or beam, key=lambda each: each[1])


def test_an_exhaustive_beam_finds_the_likeliest_answer_of_all() -> None:
    model = Table(3, 4)
    sources = torch.arange(3)
    found = beam_search(together([model]), [model.begin(sources)], 3, 3**4, ALPHABET, CPU)
    for source in range(3):
        best = max(whole(3, ALPHABET), key=lambda tokens: model.score(source, tokens))
        assert cut(found.tokens[source], ALPHABET) == best
        assert math.isclose(found.score[source].item(), model.score(source, best), rel_tol=1e-6)


def test_a_beam_of_one_is_greedy_and_greedy_takes_the_likeliest_token() -> None:
    for seed in range(5):
        model = Table(4, 5, seed=seed)
        alphabet = ALPHABET._replace(longest=5)
        state = [model.begin(torch.arange(3))]
        one = beam_search(together([model]), state, 3, 1, alphabet, CPU)
        other = greedy(together([model]), state, 3, alphabet, CPU)
        assert torch.equal(one.tokens, other.tokens) and torch.allclose(one.score, other.score)
        written: list[int] = []
        while len(written) < 5 and alphabet.end not in written:
            written.append(int(model.table[(0, *written)].argmax()))
        assert cut(other.tokens[0], alphabet) == tuple(written)


def test_the_beam_is_the_one_of_the_slow_search() -> None:
    alphabet = ALPHABET._replace(longest=5)
    for seed, width in itertools.product(range(4), (2, 3, 5)):
        model = Table(4, 5, seed=seed, sharp=1.5)
        found = beam_search(together([model]), [model.begin(torch.arange(3))], 3, width, alphabet, CPU)
        for source in range(3):
            tokens, score = slow_beam(model, source, width, alphabet)
            assert cut(found.tokens[source], alphabet) == tokens
            assert math.isclose(found.score[source].item(), score, rel_tol=1e-5)
            padded = found.tokens[source, len(tokens) :]
            assert (padded == alphabet.padding).all()


def test_several_models_answer_as_one() -> None:
    models = [Table(3, 4, seed=seed) for seed in (1, 2)]
    states = [model.begin(torch.arange(3)) for model in models]
    token = torch.ones(3, dtype=torch.long)
    each = torch.stack([model.advance(state, token)[0] for model, state in zip(models, states, strict=True)])
    mean, following = together(models)(states, token)
    assert torch.allclose(mean.exp(), each.exp().mean(0), atol=1e-12) and len(following) == 2
    assert torch.allclose(together(models, "log-probabilities")(states, token)[0], each.mean(0), atol=1e-12)


def test_a_states_rows_are_taken_wherever_they_are() -> None:
    state = {"a": torch.arange(3), "b": (torch.arange(6).view(3, 2), [torch.ones(3)]), "seen": 7}
    taken = rows_of(state, torch.tensor([2, 2, 0]))
    assert taken["a"].tolist() == [2, 2, 0] and taken["b"][0].tolist() == [[4, 5], [4, 5], [0, 1]]
    assert taken["seen"] == 7 and isinstance(taken["b"], tuple) and isinstance(taken["b"][1], list)
    assert writes(Table(3, 1)) and not writes(torch.nn.Linear(1, 1))
