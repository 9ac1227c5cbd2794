"""Rules of style that a program checks and mends."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.kit.sentence_rules import RULES, broken, complained, named
from engine.kit.texts import unpack
from engine.methods.tasks.sentence_rules import SentenceRules

KEPT = "The old mill needs two lamps."
BROKEN = {
    "capital": "the old mill needs two lamps.",
    "stop": "The old mill needs two lamps",
    "spaces": "The old  mill needs two lamps.",
    "very": "The very old mill needs two lamps.",
    "figures": "The old mill needs 2 lamps.",
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_rule_is_seen_alone_and_mended_alone(name: str) -> None:
    assert broken(KEPT) == []
    (rule,) = broken(BROKEN[name])
    assert rule.name == name and rule.mend(BROKEN[name]) == KEPT


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@given(text=st.text(alphabet="ab. 9Very", min_size=1, max_size=30).filter(lambda t: any(c.isalpha() for c in t)))
def test_what_is_mended_holds_where_a_letter_begins_it(rule: object, text: str) -> None:
    text = "a" + text
    assert rule.holds(rule.mend(text))  # type: ignore[attr-defined]


def test_the_order_of_mending_does_not_matter() -> None:
    task = SentenceRules(samples=40)
    task.load()
    sentences = unpack(task.splits["train"]["x"])
    assert len(set(sentences)) > 15
    for sentence in sentences:
        results = set()
        for rules in permutations(RULES):
            mended = sentence
            for rule in rules:
                mended = rule.mend(mended)
            results.add(mended)
        assert len(results) == 1 and broken(results.pop()) == []


def test_a_text_names_the_rules_it_asks_for() -> None:
    assert named("Please begin with a CAPITAL\nletter, and end with a full stop!") == list(RULES[:2])
    assert named("Do it well.") == [] and len(named(" ".join(rule.words for rule in RULES))) == len(RULES)
    assert complained("I see that it uses the word very.") == [RULES[3]]
