"""Sentences that break rules of style."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from engine import figures
from engine.fields import Whole
from engine.kit.sentence_rules import RULES
from engine.kit.supervised import seeded
from engine.kit.texts import TextTask, pack, unpack
from engine.parts import Answering, Batch, Figure, Offer, task

SHARES = {"test": 0.25, "val": 0.25}
SHOWN = 8
LONGEST = 80  # characters of a sentence
SUBJECTS = ("the old mill", "our neighbour", "the harbour", "a small choir", "the night train", "his workshop")
VERBS = ("needs", "lost", "keeps", "sold", "found", "carries")
THINGS = ("lamps", "bells", "letters", "barrels", "songs", "maps")
ENDS = ("in the cold months", "by the river", "near the square", "for the fair", "on most days", "without a word")
WORDS = {2: "two", 3: "three", 4: "four", 6: "six", 7: "seven", 9: "nine"}


@task(
    name="Sentence rules",
    example={
        "task": {"samples": 24},
        "procedure": {"use": "textgrad", "engine": {"use": "rule-engine"}},
        "training": {"batch_size": 3},
        "budget": {"steps": 4},
    },
)
class SentenceRules(TextTask):
    """Asks for sentences to be put in order by five rules of style. Whether an answer keeps a rule is checked by a
    program, so that no language model marks its own work.

        score = share of the five rules that hold;  solved = all five hold

    Helps: methods that improve prompts and answers in words, on any language model, also without one.
    Hurts: a strong language model keeps such rules when it is told of them: then there is nothing left to improve.
    Cost: none; the sentences are made up.

    Choices: the rules are a capital letter first, a full stop last, single spaces, no "very", digits as words. Each
    sentence breaks every rule with probability `broken`, and at least one. The first prompt names no rule.

    Args:
        samples: Sentences in all splits together; a quarter each for validation and test.
        broken: How likely a sentence is to break a rule.
        split_seed: Seed of the sentences and of what they break.
    """

    metric = ("score", "max")
    role = "the sentence, put in order"
    prompt_role = "the instruction that says how a sentence is to be put in order"
    start = "Answer with the sentence you are given, put in order."

    def __init__(
        self,
        samples: Annotated[int, Field(ge=8)] = 48,
        broken: Annotated[float, Field(gt=0, le=1)] = 0.6,
        split_seed: Whole = 0,
    ):
        self.samples, self.broken, self.split_seed = samples, broken, split_seed
        self.offer = Offer("text", (LONGEST,), "text", LONGEST)
        rules = " ".join(f"{i}. {rule.words}" for i, rule in enumerate(RULES, 1))
        self.instruction = (
            f"Judge whether the sentence keeps these rules: {rules} Name one fault, the first that you find; if there "
            "is none, say so. Do not write the sentence anew."
        )

    def load(self) -> None:
        rng = seeded(self.split_seed)
        packed = pack([self._sentence(rng) for _ in range(self.samples)])
        sizes = {name: round(self.samples * share) for name, share in SHARES.items()}
        sizes["train"] = self.samples - sum(sizes.values())
        rows = dict(zip(sizes, packed.split(list(sizes.values())), strict=True))
        self.splits = {name: {"x": codes} for name, codes in rows.items()}

    def _sentence(self, rng: torch.Generator) -> str:
        breaks = torch.rand(len(RULES), generator=rng) < self.broken
        breaks[int(torch.randint(len(RULES), (), generator=rng))] = True
        capital, stop, spaces, very, digits = breaks.tolist()

        def pick(words: Sequence[Any]) -> Any:
            return words[int(torch.randint(len(words), (), generator=rng))]

        number = pick(list(WORDS))
        words = [pick(SUBJECTS), pick(VERBS), str(number) if digits else WORDS[number], *(["very"] if very else [])]
        words += ["old", pick(THINGS), pick(ENDS)]
        gap = int(torch.randint(1, len(words) - 1, (), generator=rng))
        text = " ".join(word + (" " if spaces and i == gap else "") for i, word in enumerate(words))
        return (text if capital else text[0].upper() + text[1:]) + ("" if stop else ".")

    def columns(self, split: str) -> dict[str, Tensor]:
        return self.splits.get(split, {})

    def metrics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        kept = torch.tensor([[rule.holds(answer) for rule in RULES] for answer in unpack(output)]).float()
        return {"score": kept.mean(1), "solved": kept.prod(1)}

    def figure(self) -> Figure:
        return figures.text("Training samples", "\n".join(unpack(self.splits["train"]["x"][: 2 * SHOWN])))

    def figures(self, answer: Answering, rng: torch.Generator) -> dict[str, Figure]:
        x = self.splits["val"]["x"][:SHOWN]
        batch = Batch({"x": x}, None, torch.arange(len(x)), "val")
        columns = (("question", unpack(x)), ("answer", unpack(answer(batch))))
        told = [(head, "\n".join(lines)) for head, lines in columns]
        return {"answers": figures.texts("Validation samples", *told, difference=True)}
