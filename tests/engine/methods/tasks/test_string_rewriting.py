"""Rewriting strings: the rules, what is held out, and what counts as right with and without a decoder."""

from __future__ import annotations

import datetime
import math

import pytest
import torch
from torch import Tensor

from engine.methods.tasks.string_rewriting import BEGIN, END, FORMATS, PADDING, StringRewriting, spelled
from engine.parts import Batch

SMALL = {"samples": 300, "held_out": 50}


def loaded(**settings: object) -> StringRewriting:
    task = StringRewriting(**{**SMALL, **settings})  # type: ignore[arg-type]
    task.load()
    return task


def pairs(task: StringRewriting, split: str = "train") -> list[tuple[str, str]]:
    rows = task.columns(split)
    return list(zip(task.decode(rows["source"]), task.decode(rows["target"]), strict=True))


def test_each_rule_writes_what_it_says() -> None:
    for read, written in pairs(loaded(rule="copy")):
        assert written == read and 4 <= len(read) <= 10 and set(read) <= set("abcdefghijkl")
    for read, written in pairs(loaded(rule="reverse")):
        assert written == read[::-1]
    for read, written in pairs(loaded(rule="addition", shortest=1, longest=3)):
        assert int(written) == sum(map(int, read.split("+")))


def test_dates_are_read_in_every_form_and_written_in_one() -> None:
    found = pairs(loaded(rule="dates"))
    for read, written in found:
        day = datetime.date.fromisoformat(written)
        assert read in {spelled(day, form) for form in FORMATS}
    day = datetime.date(2003, 5, 7)
    assert [spelled(day, form) for form in FORMATS] == [day.strftime(form) for form in FORMATS]
    assert len({len(read) for read, _ in found}) > 5


def test_nothing_held_out_was_trained_on_and_the_seed_decides() -> None:
    task = loaded()
    read = [{source for source, _ in pairs(task, split)} for split in ("train", "val", "test")]
    assert [len(each) for each in read] == [300, 50, 50]
    assert not read[0] & read[1] and not read[0] & read[2] and not read[1] & read[2]
    assert torch.equal(loaded().columns("test")["source"], task.columns("test")["source"])
    assert not torch.equal(loaded(split_seed=1).columns("test")["source"], task.columns("test")["source"])


def test_the_columns_are_what_the_contract_says() -> None:
    task = loaded(rule="addition", shortest=1, longest=2)
    rows = task.columns("train")
    size = task.offer.size
    assert rows["source"].shape[1:] == task.offer.shape and task.offer.answer == (rows["target"].shape[1], size)
    assert task.offer.about == {"padding": PADDING, "begin": BEGIN, "end": END, "longest": rows["target"].shape[1]}
    for before, target, mask in zip(rows["before"], rows["target"], rows["mask"], strict=True):
        count = int(mask.sum())
        assert before[0] == BEGIN and torch.equal(before[1:count], target[: count - 1])
        assert target[count - 1] == END and (target[count:] == PADDING).all() and (before[count:] == PADDING).all()
    assert max(int(rows[name].max()) for name in ("source", "target")) < size


def batch_of(task: StringRewriting, count: int = 4) -> Batch:
    rows = {name: column[:count] for name, column in task.columns("test").items()}
    inputs = {name: rows[name] for name in ("source", "before")}
    return Batch(inputs, rows["target"], torch.arange(count), "test", mask=rows["mask"])


def sure_of(tokens: Tensor, size: int) -> Tensor:
    return 20.0 * torch.nn.functional.one_hot(tokens, size)


def test_exact_counts_answers_without_a_mistake() -> None:
    task = loaded()
    batch = batch_of(task)
    wrong = batch.target.clone()
    wrong[1, 2] = END
    wrong[2, -1] = END  # beyond the end of most answers: padding does not count
    logits = sure_of(wrong, task.offer.size)
    short = int(batch.mask[2].sum()) < batch.mask.shape[1]  # type: ignore[index]
    assert task.metrics(logits, batch)["exact"].tolist() == [1.0, 0.0, float(short), 1.0]
    decoded = {"logits": logits, "tokens": batch.target.clone(), "score": torch.zeros(4)}
    assert task.metrics(decoded, batch)["exact"].tolist() == [1.0] * 4, "what was written counts"
    decoded["tokens"][3, 0] = END
    assert task.metrics(decoded, batch)["exact"].tolist() == [1.0, 1.0, 1.0, 0.0]


def test_perplexity_is_that_of_all_tokens() -> None:
    task = loaded()
    batch = batch_of(task, 50)
    torch.manual_seed(0)
    logits = torch.randn(50, *task.offer.answer)
    found = {name: value.double().mean().item() for name, value in task.metrics(logits, batch).items()}
    shown = task.summary(found)
    log_p = logits.log_softmax(-1).gather(-1, batch.target.unsqueeze(-1)).squeeze(-1)[batch.mask]
    assert shown["token-loss"] == pytest.approx(-log_p.mean().item(), rel=1e-5)
    assert shown["perplexity"] == pytest.approx(math.exp(-log_p.mean().item()), rel=1e-5)
    assert not any(name.startswith("_") for name in shown)


def test_it_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="different strings"):
        loaded(alphabet=2, shortest=1, longest=4)
    with pytest.raises(ValueError, match="swap them"):
        StringRewriting(shortest=5, longest=4)
