"""Gradients in words: who is visited, who is asked, and what a step does with what was said."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

import pytest

from engine.kit.text_graph import (
    BACKWARD,
    MERGE,
    NEW,
    REWRITE,
    Gradient,
    TextualGradientDescent,
    Variable,
    ask,
    call,
    improved,
    inside,
    mean,
    order,
    section,
    total,
)
from engine.parts import LanguageModel, Message, Reply


class Scripted(LanguageModel):
    """Says what it is told to, else the number of the call; keeps what it was asked."""

    def __init__(self, *texts: str):
        self.texts = list(texts)
        self.asked: list[Sequence[Message]] = []

    def reply(self, conversation: Sequence[Message], occasion: Sequence[int] = ()) -> Reply:
        self.asked.append(conversation)
        return Reply(self.texts.pop(0) if self.texts else f"reply {len(self.asked)}", 2)

    def count(self, system: str) -> int:
        return sum(conversation[0].text == system for conversation in self.asked)


def parameter(name: str = "x", grad: bool = True) -> Variable:
    return Variable(name, f"the text {name}", grad)


def answered(engine: LanguageModel, *texts: Variable, role: str = "an answer") -> Variable:
    (made,), _ = ask(engine, [texts], role)
    return made


def random_graph(seed: int) -> tuple[Variable, list[Variable]]:
    """A graph of every operator; what is not used by others is summed into the loss."""
    rng, engine = random.Random(seed), Scripted()
    nodes = [parameter(f"p{i}", rng.random() < 0.7) for i in range(4)]
    for i in range(14):
        chosen = rng.sample(nodes, rng.randint(1, min(3, len(nodes))))
        kind = rng.choice(["ask", "ask", "call", "total"])
        if kind == "ask":
            nodes.append(answered(engine, *chosen, role=f"answer {i}"))
        elif kind == "call":
            nodes.append(call(lambda *t: " ".join(t)[:40], "joins", chosen, f"joined {i}"))
        else:
            nodes.append(total(chosen, f"sum {i}"))
    used = {id(p) for node in nodes for p in node.predecessors}
    ends = [node for node in nodes if id(node) not in used and node.predecessors]
    return total(ends, "the loss"), nodes


@pytest.mark.parametrize("seed", range(12))
def test_every_text_comes_once_and_after_all_that_was_made_of_it(seed: int) -> None:
    loss, nodes = random_graph(seed)
    found = order(loss)
    assert found[0] is loss and len({id(v) for v in found}) == len(found)
    place = {id(v): i for i, v in enumerate(found)}
    for made in found:
        for cause in made.predecessors:
            assert place[id(made)] < place[id(cause)]
    reachable, stack = set(), [loss]
    while stack:
        node = stack.pop()
        if id(node) not in reachable:
            reachable.add(id(node))
            stack += node.predecessors
    assert set(place) == reachable and len(nodes) > 10


@pytest.mark.parametrize("seed", range(12))
def test_the_critic_is_asked_once_for_each_edge_into_a_text_that_was_made(seed: int) -> None:
    loss, _ = random_graph(seed)
    critic = Scripted()
    tokens = loss.backward(critic)
    edges = [
        (cause, made)
        for made in order(loss)
        if not made.role.startswith(("sum", "the loss"))
        for cause in made.predecessors
        if cause.requires_grad
    ]
    assert edges and critic.count(BACKWARD) == len(critic.asked) == len(edges) and tokens == 2 * len(edges)
    for made in order(loss):
        if not made.requires_grad:
            assert made.gradients == []


def test_a_long_chain_needs_no_recursion() -> None:
    node = parameter()
    for _ in range(5000):
        node = total([node])
    assert len(order(node)) == 5001


def test_two_answers_give_two_gradients_and_sums_add_none() -> None:
    x, engine = parameter(), Scripted()
    answers = [answered(engine, parameter("system", False), x) for _ in range(2)]
    losses = [answered(engine, parameter("judge", False), a, role="judgement") for a in answers]
    critic = Scripted()
    total([total(losses)]).backward(critic)
    assert len(x.gradients) == 2 and [len(a.gradients) for a in answers] == [1, 1]
    assert len(critic.asked) == 4
    assert losses[0].gradients == []


def test_a_second_backward_adds_unless_the_first_was_forgotten() -> None:
    x, engine = parameter(), Scripted()
    loss = answered(engine, parameter("judge", False), x)
    loss.backward(Scripted("one"))
    loss.backward(Scripted("one"))
    assert [g.text for g in x.gradients] == ["one", "one"], "the same criticism of two passes is there twice"
    x.zero_grad()
    assert x.gradients == [] and x.feedback == ""
    loss.backward(Scripted("three"))
    assert x.feedback == "three"


def test_whether_a_text_needs_a_gradient_follows_from_what_it_is_made_of() -> None:
    engine = Scripted()
    fixed = [parameter("a", False), parameter("b", False)]
    assert not answered(engine, *fixed).requires_grad and answered(engine, fixed[0], parameter()).requires_grad
    assert parameter().requires_grad and not total(fixed).requires_grad
    with pytest.raises(ValueError, match="so it requires one too"):
        Variable("y", "an answer", requires_grad=False, predecessors=[parameter()])
    critic = Scripted()
    answered(engine, *fixed).backward(critic)
    assert critic.asked == [] and fixed[0].gradients == []


def test_the_loss_is_asked_about_otherwise_than_what_has_feedback() -> None:
    engine, x = Scripted("an answer", "it is too long"), parameter("prompt")
    y = answered(engine, x, parameter("question", False))
    loss = answered(engine, parameter("judge", False), y, role="the judgement")
    critic = Scripted("say less", "ask for less")
    loss.backward(critic)
    first, second = (conversation[1].text for conversation in critic.asked)
    assert inside(first, "FEEDBACK") == [] and inside(first, "RESPONSE") == ["it is too long"]
    assert inside(first, "VARIABLE") == ["an answer"] and "no feedback" in inside(first, "AIM")[0]
    assert inside(second, "FEEDBACK") == ["say less"] and inside(second, "RESPONSE") == ["an answer"]
    assert inside(second, "SYSTEM_PROMPT") == ["prompt"] and inside(second, "ROLE") == ["the text prompt"]
    assert x.gradients[0].text == "ask for less" and "an answer" in x.gradients[0].context


def test_a_function_is_criticized_by_what_it_does() -> None:
    x = parameter("a  b")
    made = call(lambda text: text.upper(), "writes in capitals", [x], "loud text")
    critic = Scripted("softer")
    made.backward(critic)
    assert made.value == "A  B" and inside(critic.asked[0][1].text, "FUNCTION") == ["writes in capitals"]
    assert x.feedback == "softer"


def test_a_mean_merges_what_came_through_it_by_one_more_call() -> None:
    prompt, engine = parameter("prompt"), Scripted()
    answers, _ = ask(engine, [(prompt, parameter(f"q{i}", False)) for i in range(3)], "an answer")
    losses, _ = ask(engine, [(parameter("judge", False), a) for a in answers], "a judgement")
    aside = answered(engine, prompt, parameter("another", False))
    critic = Scripted()
    both = total([mean(losses), aside])
    both.backward(critic)
    assert critic.count(BACKWARD) == 3 + 3 + 1 and critic.count(MERGE) == 1
    merged = [g for g in prompt.gradients if g.context.count("<QUESTION>") == 3]
    assert len(prompt.gradients) == 2 and len(merged) == 1, "what did not come through it stays apart"
    assert len(inside(next(c[1].text for c in critic.asked if c[0].text == MERGE), "CRITICISM")) == 3
    alone = Scripted()
    mean(losses[:1]).backward(alone)
    assert alone.count(MERGE) == 0, "one is nothing to merge"


def test_gradients_stay_in_the_order_of_their_arrival() -> None:
    prompt, engine = parameter("prompt"), Scripted()
    losses, _ = ask(engine, [(prompt, parameter(f"q{i}", False)) for i in range(5)], "a judgement")
    runs = []
    for _ in range(2):
        prompt.zero_grad()
        total(losses).backward(Scripted())
        runs.append(list(prompt.gradients))
    assert runs[0] == runs[1] and [g.context.count("q") for g in runs[0]] == [1] * 5


def step(reply: str, **settings: object) -> tuple[Variable, TextualGradientDescent, Scripted]:
    x, engine = parameter("old"), Scripted(reply)
    x.gradients = [Gradient("too short", "a conversation")]
    return x, TextualGradientDescent(engine, [x], **settings), engine  # type: ignore[arg-type]


def test_a_step_takes_what_stands_between_the_tags() -> None:
    x, optimizer, engine = step(f"Here:\n<{NEW}>\nnew <b>text</b>\n</{NEW}> I hope.")
    (change,) = optimizer.step()
    assert (change.before, change.after, change.error) == ("old", "new <b>text</b>", "") and x.value == change.after
    assert engine.asked[0][0].text == REWRITE and optimizer.tokens == 2
    prompt = engine.asked[0][1].text
    assert inside(prompt, "VALUE") == ["old"] and inside(prompt, "CRITICISM") == ["too short"]
    assert inside(prompt, "CONVERSATION") == ["a conversation"]
    assert x.gradients, "a step forgets nothing"
    optimizer.zero_grad()
    assert x.gradients == []


@pytest.mark.parametrize("reply", ["new", f"<{NEW}> new", f"</{NEW}> new <{NEW}>", ""])
def test_a_reply_without_tags_changes_nothing_and_is_said(reply: str, caplog: pytest.LogCaptureFixture) -> None:
    x, optimizer, _ = step(reply)
    with caplog.at_level(logging.ERROR):
        (change,) = optimizer.step()
    assert x.value == "old" and change.after == "old" and "tags" in change.error
    assert [record.levelname for record in caplog.records] == ["ERROR"] and improved(reply) is None


def test_momentum_and_memory_show_the_last_ones_and_no_more() -> None:
    x, optimizer, engine = step("", momentum=2, memory=1, constraints=["Be brief."], examples=["a good one"])
    for i in range(4):
        engine.texts = [section(NEW, f"value {i}")]
        x.gradients = [Gradient(f"criticism {i}")]
        optimizer.step()
    prompt = engine.asked[-1][1].text
    assert inside(prompt, "EARLIER_VALUES") == ["value 0\nvalue 1"] and inside(prompt, "VALUE") == ["value 2"]
    assert inside(prompt, "EARLIER_CRITICISM") == ["criticism 2"] and inside(prompt, "CRITICISM") == ["criticism 3"]
    assert inside(prompt, "CONSTRAINTS") == ["Be brief."] and inside(prompt, "GOOD_EXAMPLES") == ["a good one"]
    first = engine.asked[0][1].text
    assert "EARLIER" not in first
    plain = step(section(NEW, "new"))[1]
    plain.step()
    assert plain.values == [[]] and plain.criticisms == [[]], "without a window nothing is kept"
