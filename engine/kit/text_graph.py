"""Backpropagation in words: a graph of texts, and critics that pass their advice backwards through it.

A `Variable` is a text with a role. Operators make new ones and remember what from: `ask` (a language model answers),
`call` (a Python function of texts), `total` and `mean` (several texts as one). ``loss.backward(critic)`` walks from a
text that criticizes back to what it came from; at every text that a model or a function has made, the critic is asked
what each of its causes should do differently, and the answer is that cause's gradient. A `TextualGradientDescent`
rewrites the variables by what they were told.

Works with any `engine.parts.LanguageModel`, without a recipe, a run or torch's tensors.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.parts import LanguageModel, Message

logger = logging.getLogger(__name__)

NEW = "IMPROVED_VARIABLE"

BACKWARD = (
    "You take part in an optimization whose parameters are texts. You are shown a conversation and one text that took "
    "part in it. Say, as criticism of that text, what about it should change. Be specific and brief. Do not write the "
    "new text: somebody else does."
)
AIM_OF_LOSS = (
    "The RESPONSE judges the work. There is no feedback on it: say how the VARIABLE should change so that the "
    "judgement gets better."
)
AIM_OF_FEEDBACK = "The RESPONSE got the FEEDBACK. Say how the VARIABLE should change so that the feedback is met."
MERGE = (
    "You are shown criticism of one text, gathered from several samples. Merge it into one criticism that keeps every "
    "point once."
)
REWRITE = (
    "You improve a text by the criticism that it got. You are shown its ROLE, its present VALUE and the FEEDBACK. "
    f"Answer with the whole improved text between <{NEW}> and </{NEW}>, and nothing else in between."
)


class Gradient(NamedTuple):
    """Criticism of a variable, the conversation that it is about, and the means that it came through."""

    text: str
    context: str = ""
    means: tuple[int, ...] = ()


Backward = Callable[["Variable", LanguageModel, Sequence[int]], int]


class Variable:
    """A text in the graph.

    `gradients` is a set in the order of arrival: the same criticism twice, about two conversations, is there twice.
    A variable made of others requires a gradient when one of them does.
    """

    def __init__(
        self,
        value: str,
        role: str,
        requires_grad: bool | None = None,
        predecessors: Sequence[Variable] = (),
        backward: Backward | None = None,
    ):
        self.requires_grad: bool
        inherited = any(each.requires_grad for each in predecessors)
        if inherited and requires_grad is False:
            raise ValueError(f"{role} is made of texts that require a gradient, so it requires one too.")
        self.value = value
        self.role = role
        self.requires_grad = inherited if requires_grad is None and predecessors else requires_grad is not False
        self.predecessors = tuple(predecessors)
        self.gradients: list[Gradient] = []
        self.means: tuple[int, ...] = ()  # the means that it is one of the texts of
        self._backward = backward

    def __repr__(self) -> str:
        return f"Variable({self.value!r}, {self.role!r})"

    @property
    def feedback(self) -> str:
        """All that it was told, one after the other."""
        return "\n".join(gradient.text for gradient in self.gradients if gradient.text)

    def zero_grad(self) -> None:
        """Forgets the criticism, the conversations that it was about, and how it came here."""
        self.gradients.clear()
        self.means = ()

    def comes_through(self) -> tuple[int, ...]:
        """The means that what it passes back has come through."""
        return tuple(dict.fromkeys((*self.means, *(mean for each in self.gradients for mean in each.means))))

    def backward(self, critic: LanguageModel, occasion: Sequence[int] = ()) -> int:
        """Gives every text that this one came from, and that requires a gradient, its criticism; adds to what is
        there. Returns how many tokens that took."""
        self.zero_grad()
        tokens = 0
        visited = order(self)
        for variable in visited:
            variable.means = ()  # those of an earlier pass
        for variable in visited:
            if not variable.requires_grad:
                continue
            tokens += merge(variable, critic, occasion)
            if variable._backward is not None:
                tokens += variable._backward(variable, critic, occasion)
        return tokens


def order(loss: Variable) -> list[Variable]:
    """Everything that a variable came from, each once and after all that was made of it."""
    found: list[Variable] = []
    seen = {id(loss)}
    stack: list[tuple[Variable, Iterator[Variable]]] = [(loss, iter(loss.predecessors))]
    while stack:
        variable, rest = stack[-1]
        following = next((each for each in rest if id(each) not in seen), None)
        if following is None:
            found.append(variable)
            stack.pop()
        else:
            seen.add(id(following))
            stack.append((following, iter(following.predecessors)))
    return found[::-1]


# -- operators ---------------------------------------------------------------------------------------------------------


def ask(
    engine: LanguageModel, conversations: Sequence[Sequence[Variable]], role: str, occasion: Sequence[int] = ()
) -> tuple[list[Variable], int]:
    """A language model's answers. Each conversation is a system prompt, a question, and further texts that are put
    below the question. Returns the answers and the tokens that they took."""
    asked = [[Message("system", system.value), Message("user", _below(rest))] for system, *rest in conversations]
    replies = engine.replies(asked, occasion)
    made = [
        Variable(reply.text, role, None, texts, _through_a_model)
        for texts, reply in zip(conversations, replies, strict=True)
    ]
    return made, sum(reply.tokens for reply in replies)


def call(function: Callable[..., str], purpose: str, inputs: Sequence[Variable], role: str) -> Variable:
    """A function of texts. `purpose` says in words what it does, for the critic."""

    def backward(made: Variable, critic: LanguageModel, occasion: Sequence[int]) -> int:
        shown = "\n".join(f"{each.role}: {each.value}" for each in inputs)
        context = f"{section('FUNCTION', purpose)}\n{section('INPUTS', shown)}\n{section('RESPONSE', made.value)}"
        return _criticize(made, inputs, context, critic, occasion)

    return Variable(function(*(each.value for each in inputs)), role, None, inputs, backward)


def total(variables: Sequence[Variable], role: str = "several texts, one below the other") -> Variable:
    """Texts as one. Criticism of it goes to each of them as it is."""
    return Variable("\n".join(each.value for each in variables), role, None, variables, _through_a_sum)


def mean(variables: Sequence[Variable], role: str = "a batch of texts, one below the other") -> Variable:
    """Like `total`; but what a variable is told through several of the texts is merged into one criticism."""

    def backward(made: Variable, critic: LanguageModel, occasion: Sequence[int]) -> int:
        for each in variables:
            each.means = (*each.means, id(made))
        return _through_a_sum(made, critic, occasion)

    return Variable("\n".join(each.value for each in variables), role, None, variables, backward)


def _through_a_sum(made: Variable, critic: LanguageModel, occasion: Sequence[int]) -> int:
    means = made.comes_through()
    for each in made.predecessors:
        if each.requires_grad:
            each.gradients += made.gradients
            each.means = tuple(dict.fromkeys((*each.means, *means)))
    return 0


def _through_a_model(made: Variable, critic: LanguageModel, occasion: Sequence[int]) -> int:
    system, *rest = made.predecessors
    context = (
        section("SYSTEM_PROMPT", system.value),
        section("QUESTION", _below(rest)),
        section("RESPONSE", made.value),
    )
    return _criticize(made, made.predecessors, "\n".join(context), critic, occasion)


def _criticize(
    made: Variable, causes: Sequence[Variable], context: str, critic: LanguageModel, occasion: Sequence[int]
) -> int:
    """Asks the critic about each cause of a text: by the feedback on it, or by itself where it is the loss."""
    wanted = [each for each in causes if each.requires_grad]
    about = f"{context}\n{section('RESPONSE_ROLE', made.role)}"
    if made.gradients:
        about += f"\n{section('FEEDBACK', made.feedback)}"
    aim = AIM_OF_FEEDBACK if made.gradients else AIM_OF_LOSS
    asked = []
    for each in wanted:
        text = f"{about}\n{section('ROLE', each.role)}\n{section('VARIABLE', each.value)}\n{section('AIM', aim)}"
        asked.append([Message("system", BACKWARD), Message("user", text)])
    replies = critic.replies(asked, occasion)
    means = made.comes_through()
    for each, reply in zip(wanted, replies, strict=True):
        each.gradients.append(Gradient(reply.text, context, means))
    return sum(reply.tokens for reply in replies)


def merge(variable: Variable, critic: LanguageModel, occasion: Sequence[int] = ()) -> int:
    """Makes one criticism of those that came through the same mean; returns the tokens that it took."""
    tokens = 0
    for mean in dict.fromkeys(mean for each in variable.gradients for mean in each.means):
        together = [each for each in variable.gradients if mean in each.means]
        if len(together) < 2:
            continue
        shown = "\n".join(section("CRITICISM", each.text) for each in together)
        text = f"{section('ROLE', variable.role)}\n{shown}"
        reply = critic.reply([Message("system", MERGE), Message("user", text)], occasion)
        tokens += reply.tokens
        contexts = "\n".join(dict.fromkeys(each.context for each in together if each.context))
        rest = tuple(dict.fromkeys(other for each in together for other in each.means if other != mean))
        first = next(i for i, each in enumerate(variable.gradients) if mean in each.means)
        variable.gradients = [each for each in variable.gradients if mean not in each.means]
        variable.gradients.insert(first, Gradient(reply.text, contexts, rest))
    return tokens


# -- the step ----------------------------------------------------------------------------------------------------------


@dataclass
class Change:
    """What a step has made of a variable; `error` where the engine's answer held no new value: the old one stays."""

    before: str
    after: str
    error: str = ""


