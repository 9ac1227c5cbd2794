"""The sequence to sequence LSTM: padding that never gets in, against packed sequences, and one token at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engine.methods.losses.sequence_likelihood import SequenceLikelihood
from engine.methods.models.seq2seq_lstm import Seq2SeqLSTM, last_states, reversed_rows
from engine.methods.tasks.string_rewriting import StringRewriting
from engine.parts import Batch, Offer
from tests.engine.methods.short import ready, train

RECIPE = {
    "task": {"use": "string-rewriting", "samples": 400, "held_out": 100, "alphabet": 5, "longest": 7, "shortest": 2},
    "model": {"use": "seq2seq-lstm", "layers": 2, "hidden": 24, "embed": 12},
    "optimizer": {"use": "adamw", "lr": 0.01},
    "training": {"batch_size": 32},
    "budget": {"steps": 5},
}


def task() -> StringRewriting:
    made = StringRewriting(samples=60, held_out=20, alphabet=5, shortest=1, longest=7)
    made.load()
    return made


def model_of(made: StringRewriting, reverse: bool = True, layers: int = 2) -> Seq2SeqLSTM:
    torch.manual_seed(0)
    return Seq2SeqLSTM(made.offer, layers, 10, 6, 0.5, reverse)


def batch_of(made: StringRewriting, rows: Tensor | None = None) -> Batch:
    columns = made.columns("train")
    index = torch.arange(20) if rows is None else rows
    taken = {name: column[index] for name, column in columns.items()}
    inputs = {name: taken[name] for name in ("source", "before")}
    return Batch(inputs, taken["target"], index, mask=taken["mask"])


def test_only_real_tokens_are_reversed() -> None:
    tokens = torch.tensor([[4, 5, 6, 0], [7, 0, 0, 0], [3, 4, 5, 6]])
    assert reversed_rows(tokens, tokens != 0).tolist() == [[6, 5, 4, 0], [7, 0, 0, 0], [6, 5, 4, 3]]


def test_the_last_states_are_those_of_packed_sequences() -> None:
    torch.manual_seed(1)
    lstm = nn.LSTM(3, 5, 2, batch_first=True).double()
    x, lengths = torch.randn(6, 7, 3, dtype=torch.float64), torch.tensor([7, 1, 4, 4, 2, 6])
    real = torch.arange(7) < lengths.unsqueeze(1)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    for found, expected in zip(last_states(lstm, x, real), lstm(packed)[1], strict=True):
        assert torch.allclose(found, expected, atol=1e-12)
    x.masked_fill_(~real.unsqueeze(-1), 1e6)
    assert torch.allclose(last_states(lstm, x, real)[1], lstm(packed)[1][1], atol=1e-12), "padding changes nothing"


@pytest.mark.parametrize("reverse", [True, False])
def test_padding_and_the_order_of_sentences_do_not_matter(reverse: bool) -> None:
    made = task()
    model, loss = model_of(made, reverse), SequenceLikelihood()
    batch = batch_of(made)
    padded = loss(batch.call(model), batch)["task"]
    for i in range(20):
        read = int((batch.inputs["source"][i] != 0).sum())
        written = int(batch.mask[i].sum())  # type: ignore[index]
        inputs = {
            "source": batch.inputs["source"][i : i + 1, :read],
            "before": batch.inputs["before"][i : i + 1, :written],
        }
        alone = Batch(inputs, batch.target[i : i + 1, :written], batch.index[i : i + 1])
        assert torch.allclose(loss(alone.call(model), alone)["task"], padded[i : i + 1], atol=1e-6, rtol=1e-6)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    again = batch_of(made, order)
    assert torch.allclose(loss(again.call(model), again)["task"], padded[order], atol=1e-6)


def test_it_reads_backwards_where_it_says_so() -> None:
    made = task()
    there, back = model_of(made, True), model_of(made, False)
    source = batch_of(made).inputs["source"]
    mirrored = reversed_rows(source, source != 0)
    assert torch.allclose(there.encode(source)[0], back.encode(mirrored)[0], atol=1e-7)
    assert not torch.allclose(there.encode(source)[0], back.encode(source)[0], atol=1e-2)


def test_token_by_token_it_says_what_it_says_at_once() -> None:
    made = task()
    model, batch = model_of(made), batch_of(made)
    expected = batch.call(model).log_softmax(-1)
    state = model.begin(batch.inputs["source"])
    assert all(each.shape[0] == 20 for each in state), "one row an answer"
    for place, token in enumerate(batch.inputs["before"].unbind(1)):
        log_p, state = model.advance(state, token)
        assert torch.allclose(log_p, expected[:, place], atol=1e-6)


def test_weights_start_in_the_range_and_other_tasks_are_refused() -> None:
    model = Seq2SeqLSTM(task().offer, 1, 40, 30)
    largest = max(float(parameter.detach().abs().max()) for parameter in model.parameters())
    assert 0.079 < largest <= 0.08
    with pytest.raises(ValueError, match="rewrites sequences"):
        Seq2SeqLSTM(Offer("tokens", (8,), "next-token", 4, 4))


def test_it_learns_and_decoders_answer_for_it() -> None:
    run, memory, _ = train(**{**RECIPE, "budget": {"steps": 40}})
    losses = memory.points["train/loss"][1]
    assert losses[-1] < losses[0] - 0.2
    plain = run.evaluate("test")
    made = {name: ready(**RECIPE, decoder=decoder)[0] for name, decoder in DECODERS.items()}
    for other in made.values():
        other.model.load_state_dict(run.model.state_dict())
    greedy, one, wide = (made[name].evaluate("test") for name in ("greedy", "one", "wide"))
    assert greedy["exact"] == plain["exact"] == one["exact"] and greedy["loss"] == plain["loss"]
    assert greedy["answer-score"] == pytest.approx(one["answer-score"], abs=1e-6)
    assert wide["answer-score"] >= greedy["answer-score"] - 1e-6


DECODERS = {
    "greedy": {"use": "greedy-tokens"},
    "one": {"use": "beam-search", "width": 1},
    "wide": {"use": "beam-search", "width": 5},
}


def test_an_answers_score_is_its_likelihood() -> None:
    run, _ = ready(**RECIPE, decoder=DECODERS["wide"])
    batch = next(run.batches("test", 30))
    found = run.predict(batch)
    tokens = found["tokens"]
    before = torch.cat([torch.ones(30, 1, dtype=torch.long), tokens[:, :-1]], 1)
    log_p = run.model(batch.inputs["source"], before).log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(found["score"], (log_p * (tokens != 0)).sum(1), atol=1e-5)
