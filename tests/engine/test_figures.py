"""Figures as data: what the constructors make is valid and plain; what is wrong is said with the field's name."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import figures
from engine.figures import (
    KINDS,
    axis,
    bars,
    box,
    boxes,
    counts,
    curve,
    dots,
    graph,
    heatmap,
    histogram,
    image,
    image_grid,
    layout,
    line,
    node,
    nodes_of,
    panel,
    points,
    problems,
    quiver,
    scatter,
    surface,
    table,
    texts,
    tour,
)

Z = np.arange(6.0).reshape(2, 3)
RGB = torch.rand(3, 4, 5)
MADE: dict[str, dict[str, Any]] = {
    "curve": curve(
        "Loss", line("a", range(3), torch.ones(3), np.zeros(3), np.ones(3)), x="step", y=axis("l", log=True)
    ),
    "bars": bars("Ratios", line("a", ["one", "two"], [1, 2.5])),
    "scatter": scatter(
        "Archive",
        dots("a", [0, 1], [1, 2], [0.5, None], ["p", "q"], [{"optimizer.lr": 0.1}, None], joined=True),
        colour="age",
        equal=True,
    ),
    "histogram": histogram("Weights", counts("w", torch.randn(100), 10), x="weight"),
    "heatmap": heatmap("Correlation", Z, x=axis("b", values=[1, 2, 3]), y=axis("c", values=["u", "v"]), diverging=True),
    "surface": surface("Loss", torch.from_numpy(Z), colour="loss"),
    "image": image("Field", panel("u", Z), panel("e", Z, diverging=True), panel("rgb", RGB), extent=(0, 1, 0, 2)),
    "image-grid": image_grid("Samples", torch.rand(4, 3, 5, 5), captions=torch.arange(4)),
    "graph": graph("G", [node(0, 0, "a", 1.0), node(1, 1, group=2)], torch.tensor([[0, 1]]), directed=True, marked=[1]),
    "quiver": quiver("Field", [0, 1], [0, 1], [1, 1], [0, np.nan], axes={"x": "x", "y": axis("y")}),
    "boxes": boxes("Found", [box(1, 2, 3, 4, "cat", 0.9)], RGB),
    "points": points("Cloud", torch.rand(4, 3), [[0, 1, 2], [1, 2, 3]], [1, 2, 3, 4]),
    "text": texts("Prompts", ("before", "a b"), ("after", "a c"), difference=True),
    "table": table("Results", ["name", "value"], [["a", 1.5], ["b", None]]),
}


def test_there_is_a_constructor_for_every_kind() -> None:
    assert set(MADE) == set(KINDS) and all(figure["kind"] == kind for kind, figure in MADE.items())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_made_is_valid_and_plain(kind: str) -> None:
    assert problems(MADE[kind]) == []
    back = json.loads(json.dumps(MADE[kind]))
    assert problems(back) == [] and json.dumps(back) == json.dumps(MADE[kind])


def test_the_numbers_are_those_that_were_given() -> None:
    assert MADE["curve"]["series"][0] == {
        "name": "a", "x": [0, 1, 2], "y": [1.0] * 3, "low": [0.0] * 3, "high": [1.0] * 3,
    }  # fmt: skip
    assert MADE["curve"]["y"] == {"label": "l", "log": True} and MADE["curve"]["x"] == {"label": "step"}
    assert MADE["surface"]["z"] == Z.tolist() and MADE["image"]["panels"][2]["z"] == RGB.tolist()
    series = MADE["histogram"]["series"][0]
    assert sum(series["counts"]) == 100 and len(series["edges"]) == 11


def test_counts_leave_out_what_is_not_finite() -> None:
    made = counts("w", [0.0, 1.0, np.nan, np.inf], [0, 0.5, 1])
    assert made["counts"] == [1, 1] and made["edges"] == [0, 0.5, 1]


def test_a_tour_is_a_graph_through_all_places_and_back() -> None:
    made = tour("Shortest", [[0, 0], [1, 0], [1, 1]], torch.tensor([2, 0, 1]), marked=[2])
    assert problems(made) == [] and made["edges"] == [[2, 0], [0, 1], [1, 2]] and made["directed"]
    assert tour("Open", [[0, 0], [1, 0], [1, 1]], [2, 0, 1], closed=False)["edges"] == [[2, 0], [0, 1]]
    assert tour("Lone", [[0, 0]], [0])["edges"] == [[0, 0]]


def test_a_layout_puts_neighbours_near_and_repeats_itself() -> None:
    edges = [[i, j] for block in (0, 5) for i in range(block, block + 5) for j in range(i)if j >= block]  # fmt: skip
    edges.append([0, 5])
    places = np.array(layout(10, edges))
    assert places.tolist() == layout(10, torch.tensor(edges))
    away = np.linalg.norm(places[:, None] - places[None], axis=-1)
    assert away[:5, :5].max() < away[1:5, 6:].min()
    assert problems(graph("Two groups", nodes_of(places, groups=[0] * 5 + [1] * 5), edges)) == []


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("curve", {"series": []}, "series is empty."),
    ("curve", {"series": None}, "series must be a list, not None."),
    ("curve", {"series": [{"name": "a", "x": [1, 2], "y": [1]}]}, "series[0].y has 1 number, but series[0].x has 2."),
    ("curve", {"series": [{"x": [1], "y": ["a"]}]}, "series[0].y must be a list of numbers; number 0 is 'a'."),
    ("curve", {"series": [{"x": [1]}]}, "series[0].y is missing."),
    ("curve", {"series": [{"x": [1], "y": [1], "low": [0]}]}, "a band needs both"),
    ("curve", {"x": {"lable": "step"}}, "x.lable is not known here. Did you mean 'label'?"),
    ("curve", {"y": {"log": 1}}, "y.log must be true or false, not 1."),
    ("curve", {"title": 3}, "title must be words, not 3."),
    ("curve", {"serie": []}, "serie is not known here. Did you mean 'series'?"),
    ("scatter", {"series": [{"x": [1], "y": [1], "values": [1, 2]}]}, "series[0].values has 2 numbers"),
    ("scatter", {"series": [{"x": [1], "y": [1], "opens": [3]}]}, "series[0].opens[0] must be changes"),
    ("bars", {"series": [{"x": ["a", "b"], "y": [1]}]}, "series[0].y has 1 number, but series[0].x has 2."),
    ("histogram", {"series": [{"edges": [0, 1, 1], "counts": [1, 1]}]}, "edges must be two numbers or more that grow"),
    ("histogram", {"series": [{"edges": [0, 1], "counts": [1, 1]}]}, "counts has 2 numbers, but the space between"),
    ("heatmap", {"z": [[1, 2], [3]]}, "z must be rows of as many numbers each: its rows have 1 to 2."),
    ("heatmap", {"z": [1, 2]}, "z must be rows of numbers, not 2."),
    ("heatmap", {"x": {"values": [1, 2]}}, "x.values has 2 places, but there are 3."),
    ("image", {"panels": [{"name": "u"}]}, "panels[0].z is missing."),
    ("image", {"extent": [0, 1]}, "extent has 2 numbers"),
    ("image", {"extent": [0, 0, 0, 1]}, "extent must be finite and not empty"),
    ("image-grid", {"images": [[["a"]]]}, "images[0] must be rows"),
    ("image-grid", {"captions": list("abcdef")}, "captions must be a list of at most 4"),
    ("graph", {"edges": [[0, 2]]}, "edges points at 2, but the nodes are numbered from 0 to 1."),
    ("graph", {"edges": [[0, 1], [0, 1, 2, 3]]}, "edges[1] must be [from, to]"),
    ("graph", {"edges": 3}, "edges must be a list, not 3."),
    ("graph", {"marked": [0.5]}, "marked points at 0.5"),
    ("graph", {"nodes": [{"x": 0}]}, "nodes[0].y is missing."),
    ("quiver", {"v": [1]}, "v has 1 number, but x has 2."),
    ("boxes", {"boxes": [{"x": 0, "y": 0, "w": -1, "h": 1}]}, "boxes[0] has a negative size."),
    ("points", {"vertices": [[0, 0]]}, "vertices must be a list of lists of 3 numbers."),
    ("points", {"faces": [[0, 1, 9]]}, "faces points at 9"),
    ("text", {"columns": [{"title": "a", "text": "b"}]}, "difference is between two columns; there are 1."),
    ("text", {"columns": [{"title": "a", "text": 3}]}, "columns[0].text must be words."),
    ("table", {"rows": [[1]]}, "rows[0] has 1 cell, but there are 2 columns."),
]


@pytest.mark.parametrize(("kind", "change", "said"), WRONG)
def test_what_is_wrong_is_said_with_its_field(kind: str, change: dict[str, Any], said: str) -> None:
    found = problems({**MADE[kind], **change})
    assert any(said in sentence for sentence in found), found
    assert all(sentence.endswith((".", "?")) for sentence in found)


def test_an_unknown_kind_and_no_figure_at_all() -> None:
    (found,) = problems({"kind": "heat-map"})
    assert "Did you mean 'heatmap'?" in found
    assert problems(3) and problems({}) and problems({"kind": ["curve"]})


def test_a_figure_too_large_to_look_at_is_refused() -> None:
    (found,) = problems(curve("long", line("a", range(1_100_000), range(1_100_000))))
    assert "2,200,000 numbers" in found and "Thin it" in found


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "y", "z", "name", "label"]), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_nothing_that_stands_in_a_field_raises(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(KINDS)))
    field = data.draw(st.sampled_from(KINDS[kind][1]))
    found = problems({**MADE[kind], field: data.draw(JUNK)})
    assert all(isinstance(sentence, str) for sentence in found)


def test_plain_refuses_what_no_figure_holds() -> None:
    with pytest.raises(TypeError, match="no object"):
        figures.plain({"a": object()})
