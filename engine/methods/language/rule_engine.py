"""A language model that is none: rules in its place."""

from __future__ import annotations

import re
from collections.abc import Sequence

from engine.fields import Whole
from engine.kit.sentence_rules import Rule, broken, complained, named
from engine.kit.text_graph import BACKWARD, MERGE, NEW, REWRITE, inside
from engine.parts import LanguageModel, Message, Reply, language_model

INSTRUCTING = re.compile(r"prompt|instruction", re.IGNORECASE)


@language_model(name="Rule engine")
class RuleEngine(LanguageModel):
    """Plays a language model by fixed rules: it knows five rules of style, and follows those that it is told of. It
    needs no server, costs nothing and always says the same, so what is built around a language model can be tried.

    As one who answers it puts the question in order by the rules that its system prompt names. As a judge (its system
    prompt says "judge") it names the first of those rules that a sentence breaks, one a reply. As a critic it passes a
    complaint back, with the rule that would meet it. As an editor it mends a sentence by the rules that the criticism
    names, or adds them to an instruction.

    Helps: trying a recipe before a server is asked, tests, and whatever must repeat itself.
    Hurts: it understands nothing: of texts that speak of other things it returns what it got.
    Cost: none. Its tokens are words.

    Args:
        spoils_every: Of so many occasions, at the last one the editor makes an instruction worse by taking the first
            rule out of it; 0 never.
        plain: Whether an editor's answer lacks the tags that it was asked for, as weak models do.
    """

    def __init__(self, spoils_every: Whole = 0, plain: bool = False):
        self.spoils_every, self.plain = spoils_every, plain

    def reply(self, conversation: Sequence[Message], occasion: Sequence[int] = ()) -> Reply:
        system = next((text for role, text in conversation if role == "system"), "")
        asked = conversation[-1].text
        if system == BACKWARD:
            said = self._criticize(asked)
        elif system == MERGE:
            said = "\n".join(dict.fromkeys("\n".join(inside(asked, "CRITICISM")).splitlines()))
        elif system == REWRITE:
            said = self._rewrite(asked, occasion)
        elif re.search(r"\bjudge\b", system, re.IGNORECASE):
            said = _judge(asked, named(system))
        else:
            said = _mended(asked, named(system))
        return Reply(said, sum(len(text.split()) for _, text in conversation) + len(said.split()))

    @staticmethod
    def _criticize(asked: str) -> str:
        role, feedback = inside(asked, "ROLE")[-1], inside(asked, "FEEDBACK")
        rules = named(feedback[-1]) if feedback else complained(inside(asked, "RESPONSE")[-1])
        return "\n".join(f"{role}: {rule.words}" for rule in rules) or f"{role}: nothing is wrong."

    def _rewrite(self, asked: str, occasion: Sequence[int]) -> str:
        role, value = inside(asked, "ROLE")[0], inside(asked, "VALUE")[0]
        rules = named("\n".join(inside(asked, "CRITICISM")))
        spoils = bool(self.spoils_every and occasion) and (occasion[-1] + 1) % self.spoils_every == 0
        if not INSTRUCTING.search(role):
            new = _mended(value, rules)
        elif spoils and named(value):
            new = " ".join(value.replace(named(value)[0].words, "").split())
        else:
            there = named(value)
            new = " ".join([value, *(rule.words for rule in rules if rule not in there)])
        return new if self.plain else f"<{NEW}>\n{new}\n</{NEW}>"


def _judge(sentence: str, rules: Sequence[Rule]) -> str:
    faults = [rule for rule in broken(sentence) if rule in rules]
    return f"The sentence has a fault: {faults[0].complaint}." if faults else "The sentence has no fault."


def _mended(sentence: str, rules: Sequence[Rule]) -> str:
    for rule in rules:
        sentence = rule.mend(sentence)
    return sentence
