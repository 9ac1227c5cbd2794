"""One good figure of each kind, and a few more: what the views are looked at, measured and tested with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from engine import figures as f

Figure = dict[str, Any]
DRAW = np.random.default_rng(4)

BEFORE = """Answer the question with one number.
Show how you came to it in a few short steps.

Question: {question}
Answer:"""
AFTER = """Answer the question with one whole number.
First write down what is given, then show how you came to it in short, numbered steps.
Check the last step.

Question: {question}
Answer:"""


def curve() -> Figure:
    steps = np.arange(0, 400, 4)
    made = []
    for name, level, speed in (("AdamW", 0.08, 60), ("Lion", 0.06, 45), ("SGD", 0.15, 110)):
        y = level + 2.2 * np.exp(-steps / speed) * (1 + 0.05 * DRAW.standard_normal(len(steps)))
        spread = 0.18 * y
        made.append(f.line(name, steps, y, y - spread, y + spread))
    return f.curve("Loss of three optimizers, mean and spread over seeds", *made, x="step", y=f.axis("loss", log=True))


def long_curve(points: int = 10_000) -> Figure:
    x = np.arange(points)
    return f.curve("A long run", f.line("loss", x, np.exp(-x / 2000) + 0.05 * DRAW.standard_normal(points)), x="step")


def path() -> Figure:
    t = np.linspace(0, 6 * math.pi, 300)
    r = np.exp(-t / 8)
    x, y = r * np.cos(t), r * np.sin(t)
    true, found = f.line("true", x, y), f.line("learned", x * 1.04 + 0.01, y * 0.97)
    return f.curve("Where the system goes", true, found, x="position", y="velocity", equal=True)


def scatter() -> Figure:
    made = []
    for name, at in (("class 0", (0, 0)), ("class 1", (1.4, 1.0)), ("class 2", (2.2, -0.6))):
        points = DRAW.normal(at, 0.42, (120, 2))
        made.append(f.dots(name, points[:, 0], points[:, 1]))
    return f.scatter("Embedding of the test samples", *made, x="first direction", y="second direction")


def coloured(points: int = 10_000) -> Figure:
    x, y = DRAW.standard_normal((2, points))
    values = np.exp(-(x**2 + y**2) / 2)
    return f.scatter("Samples by their density", f.dots("", x, y, values), x="x", y="y", colour="density", equal=True)


def archive() -> Figure:
    flops = np.array([1.2e6, 2.1e6, 3.4e6, 6.0e6, 9.5e6, 1.6e7])
    error = np.array([0.19, 0.121, 0.082, 0.055, 0.047, 0.043])
    others = DRAW.uniform(0.0, 1.0, (40, 2))
    names = [f"child {i}" for i in range(6)]
    opens = [{"model.hidden": [2 ** (4 + i)], "optimizer.lr": 0.001} for i in range(6)]
    cloud_x = 10 ** (6.0 + 1.2 * others[:, 0])
    cloud_y = 0.05 + 0.2 * others[:, 1] + 0.1 * (1 - others[:, 0])
    return f.scatter(
        "What accuracy costs",
        f.dots("Pareto front", flops, error, labels=names, opens=opens, joined=True),
        f.dots("tried", cloud_x, cloud_y),
        x=f.axis("operations for a sample", log=True),
        y="error",
    )


def bars() -> Figure:
    names = ["edges", "texture", "colour", "shape", "size"]
    made = []
    for name, level in (("before", 0.3), ("after", 0.5)):
        y = level + 0.35 * DRAW.random(5)
        made.append(f.line(name, names, y, y - 0.06, y + 0.06))
    return f.bars("What the answer rests on", *made, x="feature", y="importance")


def long_bars() -> Figure:
    names = [f"blocks.{i}.{part}.weight" for i in range(4) for part in ("attention.query", "mlp.first", "norm")]
    y = DRAW.normal(0.2, 0.5, len(names))
    return f.bars("Change of each layer", f.line("change", names, y), x="parameter", y="relative change")


def histogram() -> Figure:
    edges = np.linspace(-4, 6, 51)
    first, second = DRAW.normal(0, 1, 4000), DRAW.normal(1.8, 0.8, 3000)
    return f.histogram("Scores", f.counts("negative", first, edges), f.counts("positive", second, edges), x="score")


def heatmap() -> Figure:
    shares = [1 / 27, 1 / 9, 1 / 3, 1.0]
    z = np.array([[1.0, 0.82, 0.61, 0.44], [0.82, 1.0, 0.85, 0.7], [0.61, 0.85, 1.0, 0.91], [0.44, 0.7, 0.91, 1.0]])
    side = f.axis("share of the budget", values=shares)
    return f.heatmap("Rank correlation between budgets", z, side, side, colour="correlation", diverging=True)


def confusion() -> Figure:
    digits = [str(d) for d in range(10)]
    z = np.round(np.eye(10) * 40 + DRAW.integers(0, 4, (10, 10)))
    guess, truth = f.axis("answer", values=digits), f.axis("truth", values=digits)
    return f.heatmap("Confusion", z, guess, truth, colour="samples")


def large_map(side: int = 200) -> Figure:
    at = np.linspace(-3, 3, side)
    x, y = np.meshgrid(at, at)
    z = np.sin(2 * x) * np.cos(y) + 0.3 * x
    return f.heatmap("A large map", z, f.axis("x", values=at), f.axis("y", values=at))


def surface(side: int = 60) -> Figure:
    at = np.linspace(-2, 2, side)
    x, y = np.meshgrid(at, at)
    z = np.log1p((1 - x) ** 2 + 8 * (y - x**2) ** 2)
    first, second = f.axis("first direction", values=at), f.axis("second direction", values=at)
    return f.surface("Loss along two random directions", z, first, second, colour="log loss")


def field() -> Figure:
    at = np.linspace(0, 1, 64)
    x, y = np.meshgrid(at, at)
    truth = np.sin(math.pi * x) * np.sin(2 * math.pi * y)
    answer = truth + 0.06 * np.sin(6 * math.pi * x) * y
    return f.image(
        "Solution of the Poisson problem",
        f.panel("answer", answer), f.panel("truth", truth), f.panel("error", answer - truth, diverging=True),
        shared=True, extent=(0, 1, 0, 1), x="x", y="y",
    )  # fmt: skip


def design() -> Figure:
    at = np.linspace(-1, 1, 120)[None], np.linspace(-1, 1, 40)[:, None]
    beam = 1 / (1 + np.exp(-14 * (0.35 - np.abs(np.abs(at[1]) - 0.8 * (1 - at[0] ** 2)))))
    return f.image("Stiffest beam", f.panel("", beam), colour="density")


def image_grid() -> Figure:
    images = []
    for number in range(24):
        at = np.linspace(-1, 1, 16)
        x, y = np.meshgrid(at, at)
        turn = number * 0.4
        images.append(np.exp(-12 * (x * np.cos(turn) + y * np.sin(turn)) ** 2) * (x**2 + y**2 < 0.8))
    return f.image_grid("Generated samples", images, captions=[f"{n % 10}" for n in range(24)])


def graph() -> Figure:
    groups = np.repeat([0, 1, 2], 12)
    edges = []
    for i in range(36):
        for j in range(i):
            near = groups[i] == groups[j]
            if DRAW.random() < (0.3 if near else 0.02):
                edges.append([i, j, float(DRAW.uniform(0.2, 1.0) if near else DRAW.uniform(-0.6, 0.3))])
    names = [("alpha", "beta", "gamma")[group] for group in groups]
    nodes = f.nodes_of(f.layout(36, edges), groups=names)
    return f.graph("Three communities, and what the explanation keeps", nodes, edges, marked=[0, 12, 24])


def causes() -> Figure:
    names = ["rain", "sprinkler", "wet grass", "slippery", "season", "dew"]
    edges = [[4, 0, 0.9], [4, 1, -0.7], [0, 2, 0.8], [1, 2, 0.6], [2, 3, 1.0], [5, 2, 0.25]]
    places = [[0, 1], [2, 1], [1, 0], [1, -1], [1, 2], [2.4, 0.2]]
    values = [0.2, 0.5, 0.9, 0.7, 0.1, 0.3]
    return f.graph("Learned causes", f.nodes_of(places, names, values), edges, directed=True, colour="strength")


def large_graph(count: int = 500) -> Figure:
    places = DRAW.random((count, 2))
    edges = []
    for i in range(count):
        away = np.hypot(*(places - places[i]).T)
        edges += [[i, int(j), float(np.exp(-20 * away[j]))] for j in np.argsort(away)[1:5]]
    return f.graph("A large graph", f.nodes_of(places, values=places[:, 0]), edges)


def tour() -> Figure:
    places = DRAW.random((30, 2))
    order = [0]
    while len(order) < 30:
        away = np.hypot(*(places - places[order[-1]]).T)
        away[order] = np.inf
        order.append(int(away.argmin()))
    return f.tour("Tour of length 5.31, 4 % above the best", places, order, marked=[0])


def quiver() -> Figure:
    x, y = np.meshgrid(np.linspace(-2, 2, 18), np.linspace(-2, 2, 18))
    u, v = -y - 0.2 * x, x - 0.2 * y
    return f.quiver("Learned vector field", x.ravel(), y.ravel(), u.ravel(), v.ravel(), axes={"x": "x", "y": "y"})


def boxes() -> Figure:
    image = np.full((3, 60, 90), 0.85) + 0.03 * DRAW.standard_normal((3, 60, 90))
    image[:, 12:36, 10:30] = np.array([0.2, 0.45, 0.7])[:, None, None]
    image[:, 28:52, 48:80] = np.array([0.85, 0.5, 0.2])[:, None, None]
    found = [f.box(9, 11, 22, 26, "door", 0.97), f.box(47, 27, 34, 26, "window", 0.88)]
    found.append(f.box(52, 30, 12, 10, "door", 0.31))
    return f.boxes("Found in the picture", found, np.clip(image, 0, 1))


def points(count: int = 2000) -> Figure:
    t = DRAW.uniform(0, 3 * math.pi, count)
    roll = np.stack([t * np.cos(t), DRAW.uniform(0, 15, count), t * np.sin(t)], 1)
    return f.points("Swiss roll", roll + 0.2 * DRAW.standard_normal((count, 3)), values=t, colour="place on the roll")


def mesh(side: int = 24) -> Figure:
    u, v = np.meshgrid(np.linspace(0, 2 * math.pi, side), np.linspace(0, 2 * math.pi, side), indexing="ij")
    ring = (1 + 0.4 * np.cos(v)) * np.cos(u), (1 + 0.4 * np.cos(v)) * np.sin(u), 0.4 * np.sin(v)
    vertices = np.stack([each.ravel() for each in ring], 1)
    faces = []
    for i in range(side - 1):
        for j in range(side - 1):
            a = i * side + j
            faces += [[a, a + side, a + 1], [a + 1, a + side, a + side + 1]]
    return f.points("Signed distance on a torus", vertices, faces, np.sin(3 * u).ravel(), colour="distance")


def text() -> Figure:
    return f.texts("The prompt before and after", ("at the start", BEFORE), ("after 12 steps", AFTER), difference=True)


def plain_text() -> Figure:
    return f.text("A sample", "def mean(values):\n    total = sum(values)\n    return total / len(values)\n")


def table() -> Figure:
    names = ["grid", "random", "hyperband", "BOHB"]
    rows = []
    for i, name in enumerate(names):
        rows.append([name, i + 3, 0.9 + 0.02 * i, 12_500 * (i + 1), None if i == 1 else 10.0 ** -(i + 2)])
    return f.table("Searches compared", ["search", "seeds", "accuracy", "steps", "p"], rows)


EXAMPLES: dict[str, Callable[[], Figure]] = {
    made.__name__.replace("_", "-"): made
    for made in (
        curve, path, scatter, archive, coloured, bars, long_bars, histogram, heatmap, confusion, large_map, surface,
        field, design, image_grid, graph, causes, large_graph, tour, quiver, boxes, points, mesh, text, plain_text,
        table, long_curve,
    )
}  # fmt: skip
