"""The decorators and the small types that parts share."""

from __future__ import annotations

import pytest
import torch

from engine import parts
from engine.catalog import KINDS
from engine.parts import Batch, Offer, Progress, Schedule, Technique, Value, info


def test_every_kind_has_its_decorator() -> None:
    for kind in KINDS:

        @getattr(parts, kind.replace("-", "_"))(paper="A Title", arxiv="1234.5678", precision="fp32")
        class SomeHTTPThing:
            pass

        said = info(SomeHTTPThing)
        assert (said.kind, said.id, said.name) == (kind, "some-http-thing", "Some HTTP Thing")
        assert said.papers == ({"title": "A Title", "arxiv": "1234.5678"},) and said.precision == "fp32"


def test_several_papers_and_an_id_of_ones_own() -> None:
    @parts.technique(id="mine", name="Mine", paper=[("One", "1"), ("Two", "2")], roles=("critic",))
    class Other(Technique):
        pass

    assert info(Other()).id == "mine" and info(Other).roles == ("critic",)
    assert [paper["title"] for paper in info(Other).papers] == ["One", "Two"]


def test_a_value_follows_its_schedule() -> None:
    class Half(Schedule):
        def factor(self, at: Progress) -> float:
            return 1 - 0.5 * at.fraction

    assert Value.of(3).at(Progress(7, 10)) == 3.0
    value = Value(4.0, Half())
    assert [value.at(Progress(step, 11)) for step in (0, 5, 10)] == [4.0, 3.0, 2.0]
    assert Value.of(value) is value

    class Holder(Technique):
        def __init__(self) -> None:
            self.strength = value
            self.plain = Value.of(1.0)

    assert Holder().values() == {"strength": value}, "only what changes is logged as a series"


def test_a_batch_gives_its_inputs_in_order() -> None:
    one, two = torch.ones(2, 3), torch.zeros(2, 3)
    batch = Batch({"a": one, "b": two}, None, torch.arange(2))
    module = torch.nn.Bilinear(3, 3, 1)
    assert torch.equal(batch.call(module), module(one, two))
    changed = batch.with_x(two)
    assert changed.x is two and changed.inputs["b"] is two and batch.x is one and len(changed) == 2


def test_offers() -> None:
    assert Offer("image", (3, 4, 5), "classes", 2).features == 60


def test_only_parts_have_information() -> None:
    assert not parts.is_part(torch.nn.Linear(1, 1))
    with pytest.raises(AttributeError):
        info(torch.nn.Linear(1, 1))