@dataclass
class TextualGradientDescent:
    """Rewrites variables by the criticism that they hold.

    `constraints` are sentences that every new value must satisfy, `examples` values that are good ones. The engine is
    shown the last `momentum` values as well, and the last `memory` criticisms of earlier steps. `values` and
    `criticisms` keep them, a list a variable: whoever goes on elsewhere takes them along.
    """

    engine: LanguageModel
    variables: Sequence[Variable]
    constraints: Sequence[str] = ()
    examples: Sequence[str] = ()
    momentum: int = 0
    memory: int = 0
    values: list[list[str]] = field(default_factory=list)
    criticisms: list[list[str]] = field(default_factory=list)
    tokens: int = 0  # that all steps have taken

    def __post_init__(self) -> None:
        self.values = self.values or [[] for _ in self.variables]
        self.criticisms = self.criticisms or [[] for _ in self.variables]

    def step(self, occasion: Sequence[int] = ()) -> list[Change]:
        """One rewriting of every variable, all at once."""
        asked = [[Message("system", REWRITE), Message("user", self.prompt(i))] for i in range(len(self.variables))]
        replies = self.engine.replies(asked, occasion)
        self.tokens += sum(reply.tokens for reply in replies)
        changes = []
        for i, (variable, reply) in enumerate(zip(self.variables, replies, strict=True)):
            new = improved(reply.text)
            change = Change(variable.value, variable.value if new is None else new)
            if new is None:
                change.error = f"The answer has no <{NEW}> tags, so {variable.role} stays as it is."
                logger.error("%s It begins: %.80s", change.error, reply.text)
            self.values[i] = _last([*self.values[i], variable.value], self.momentum)
            self.criticisms[i] = _last([*self.criticisms[i], variable.feedback], self.memory)
            variable.value = change.after
            changes.append(change)
        return changes

    def zero_grad(self) -> None:
        for variable in self.variables:
            variable.zero_grad()

    def prompt(self, i: int) -> str:
        """What the engine is asked for one variable."""
        variable = self.variables[i]
        told = []
        for gradient in variable.gradients:
            told += [section("CONVERSATION", gradient.context)] if gradient.context else []
            told.append(section("CRITICISM", gradient.text))
        parts = [
            section("ROLE", variable.role),
            section("VALUE", variable.value),
            section("FEEDBACK", "\n".join(told) or "There is none."),
        ]
        further = (
            ("EARLIER_VALUES", self.values[i]),
            ("EARLIER_CRITICISM", self.criticisms[i]),
            ("CONSTRAINTS", self.constraints),
            ("GOOD_EXAMPLES", self.examples),
        )
        parts += [section(name, "\n".join(texts)) for name, texts in further if texts]
        return "\n".join(parts)


def improved(reply: str) -> str | None:
    """The new value in a reply, without the blank space around it; None where the tags are missing."""
    start, end = reply.find(f"<{NEW}>"), reply.rfind(f"</{NEW}>")
    return reply[start + len(NEW) + 2 : end].strip() if 0 <= start < end else None


# -- prompts -----------------------------------------------------------------------------------------------------------


def section(name: str, text: str) -> str:
    """A named part of a prompt."""
    return f"<{name}>\n{text}\n</{name}>"


def inside(prompt: str, name: str) -> list[str]:
    """The texts of all parts of that name."""
    return re.findall(rf"<{name}>\n(.*?)\n</{name}>", prompt, re.DOTALL)


def _below(texts: Sequence[Variable]) -> str:
    return "\n".join(each.value for each in texts if each.value)


def _last(items: list[str], count: int) -> list[str]:
    return items[-count:] if count else []
