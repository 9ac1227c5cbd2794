"""Small Python functions with a mistake, judged by tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine import figures
from engine.fields import Positive, Whole
from engine.kit.sandbox import try_out
from engine.kit.supervised import seeded
from engine.kit.texts import TextTask, pack, unpack
from engine.parts import Answering, Batch, Figure, Offer, task

SHARES = {"test": 4, "val": 4}
SHOWN = 2
LONGEST = 400


class Exercise(NamedTuple):
    """What a function must do, the function, what the mistake makes of which words in it, and its tests."""

    words: str
    right: str
    mistake: tuple[str, str]
    tests: tuple[str, ...]

    @property
    def question(self) -> str:
        return f"# {self.words}\n{self.right.replace(*self.mistake)}"


EXERCISES = (
    Exercise(
        "Returns the middle value of a list; the mean of the two middle ones where there are two.",
        "def median(values):\n    ordered = sorted(values)\n    half = len(ordered) // 2\n"
        "    if len(ordered) % 2:\n        return ordered[half]\n    return (ordered[half - 1] + ordered[half]) / 2\n",
        ("ordered[half - 1] +", "ordered[half + 1] +"),
        ("median([3, 1, 2]) == 2", "median([4, 1, 3, 2]) == 2.5", "median([5, 7]) == 6", "median([9]) == 9"),
    ),
    Exercise(
        "Says whether a word reads the same backwards, whatever its capitals.",
        "def palindrome(word):\n    plain = word.lower()\n    return plain == plain[::-1]\n",
        ("word.lower()", "word"),
        ('palindrome("Anna")', 'not palindrome("Anne")', 'palindrome("")', 'palindrome("Level")'),
    ),
    Exercise(
        "Counts how often each letter comes in a text.",
        "def letters(text):\n    counts = {}\n    for letter in text:\n"
        "        counts[letter] = counts.get(letter, 0) + 1\n    return counts\n",
        ("counts.get(letter, 0) + 1", "1"),
        ('letters("aba") == {"a": 2, "b": 1}', 'letters("") == {}', 'letters("zzz") == {"z": 3}'),
    ),
    Exercise(
        "Returns the greatest common divisor of two numbers.",
        "def divisor(a, b):\n    while b:\n        a, b = b, a % b\n    return a\n",
        ("a % b", "a // b"),
        ("divisor(12, 18) == 6", "divisor(7, 5) == 1", "divisor(9, 0) == 9", "divisor(10, 5) == 5"),
    ),
    Exercise(
        "Returns the Fibonacci numbers below a limit.",
        "def fibonacci(limit):\n    found = []\n    a, b = 0, 1\n    while a < limit:\n        found.append(a)\n"
        "        a, b = b, a + b\n    return found\n",
        ("while a < limit", "while a <= limit"),
        ("fibonacci(10) == [0, 1, 1, 2, 3, 5, 8]", "fibonacci(8) == [0, 1, 1, 2, 3, 5]", "fibonacci(0) == []"),
    ),
    Exercise(
        "Flattens lists of lists by one level.",
        "def flat(lists):\n    found = []\n    for each in lists:\n        found.extend(each)\n    return found\n",
        ("extend", "append"),
        ("flat([[1], [2, 3]]) == [1, 2, 3]", "flat([]) == []", "flat([[], [4]]) == [4]"),
    ),
    Exercise(
        "Returns the words of a text that are longer than n letters.",
        "def longer(text, n):\n    return [word for word in text.split() if len(word) > n]\n",
        ("> n", ">= n"),
        ('longer("a bb ccc", 1) == ["bb", "ccc"]', 'longer("a bb", 2) == []', 'longer("", 0) == []'),
    ),
    Exercise(
        "Says whether a number is prime.",
        "def prime(n):\n    if n < 2:\n        return False\n    for d in range(2, n):\n        if d * d > n:\n"
        "            break\n        if n % d == 0:\n            return False\n    return True\n",
        ("n < 2", "n < 1"),
        ("prime(2)", "not prime(1)", "not prime(9)", "prime(13)", "not prime(0)"),
    ),
    Exercise(
        "Returns the sum of a number's digits.",
        "def digits(n):\n    total = 0\n    while n:\n        total += n % 10\n        n //= 10\n    return total\n",
        ("total += n % 10", "total += n // 10"),
        ("digits(123) == 6", "digits(0) == 0", "digits(9) == 9", "digits(1000) == 1"),
    ),
    Exercise(
        "Returns the running totals of a list.",
        "def running(values):\n    total, found = 0, []\n    for value in values:\n        total += value\n"
        "        found.append(total)\n    return found\n",
        ("total += value", "total = value"),
        ("running([1, 2, 3]) == [1, 3, 6]", "running([]) == []", "running([5]) == [5]", "running([1, -1]) == [1, 0]"),
    ),
    Exercise(
        "Returns the values of a list without repetitions, in the order in which they first come.",
        "def unique(values):\n    found = []\n    for value in values:\n        if value not in found:\n"
        "            found.append(value)\n    return found\n",
        ("value not in found", "value in found"),
        ("unique([2, 1, 2]) == [2, 1]", "unique([]) == []", "unique([3, 3, 3]) == [3]"),
    ),
    Exercise(
        "Moves each letter of a small-letter text n places on in the alphabet; others stay.",
        "def shifted(text, n):\n    found = ''\n    for c in text:\n"
        "        found += chr((ord(c) - 97 + n) % 26 + 97) if c.islower() else c\n    return found\n",
        ("% 26 + 97", "+ 97"),
        ('shifted("abc", 1) == "bcd"', 'shifted("xyz", 3) == "abc"', 'shifted("a b", 26) == "a b"'),
    ),
)


@task(
    name="Code repair",
    example={
        "procedure": {"use": "textgrad", "engine": {"use": "rule-engine"}, "revert_on_val_drop": False},
        "training": {"batch_size": 1},
        "budget": {"steps": 3},
    },
)
class CodeRepair(TextTask):
    """Asks for small Python functions to be mended. Each has one mistake; tests that the model does not see judge the
    answer, in a process that can reach no file and no network.

        score = share of the tests that pass;  solved = all pass

    Helps: seeing what criticism with facts in it is worth: the critic is told which tests fail.
    Hurts: language models of some size mend all of them at once.
    Cost: a short process for each answer.

    Choices: twelve functions, four each for training, validation and test, drawn by the seed. Answers may stand in a
    fence of three backquotes. An answer that uses more of Python than plain values, their methods and functions of its
    own is not run and passes no test.

    Args:
        seconds: How long an answer's tests may take together.
        split_seed: Seed of the splits.
    """

    metric = ("score", "max")
    role = "the mended function"
    prompt_role = "the system prompt that says how a Python function is to be mended"
    start = "Mend the Python function. Answer with the whole function and nothing else."
    instruction = (
        "Judge the Python function by the comment that says what it must do, and by the tests that it fails. Say "
        "briefly what is wrong. Do not write the function anew."
    )

    def __init__(self, seconds: Positive = 2.0, split_seed: Whole = 0):
        self.seconds, self.split_seed = seconds, split_seed
        self.offer = Offer("text", (LONGEST,), "text", LONGEST)
        self._tried: dict[tuple[str, int], list[str]] = {}

    def load(self) -> None:
        order = torch.randperm(len(EXERCISES), generator=seeded(self.split_seed))
        sizes = {**SHARES, "train": len(EXERCISES) - sum(SHARES.values())}
        rows = dict(zip(sizes, order.split(list(sizes.values())), strict=True))
        self.splits = {
            name: {"x": pack([EXERCISES[i].question for i in index.tolist()]), "meta.exercise": index}
            for name, index in rows.items()
        }

    def columns(self, split: str) -> dict[str, Tensor]:
        return self.splits.get(split, {})

    def metrics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        passed = [[not wrong for wrong in each] for each in self._failures(unpack(output), batch)]
        score = torch.tensor([sum(each) / len(each) for each in passed])
        return {"score": score, "solved": (score == 1).float()}

    def facts(self, questions: Sequence[str], answers: Sequence[str], batch: Batch) -> list[str]:
        found = []
        for exercise, wrongs in zip(self._exercises(batch), self._failures(answers, batch), strict=True):
            lines = [f"{test}: {wrong}" for test, wrong in zip(exercise.tests, wrongs, strict=True) if wrong]
            found.append("\n".join(["Tests that fail:", *lines]) if lines else "All tests pass.")
        return found

    def figure(self) -> Figure:
        return figures.text("Training samples", "\n\n".join(unpack(self.splits["train"]["x"])))

    def figures(self, answer: Answering, rng: torch.Generator) -> dict[str, Figure]:
        columns = {name: column[:SHOWN] for name, column in self.splits["val"].items()}
        batch = Batch(
            {"x": columns["x"]}, None, torch.arange(SHOWN), "val", meta={"exercise": columns["meta.exercise"]}
        )
        told = [
            (head, "\n\n".join(unpack(codes))) for head, codes in (("question", batch.x), ("answer", answer(batch)))
        ]
        return {"answers": figures.texts("Validation samples", *told, difference=True)}

    def _exercises(self, batch: Batch) -> list[Exercise]:
        return [EXERCISES[i] for i in batch.meta["exercise"].tolist()]

    def _failures(self, answers: Sequence[str], batch: Batch) -> list[list[str]]:
        """What is wrong by each test of each answer; an answer is tried once."""
        found = []
        for number, answer in zip(batch.meta["exercise"].tolist(), answers, strict=True):
            key = (answer, number)
            if key not in self._tried:
                self._tried[key] = try_out(unfenced(answer), EXERCISES[number].tests, self.seconds)
            found.append(self._tried[key])
        return found


def unfenced(answer: str) -> str:
    """The code in an answer, without the fence of backquotes that it may stand in."""
    found = re.search(r"```(?:python|py)?\n(.*?)```", answer, re.DOTALL)
    return found[1] if found else answer
