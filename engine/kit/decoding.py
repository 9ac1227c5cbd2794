"""Answers that are written token by token: the likeliest token each time, or a beam of partial answers.

What is asked of a model is the protocol `engine.parts.TokenByToken`, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from engine.parts import Offer, TokenByToken

Advance = Callable[[Any, Tensor], tuple[Tensor, Any]]
Average = Literal["probabilities", "log-probabilities"]


class Written(NamedTuple):
    """Answers [B, longest], padded behind their end, and the log-probability of each."""

    tokens: Tensor
    score: Tensor


class Alphabet(NamedTuple):
    """The tokens with a meaning of their own, and the most tokens of an answer, its end included."""

    padding: int
    begin: int
    end: int
    longest: int

    @classmethod
    def of(cls, offer: Offer) -> Alphabet:
        return cls(*(offer.about[name] for name in cls._fields))


def writes(model: Any) -> bool:
    """Whether a model writes token by token."""
    return callable(getattr(model, "begin", None)) and callable(getattr(model, "advance", None))


def rows_of(state: Any, rows: Tensor) -> Any:
    """A state's rows, in this order, each as often as it is named. A plain number holds for all of them."""
    if isinstance(state, Tensor):
        return state.index_select(0, rows)
    if isinstance(state, int | float):
        return state
    if isinstance(state, dict):
        return {name: rows_of(each, rows) for name, each in state.items()}
    return type(state)(rows_of(each, rows) for each in state)


def together(models: Sequence[TokenByToken], average: Average = "probabilities") -> Advance:
    """Several models that write as one: the mean, at each token, of the probabilities or of the log-probabilities.

    The state is the list of theirs.
    """

    def advance(states: Any, token: Tensor) -> tuple[Tensor, Any]:
        steps = [model.advance(state, token) for model, state in zip(models, states, strict=True)]
        each = torch.stack([log_p for log_p, _ in steps])
        if len(models) > 1:
            each = each.logsumexp(0) - math.log(len(models)) if average == "probabilities" else each.mean(0)
        else:
            each = each[0]
        return each, [state for _, state in steps]

    return advance


def greedy(advance: Advance, state: Any, count: int, alphabet: Alphabet, device: torch.device) -> Written:
    """The likeliest token after each other, until the end or the longest answer; `count` answers at once."""
    token = torch.full((count,), alphabet.begin, device=device)
    going = torch.ones(count, dtype=torch.bool, device=device)
    score = torch.zeros(count, device=device)
    tokens = torch.full((count, alphabet.longest), alphabet.padding, device=device)
    for place in range(alphabet.longest):
        log_p, state = advance(state, token)
        best, token = log_p.max(-1)
        score = score + torch.where(going, best, 0.0)
        tokens[:, place] = torch.where(going, token, alphabet.padding)
        going = going & (token != alphabet.end)
        if not going.any():
            break
    return Written(tokens, score)


class Beam:
    """The best partial answers of each source, one token longer at every step.

    Of all one-token continuations the best `room` are kept, by their total log-probability. One that ends moves out,
    and its place is gone: the room of its source shrinks. `done` is the best that has ended so far.
    """

    def __init__(self, count: int, width: int, alphabet: Alphabet, device: torch.device):
        self.count, self.width, self.alphabet = count, width, alphabet
        self.tokens = torch.full((count, width, alphabet.longest), alphabet.padding, device=device)
        self.score = torch.full((count, width), -math.inf, device=device)
        self.score[:, 0] = 0.0  # one empty answer to begin with
        self.room = torch.full((count, 1), width, device=device)
        self.done = self.tokens[:, 0].clone()
        self.done_score = torch.full((count,), -math.inf, device=device)
        self.place = 0

    def extend(self, log_p: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the log-probabilities [count, width, V] of the next token; gives, for each place of the beam, where its
        answer came from (a row of count x width) and its last token."""
        size = log_p.shape[-1]
        found, at = (self.score.unsqueeze(-1) + log_p).flatten(1).topk(min(self.width, self.width * size), dim=1)
        origin, token = at // size, at % size
        within = torch.arange(self.width, device=at.device) < self.room
        self.tokens = self.tokens.gather(1, origin.unsqueeze(-1).expand_as(self.tokens))
        self.tokens[:, :, self.place] = token
        ends = within & (token == self.alphabet.end) & found.isfinite()
        self._move_out(torch.where(ends, found, -math.inf))
        self.room = self.room - ends.sum(1, keepdim=True)
        self.score = torch.where(within & ~ends, found, -math.inf)
        self.place += 1
        first = torch.arange(self.count, device=at.device).unsqueeze(1) * self.width
        return (first + origin).flatten(), token.flatten()

    def _move_out(self, ended: Tensor) -> None:
        best, at = ended.max(1)
        better = best > self.done_score
        theirs = self.tokens[torch.arange(self.count, device=at.device), at]
        self.done = torch.where(better.unsqueeze(1), theirs, self.done)
        self.done_score = torch.where(better, best, self.done_score)

    def over(self) -> bool:
        """Whether nothing better can come: a longer answer is never likelier than its beginning."""
        return self.place == self.alphabet.longest or bool((self.done_score >= self.score.amax(1)).all())

    def best(self) -> Written:
        """The best that has ended; where none has, the best that was begun."""
        begun, at = self.score.max(1)
        ended = self.done_score > -math.inf
        theirs = self.tokens[torch.arange(self.count, device=at.device), at]
        tokens = torch.where(ended.unsqueeze(1), self.done, theirs)
        return Written(tokens, torch.where(ended, self.done_score, begun))


def beam_search(
    advance: Advance, state: Any, count: int, width: int, alphabet: Alphabet, device: torch.device
) -> Written:
    """The likeliest answer that a beam of so many partial ones finds, for `count` sources at once, each of which has a
    row in the state. With a width of one it is greedy."""
    beam = Beam(count, width, alphabet, device)
    state = rows_of(state, torch.arange(count, device=device).repeat_interleave(width))
    token = torch.full((count * width,), alphabet.begin, device=device)
    while not beam.over():
        log_p, state = advance(state, token)
        rows, token = beam.extend(log_p.view(count, width, -1))
        state = rows_of(state, rows)
    return beam.best()
