"""Strings that are rewritten by a rule: copied, reversed, added up, or written as a date."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from engine.fields import Count, Whole
from engine.figures import table
from engine.kit.supervised import seeded
from engine.parts import Answering, Batch, Figure, Offer, Task, Terms, task

PADDING, BEGIN, END = 0, 1, 2
FIRST = 3  # the token of the first character
LETTERS = "abcdefghijklmnopqrstuvwxyz"
FORMATS = ("%B %d, %Y", "%d %b %Y", "%A %d %B %Y", "%d.%m.%Y", "%m/%d/%y", "%b %d %Y")
FIRST_DAY, LAST_DAY = datetime.date(1970, 1, 1), datetime.date(2068, 12, 31)  # where two digits tell the century
Pairs = list[tuple[str, str]]
Rule = Literal["copy", "reverse", "addition", "dates"]
SHOWN = 12


def strings(count: int, alphabet: int, shortest: int, longest: int, rng: torch.Generator) -> list[str]:
    """Random strings, every length as likely as the others."""
    lengths = torch.randint(shortest, longest + 1, (count,), generator=rng).tolist()
    letters = torch.randint(alphabet, (count, longest), generator=rng).tolist()
    return ["".join(LETTERS[i] for i in row[:length]) for row, length in zip(letters, lengths, strict=True)]


def sums(count: int, shortest: int, longest: int, rng: torch.Generator) -> Pairs:
    """Two numbers of so many digits, and their sum."""
    lengths = torch.randint(shortest, longest + 1, (count, 2), generator=rng).tolist()
    digits = torch.randint(10, (count, 2, longest), generator=rng).tolist()
    found = []
    for row, sizes in zip(digits, lengths, strict=True):
        a, b = (int("".join(map(str, each[:size]))) for each, size in zip(row, sizes, strict=True))
        found.append((f"{a}+{b}", str(a + b)))
    return found


def dates(count: int, rng: torch.Generator) -> Pairs:
    """Days in one of several ways to write them, and as year-month-day."""
    span = (LAST_DAY - FIRST_DAY).days + 1
    offsets = torch.randint(span, (count,), generator=rng).tolist()
    kinds = torch.randint(len(FORMATS), (count,), generator=rng).tolist()
    days = [FIRST_DAY + datetime.timedelta(days=offset) for offset in offsets]
    return [(spelled(day, FORMATS[kind]), day.isoformat()) for day, kind in zip(days, kinds, strict=True)]


MONTHS = [
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
]
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def spelled(day: datetime.date, form: str) -> str:
    """A day in words, the same in every locale."""
    month, weekday = MONTHS[day.month - 1], WEEKDAYS[day.weekday()]
    return (
        form.replace("%B", month)
        .replace("%b", month[:3])
        .replace("%A", weekday)
        .replace("%d", f"{day.day:02d}")
        .replace("%m", f"{day.month:02d}")
        .replace("%Y", str(day.year))
        .replace("%y", f"{day.year % 100:02d}")
    )


@task(
    name="String rewriting",
    example={
        "task": {"longest": 5, "alphabet": 4, "samples": 120, "held_out": 20},
        "model": {"use": "seq2seq-lstm", "layers": 1, "hidden": 8, "embed": 4},
    },
)
class StringRewriting(Task):
    """Reads a string and writes another one, character by character: the same, the same backwards, the sum of two
    numbers, or a date in one form. The answer may be shorter or longer than what was read.

        inputs: source [S], before [T] = begin, y_1 .. y_(T-1);   target [T] = y_1 .. y_(T-1), end
        loss = -(1 / T) sum_t log p(y_t | y_<t, source);   perplexity = exp(sum of all -log p / all tokens)
        exact = share of the answers that are right to the last character

    Helps: models that read one sequence and write another, and the ways to decode them.
    Hurts: there is nothing to know but the rule: a model that has it answers everything.
    Cost: a second to make 100,000 strings.

    Choices: every string to read occurs once in all splits together, so that none of those held out was trained on.
    Without a decoder `exact` counts the answers in which the likeliest token is right at each place, given the right
    ones before it: just those that greedy decoding writes without a mistake. Loss and accuracy are means over an
    answer's tokens, its end included.

    Args:
        rule: What is written: a copy, the string backwards, a sum, or a date as year-month-day.
        alphabet: Different letters in the strings that are copied or reversed.
        shortest: Fewest letters of a string, or digits of a number.
        longest: Most letters of a string, or digits of a number.
        samples: Strings in the training split.
        held_out: Strings in the validation and in the test split each.
        split_seed: Seed of the strings.

    Raises:
        ValueError: When there are not so many different strings, or the shortest is longer than the longest.
    """

    metric = ("exact", "max")

    def __init__(
        self,
        rule: Rule = "copy",
        alphabet: Annotated[int, Field(ge=2, le=26)] = 12,
        shortest: Count = 4,
        longest: Annotated[int, Field(ge=1, le=200)] = 10,
        samples: Count = 20000,
        held_out: Count = 500,
        split_seed: Whole = 0,
    ):
        if shortest > longest:
            raise ValueError(f"The shortest string has {shortest} letters and the longest {longest}; swap them.")
        self.rule, self.alphabet, self.shortest, self.longest = rule, alphabet, shortest, longest
        self.samples, self.held_out, self.split_seed = samples, held_out, split_seed
        self.characters, source, target = self._sizes()
        size = FIRST + len(self.characters)
        about = {"padding": PADDING, "begin": BEGIN, "end": END, "longest": target}
        self.offer = Offer("tokens", (source,), "sequence", size, size, answer=(target, size), about=about)

    def _sizes(self) -> tuple[str, int, int]:
        """The characters, and the most tokens that are read and written."""
        if self.rule in ("copy", "reverse"):
            return LETTERS[: self.alphabet], self.longest, self.longest + 1
        if self.rule == "addition":
            return "0123456789+", 2 * self.longest + 1, self.longest + 2
        spellings = ["".join(MONTHS), "".join(WEEKDAYS), "0123456789 ,./-"]
        longest = len(spelled(datetime.date(2025, 9, 10), FORMATS[2]))  # a Wednesday in September
        return "".join(sorted(set("".join(spellings)))), longest, len("2000-01-01") + 1

    # -- data ----------------------------------------------------------------------------------------------------------

    def load(self) -> None:
        pairs = self._distinct(self.samples + 2 * self.held_out)
        ends = {"val": self.held_out, "test": self.held_out, "train": self.samples}
        self.splits: dict[str, dict[str, Tensor]] = {}
        start = 0
        for name, count in ends.items():
            self.splits[name] = self._columns(pairs[start : start + count])
            start += count

    def _distinct(self, count: int) -> Pairs:
        """So many pairs, no two with the same source."""
        rng = seeded(self.split_seed)
        found: dict[str, str] = {}
        for _ in range(20):
            found |= dict(self._draw(count, rng))
            if len(found) >= count:
                return list(found.items())[:count]
        raise ValueError(
            f"There are hardly more than {len(found)} different strings here, and {count} are wanted in all. Write "
            "fewer samples, a longer string or a larger alphabet."
        )

    def _draw(self, count: int, rng: torch.Generator) -> Pairs:
        if self.rule == "addition":
            return sums(count, self.shortest, self.longest, rng)
        if self.rule == "dates":
            return dates(count, rng)
        read = strings(count, self.alphabet, self.shortest, self.longest, rng)
        return [(text, text if self.rule == "copy" else text[::-1]) for text in read]

    def _columns(self, pairs: Pairs) -> dict[str, Tensor]:
        source = self.encode([read for read, _ in pairs], self.offer.shape[0])
        target = self.encode([written for _, written in pairs], self.offer.answer[0], end=True)
        before = target.roll(1, 1)
        before[:, 0] = BEGIN
        before = torch.where(target == PADDING, PADDING, before)
        length = (source != PADDING).sum(1)
        return {
            "source": source,
            "before": before,
            "target": target,
            "mask": target != PADDING,
            "meta.length": length,
        }

    def encode(self, texts: list[str], width: int, end: bool = False) -> Tensor:
        """Texts as rows of tokens, padded on the right."""
        token = {character: FIRST + i for i, character in enumerate(self.characters)}
        rows = [[*(token[c] for c in text), *([END] if end else [])] for text in texts]
        return torch.tensor([row + [PADDING] * (width - len(row)) for row in rows])

    def decode(self, tokens: Tensor) -> list[str]:
        """Rows of tokens as texts, up to the end of each; what is no character shows as a question mark."""
        found = []
        for row in tokens.tolist():
            row = row[: row.index(END)] if END in row else row
            found.append("".join(self.characters[t - FIRST] if t >= FIRST else "?" for t in row if t != PADDING))
        return found

    def columns(self, split: str) -> dict[str, Tensor]:
        return self.splits.get(split, {})

    # -- measures ------------------------------------------------------------------------------------------------------

    def objective(self, output: Any, batch: Batch) -> Terms:
        nll, count = token_costs(output, batch)
        return {"task": nll / count}

    def metrics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        logits = logits_of(output)
        assert batch.mask is not None
        nll, count = token_costs(output, batch)
        right = (logits.argmax(-1) == batch.target) & batch.mask
        exact = right.sum(1) == count
        if isinstance(output, dict):
            exact = (output["tokens"] == batch.target).all(1)
        found = {"exact": exact.float(), "accuracy": right.sum(1) / count, "_nll": nll, "_tokens": count.float()}
        return {**found, "answer-score": output["score"]} if isinstance(output, dict) else found

    def summary(self, totals: dict[str, float]) -> dict[str, float]:
        shown = {name: value for name, value in totals.items() if not name.startswith("_")}
        if "_nll" in totals:
            cost = torch.tensor(totals["_nll"] / totals["_tokens"], dtype=torch.float64)
            shown |= {"token-loss": cost.item(), "perplexity": cost.exp().item()}
        return shown

    # -- what is shown -------------------------------------------------------------------------------------------------

    def figure(self) -> Figure:
        rows = self.splits["train"]
        read, written = (self.decode(rows[name][:SHOWN]) for name in ("source", "target"))
        return table("Training samples", ["reads", "writes"], list(zip(read, written, strict=True)))

    def figures(self, answer: Answering, rng: torch.Generator) -> dict[str, Figure]:
        rows = {name: column[:SHOWN].to(rng.device) for name, column in self.splits["val"].items()}
        inputs = {name: rows[name] for name in ("source", "before")}
        index = torch.arange(len(rows["target"]), device=rng.device)
        output = answer(Batch(inputs, rows["target"], index, "val", mask=rows["mask"]))
        tokens = output["tokens"] if isinstance(output, dict) else output.argmax(-1)
        texts = [self.decode(each) for each in (rows["source"], rows["target"], tokens)]
        told = [["yes" if row[1] == row[2] else "no", *row] for row in zip(*texts, strict=True)]
        return {"answers": table("Held-out strings", ["right", "reads", "should write", "writes"], told)}


def logits_of(output: Any) -> Tensor:
    """The logits of an answer, the model's own or a decoder's."""
    logits: Tensor = output["logits"] if isinstance(output, dict) else output
    return logits


def token_costs(output: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """What each answer costs: the sum of -log p over its tokens [B], and their number [B]."""
    logits, mask = logits_of(output), batch.mask
    assert mask is not None
    each = F.cross_entropy(logits.flatten(0, 1), batch.target.flatten(), reduction="none").view(mask.shape)
    return (each * mask).sum(1), mask.sum(1)
