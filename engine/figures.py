"""Figures as data: what kinds there are, what each is made of, and what is wrong with one. No torch, no Qt.

A figure is a plain dict, {"kind", "title", ...}, that goes through JSON: a probe, a task, a study or a search makes it,
the log keeps it, the window draws it by its kind. Nobody builds it by hand; the functions here do, from lists, NumPy
arrays or tensors:

    curve("Loss", line("train", steps, losses), x="step", y="loss")
    scatter("Archive", dots("front", flops, errors, opens=changes), x=axis("FLOP", log=True), y="error")
    heatmap("Correlation", z, x=axis("budget", values=shares), y=axis("budget", values=shares), diverging=True)
    image("Field", panel("answer", u), panel("error", u - v, diverging=True), extent=(0, 1, 0, 1))
    tour("Shortest found", places, order)

`problems(figure)` says in sentences that name the field what is wrong with it; nothing where it can be drawn. Numbers
that are missing or not finite are gaps. An axis is {"label", "log"?}, and {"values"} where a map has places of its own.
"more" holds whatever else a program wants of a figure; it is not drawn.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Figure = dict[str, Any]
Axis = str | dict[str, Any]

MOST_NUMBERS = 2_000_000  # of one figure: more takes the window, and the log, longer than anybody looks at it
COMMON = ("kind", "title", "more")

# -- making them -------------------------------------------------------------------------------------------------------


def axis(label: str = "", *, log: bool = False, values: Any = None) -> dict[str, Any]:
    """An axis: its words with the unit, whether it is logarithmic, and of a map the places (numbers or words)."""
    return {"label": label, **({"log": True} if log else {}), **({} if values is None else {"values": plain(values)})}


def line(name: str, x: Any, y: Any, low: Any = None, high: Any = None) -> dict[str, Any]:
    """One series of `curve` or of `bars` (there x are words), with a band or whiskers from low to high."""
    return _given(name=name, x=x, y=y, low=low, high=high)


def dots(
    name: str, x: Any, y: Any, values: Any = None, labels: Any = None, opens: Any = None, *, joined: bool = False
) -> dict[str, Any]:
    """One series of `scatter`: coloured by `values`, named by `labels`, joined in order by a line.

    `opens`: for each point the changes {path: value} that make its recipe from that of the run (None
    takes away what stands at a path), or None.
    """
    return {**_given(name=name, x=x, y=y, values=values, labels=labels, opens=opens), **_flags(line=joined)}


def counts(name: str, values: Any, edges: Any = 30) -> dict[str, Any]:
    """One series of `histogram`: how many of the values that are finite lie between the edges (or in so many bins)."""
    values = np.asarray(plain(values), dtype=np.float64).ravel()
    number, at = np.histogram(values[np.isfinite(values)], edges)
    return _given(name=name, edges=at, counts=number)


def curve(title: str, *series: dict[str, Any], x: Axis = "", y: Axis = "", equal: bool = False) -> Figure:
    """Lines over x, made by `line`. `equal`: both axes in one scale (a path in the plane)."""
    return {**_figure("curve", title, x=_axis(x), y=_axis(y), series=list(series)), **_flags(equal=equal)}


def bars(title: str, *series: dict[str, Any], x: Axis = "", y: Axis = "") -> Figure:
    """Bars over words, made by `line`; several series stand beside each other."""
    return _figure("bars", title, x=_axis(x), y=_axis(y), series=list(series))


def scatter(
    title: str, *series: dict[str, Any], x: Axis = "", y: Axis = "", colour: Axis | None = None, equal: bool = False
) -> Figure:
    """Points, made by `dots`. `colour` is the axis of their values."""
    figure = _figure("scatter", title, x=_axis(x), y=_axis(y), colour=_axis(colour), series=list(series))
    return {**figure, **_flags(equal=equal)}


def histogram(title: str, *series: dict[str, Any], x: Axis = "", y: Axis = "count") -> Figure:
    """Counts between edges, made by `counts`."""
    return _figure("histogram", title, x=_axis(x), y=_axis(y), series=list(series))


def heatmap(
    title: str, z: Any, x: Axis = "", y: Axis = "", *, colour: Axis | None = None, diverging: bool = False
) -> Figure:
    """A matrix in colours; its first row lies at the first value of y. `diverging`: zero is the middle."""
    figure = _figure("heatmap", title, x=_axis(x), y=_axis(y), colour=_axis(colour), z=z)
    return {**figure, **_flags(diverging=diverging)}


def surface(
    title: str, z: Any, x: Axis = "", y: Axis = "", *, colour: Axis | None = None, diverging: bool = False
) -> Figure:
    """A function of two numbers, as a map with isolines."""
    return {**heatmap(title, z, x, y, colour=colour, diverging=diverging), "kind": "surface"}


def panel(name: str, z: Any, *, diverging: bool = False) -> dict[str, Any]:
    """One picture of `image`: rows of numbers, or three such colour planes between 0 and 1."""
    return {**_given(name=name, z=z), **_flags(diverging=diverging)}


def image(
    title: str,
    *panels: dict[str, Any],
    shared: bool = False,
    extent: Sequence[float] | None = None,
    x: Axis | None = None,
    y: Axis | None = None,
    colour: Axis | None = None,
) -> Figure:
    """Pictures or fields side by side, made by `panel`. `shared`: one range of colours for all that do not diverge.

    Without `extent` the first row is at the top, as in a picture. With extent (x0, x1, y0, y1) the first row is at y0.
    """
    figure = _figure("image", title, panels=list(panels), x=_axis(x), y=_axis(y), colour=_axis(colour), extent=extent)
    return {**figure, **_flags(shared=shared)}


def image_grid(title: str, images: Any, captions: Any = ()) -> Figure:
    """Many small pictures, [h][w] or [3][h][w] each, with a caption below."""
    return _figure("image-grid", title, images=images, captions=[str(each) for each in plain(captions)])


def node(
    x: float, y: float, label: str | None = None, value: float | None = None, group: int | None = None
) -> dict[str, Any]:
    """A node of `graph` at a place: coloured by its value, or by its group."""
    return _given(x=float(x), y=float(y), label=label, value=value, group=group)


def graph(
    title: str,
    nodes: Sequence[dict[str, Any]],
    edges: Any = (),
    *,
    directed: bool = False,
    marked: Any = (),
    colour: Axis | None = None,
    equal: bool = True,
) -> Figure:
    """Nodes, made by `node` or `nodes_of`, and edges [from, to, weight?]; marked ones are ringed."""
    figure = _figure("graph", title, nodes=list(nodes), edges=edges, marked=marked, colour=_axis(colour))
    return {**figure, **_flags(directed=directed), **({} if equal else {"equal": False})}


def nodes_of(positions: Any, labels: Any = None, values: Any = None, groups: Any = None) -> list[dict[str, Any]]:
    """The nodes of `graph` from columns: positions [n, 2], and what is known of labels, values and groups."""
    positions, labels, values, groups = (plain(column) for column in (positions, labels, values, groups))
    columns = [column or [None] * len(positions) for column in (labels, values, groups)]
    return [node(x, y, *what) for (x, y), *what in zip(positions, *columns, strict=True)]


def layout(count: int, edges: Any, seed: int = 0) -> list[list[float]]:
    """Places for the nodes of a graph that has none: near to each other where they are joined. The same every time."""
    import networkx

    made = networkx.Graph()
    made.add_nodes_from(range(count))
    made.add_weighted_edges_from(
        (int(e[0]), int(e[1]), abs(float(e[2])) if len(e) > 2 else 1.0) for e in plain(edges) if e[0] != e[1]
    )
    found = networkx.spring_layout(made, seed=seed, iterations=100)
    return [[float(v) for v in found[i]] for i in range(count)]


def tour(title: str, places: Any, order: Any, labels: Any = None, *, closed: bool = True, marked: Any = ()) -> Figure:
    """A way through places [n, 2], in this order of their numbers and, where it is closed, back to the first."""
    order = [int(i) for i in plain(order)]
    legs = [[a, b] for a, b in zip(order, [*order[1:], *(order[:1] if closed else [])], strict=False)]
    return graph(title, nodes_of(places, labels), legs, directed=True, marked=marked)


def quiver(title: str, x: Any, y: Any, u: Any, v: Any, *, axes: Mapping[str, Axis] | None = None) -> Figure:
    """Arrows (u, v) at places (x, y), coloured by their length."""
    named = {side: _axis(each) for side, each in axes.items()} if axes else None
    return _figure("quiver", title, x=x, y=y, u=u, v=v, axes=named)


def box(x: float, y: float, w: float, h: float, label: str | None = None, score: float | None = None) -> dict[str, Any]:
    """A box of `boxes`: its left upper corner and its sizes, in pixels of the picture."""
    return _given(x=float(x), y=float(y), w=float(w), h=float(h), label=label, score=score)


def boxes(title: str, boxes: Sequence[dict[str, Any]], image: Any = None) -> Figure:
    """Boxes, made by `box`, over a picture."""
    return _figure("boxes", title, image=image, boxes=list(boxes))


def points(title: str, vertices: Any, faces: Any = None, values: Any = None, *, colour: Axis | None = None) -> Figure:
    """Points in space, or a mesh of triangles between them, coloured by a value for each vertex."""
    return _figure("points", title, vertices=vertices, faces=faces, values=values, colour=_axis(colour))


def text(title: str, text: str) -> Figure:
    """A text."""
    return _figure("text", title, text=text)


def texts(title: str, *columns: tuple[str, str], difference: bool = False) -> Figure:
    """Texts with their titles, side by side; with `difference` the second one's words are marked against the first."""
    figure = _figure("text", title, columns=[{"title": head, "text": body} for head, body in columns])
    return {**figure, **_flags(difference=difference)}


def table(title: str, columns: Sequence[str], rows: Any) -> Figure:
    """Rows of words and numbers under named columns."""
    return _figure("table", title, columns=list(columns), rows=rows)


def plain(value: Any) -> Any:
    """NumPy's and torch's values as lists and numbers, anywhere in a figure."""
    if isinstance(value, str | bool | int | float | None):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Iterable):
        return [plain(each) for each in value]
    raise TypeError(f"A figure holds numbers, words, lists and dicts, no {type(value).__name__}.")


def _figure(kind: str, title: str, **content: Any) -> Figure:
    return {"kind": kind, "title": title, **_given(**content)}


def _given(**content: Any) -> dict[str, Any]:
    return {name: plain(value) for name, value in content.items() if value is not None}


def _flags(**flags: bool) -> dict[str, bool]:
    return {name: True for name, on in flags.items() if on}


def _axis(given: Axis | None) -> dict[str, Any] | None:
    return {"label": given} if isinstance(given, str) else given


# -- checking them -----------------------------------------------------------------------------------------------------


def problems(figure: Any) -> list[str]:
    """What is wrong with a figure, a sentence each that names the field; none where it can be drawn."""
    if not isinstance(figure, Mapping):
        return [f"A figure is a dict with a kind, not {_said(figure)}."]
    kind = figure.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        near = _near(str(kind), KINDS)
        return [f"kind: {_said(kind)} is no kind of figure.{near} There are {', '.join(KINDS)}."]
    check = _Check()
    check.fields(figure, "", KINDS[kind][1])
    if not isinstance(figure.get("title", ""), str):
        check.say("title", f"must be words, not {_said(figure['title'])}.")
    KINDS[kind][0](check, figure)
    if not check.found and check.numbers > MOST_NUMBERS:
        check.found.append(
            f"The figure holds {check.numbers:,} numbers; at most {MOST_NUMBERS:,} can be drawn. Thin it."
        )
    return check.found


class _Check:
    """Gathers sentences about one figure. Every `take` returns what it looked at, or None where it said something."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.numbers = 0

    def say(self, path: str, sentence: str) -> None:
        self.found.append(f"{path} {sentence}")

    def fields(self, what: Mapping[str, Any], path: str, known: Sequence[str]) -> None:
        """Says which fields are not known here: a misspelt one would silently not be drawn."""
        every = known if path else (*COMMON, *known)
        for name in what:
            if name not in every:
                self.say(f"{path}.{name}" if path else str(name), f"is not known here.{_near(str(name), every)}")

    def axis(self, figure: Mapping[str, Any], name: str, path: str = "", values: int | None = None) -> None:
        """An axis; `values` is how many places it may name."""
        path = f"{path}.{name}" if path else name
        given = figure.get(name, {})
        if not isinstance(given, Mapping):
            self.say(path, f'must be an axis like {{"label": "step"}}, not {_said(given)}.')
            return
        self.fields(given, path, ("label", "log", "values") if values is not None else ("label", "log"))
        if not isinstance(given.get("label", ""), str):
            self.say(f"{path}.label", f"must be words, not {_said(given['label'])}.")
        self.flag(given, "log", path)
        if values is not None and "values" in given:
            self.places(given["values"], f"{path}.values", values)

    def places(self, given: Any, path: str, count: int) -> None:
        if not _is_list(given):
            self.say(path, f"must be a list, not {_said(given)}.")
        elif len(given) != count:
            self.say(path, f"has {len(given)} places, but there are {count}.")
        elif not all(isinstance(each, str) for each in given):
            self.row(given, path)

    def flag(self, what: Mapping[str, Any], name: str, path: str = "") -> None:
        if not isinstance(what.get(name, False), bool):
            self.say(f"{path}.{name}" if path else name, f"must be true or false, not {_said(what[name])}.")

    def flags(self, what: Mapping[str, Any], *names: str) -> None:
        for name in names:
            self.flag(what, name)

    def entries(self, what: Mapping[str, Any], name: str, path: str = "", least: int = 0) -> Sequence[Any]:
        """A list that must be there, with so many entries."""
        path = f"{path}.{name}" if path else name
        given: Any = what.get(name)
        if name not in what:
            self.say(path, "is missing.")
        elif not _is_list(given):
            self.say(path, f"must be a list, not {_said(given)}.")
        elif len(given) < least:
            self.say(path, "is empty." if not len(given) else f"needs {least} entries or more; it has {len(given)}.")
        else:
            return given
        return []

    def each(self, what: Mapping[str, Any], name: str, known: Sequence[str], least: int = 0) -> list[Mapping[str, Any]]:
        """A list of dicts, each with these fields."""
        good = []
        for number, each in enumerate(self.entries(what, name, least=least)):
            if isinstance(each, Mapping):
                self.fields(each, f"{name}[{number}]", known)
                good.append(each)
            else:
                self.say(f"{name}[{number}]", f"must be a dict, not {_said(each)}.")
        return good

    def row(self, given: Any, path: str, length: int | None = None, other: str = "") -> np.ndarray | None:
        """A list of numbers, as long as another one."""
        values = _numbers(given)
        if values is None or values.ndim != 1:
            self.say(path, f"must be a list of numbers{_first_wrong(given)}.")
            return None
        self.numbers += values.size
        if length is not None and len(values) != length:
            self.say(path, f"has {_many(len(values), 'number')}, but {other or 'there'} has {length}.")
            return None
        return values

    def need(self, what: Mapping[str, Any], name: str, path: str, length: int | None = None, other: str = "") -> Any:
        if name not in what:
            self.say(f"{path}.{name}" if path else name, "is missing.")
            return None
        return self.row(what[name], f"{path}.{name}" if path else name, length, other)

    def number(self, what: Mapping[str, Any], name: str, path: str, needed: bool = False) -> None:
        if name not in what:
            if needed:
                self.say(f"{path}.{name}", "is missing.")
        elif not _is_number(what[name]):
            self.say(f"{path}.{name}", f"must be a number, not {_said(what[name])}.")

    def words(self, given: Any, path: str, length: int, other: str) -> None:
        if not _is_list(given):
            self.say(path, f"must be a list of words, not {_said(given)}.")
        elif len(given) != length:
            self.say(path, f"has {len(given)} entries, but {other} has {length}.")

    def matrix(self, given: Any, path: str, coloured: bool = False) -> np.ndarray | None:
        """Rows of equal length, or (where it may be coloured) three planes of such."""
        values = _numbers(given)
        if values is None:
            rows = [len(row) for row in given if _is_list(row)] if _is_list(given) else []
            ragged = f": its rows have {min(rows)} to {max(rows)}" if rows and min(rows) != max(rows) else ""
            self.say(path, f"must be rows of as many numbers each{ragged or _first_wrong(given)}.")
            return None
        planes = values.ndim == 3 and (3 in (values.shape[0], values.shape[2]) or values.shape[0] == 1)
        if not (values.ndim == 2 or (coloured and planes)) or not values.size:
            wanted = "rows of numbers, or three planes of them," if coloured else "rows of numbers,"
            shape = " x ".join(map(str, values.shape))
            self.say(path, f"must be {wanted} not {shape}.")
            return None
        self.numbers += values.size
        return values

    def rows(self, given: Any, path: str, width: int) -> np.ndarray | None:
        """A list of lists of so many numbers."""
        values = _numbers(given)
        if values is not None and not values.size:
            return values.reshape(0, width)
        if values is None or values.ndim != 2 or values.shape[1] != width:
            self.say(path, f"must be a list of lists of {width} numbers.")
            return None
        self.numbers += values.size
        return values

    def indices(self, values: np.ndarray | None, path: str, count: int, of: str) -> None:
        """Whole numbers that point into a list."""
        if values is None or not values.size:
            return
        whole = np.isfinite(values) & (values == np.floor(values)) & (values >= 0) & (values < count)
        if not whole.all():
            self.say(path, f"points at {values[~whole].flat[0]:g}, but {of} are numbered from 0 to {count - 1}.")


def _series(check: _Check, figure: Mapping[str, Any], known: Sequence[str]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for number, series in enumerate(check.each(figure, "series", ("name", *known), least=1)):
        path = f"series[{number}]"
        if not isinstance(series.get("name", ""), str):
            check.say(f"{path}.name", f"must be words, not {_said(series['name'])}.")
        yield path, series


def _axes(check: _Check, figure: Mapping[str, Any], *more: str) -> None:
    for name in ("x", "y", *more):
        check.axis(figure, name)


def _bands(check: _Check, series: Mapping[str, Any], path: str, length: int) -> None:
    for name in ("low", "high"):
        if name in series:
            check.row(series[name], f"{path}.{name}", length, f"{path}.x")
    if ("low" in series) != ("high" in series):
        check.say(path, "has one of low and high; a band needs both.")


def _curve(check: _Check, figure: Mapping[str, Any]) -> None:
    _axes(check, figure)
    check.flags(figure, "equal")
    for path, series in _series(check, figure, ("x", "y", "low", "high")):
        x = check.need(series, "x", path)
        if x is not None:
            check.need(series, "y", path, len(x), f"{path}.x")
            _bands(check, series, path, len(x))


def _bars(check: _Check, figure: Mapping[str, Any]) -> None:
    _axes(check, figure)
    for path, series in _series(check, figure, ("x", "y", "low", "high")):
        x = check.entries(series, "x", path)
        if not all(isinstance(each, str | int | float) for each in x):
            check.say(f"{path}.x", "must be a list of words or numbers.")
        check.need(series, "y", path, len(x), f"{path}.x")
        _bands(check, series, path, len(x))


def _scatter(check: _Check, figure: Mapping[str, Any]) -> None:
    _axes(check, figure, "colour")
    check.flags(figure, "equal")
    for path, series in _series(check, figure, ("x", "y", "values", "labels", "line", "opens")):
        check.flag(series, "line", path)
        x = check.need(series, "x", path)
        if x is None:
            continue
        check.need(series, "y", path, len(x), f"{path}.x")
        if "values" in series:
            check.row(series["values"], f"{path}.values", len(x), f"{path}.x")
        for name in ("labels", "opens"):
            if name in series:
                check.words(series[name], f"{path}.{name}", len(x), f"{path}.x")
        _opens(check, series.get("opens"), f"{path}.opens")


def _opens(check: _Check, opens: Any, path: str) -> None:
    for number, changes in enumerate(opens if _is_list(opens) else []):
        if changes is not None and not (isinstance(changes, Mapping) and all(isinstance(p, str) for p in changes)):
            check.say(f"{path}[{number}]", f"must be changes like {{path: value}} or nothing, not {_said(changes)}.")


def _histogram(check: _Check, figure: Mapping[str, Any]) -> None:
    _axes(check, figure)
    for path, series in _series(check, figure, ("edges", "counts")):
        edges = check.need(series, "edges", path)
        if edges is None:
            continue
        if len(edges) < 2 or not (np.diff(edges) > 0).all():
            check.say(f"{path}.edges", "must be two numbers or more that grow.")
        check.need(series, "counts", path, max(len(edges) - 1, 0), f"the space between {path}.edges")


def _heatmap(check: _Check, figure: Mapping[str, Any]) -> None:
    check.axis(figure, "colour")
    check.flags(figure, "diverging")
    if "z" not in figure:
        check.say("z", "is missing.")
        return
    z = check.matrix(figure["z"], "z")
    if z is not None:
        check.axis(figure, "x", values=z.shape[1])
        check.axis(figure, "y", values=z.shape[0])


def _image(check: _Check, figure: Mapping[str, Any]) -> None:
    _axes(check, figure, "colour")
    check.flags(figure, "shared")
    for number, panel in enumerate(check.each(figure, "panels", ("name", "z", "diverging"), least=1)):
        path = f"panels[{number}]"
        check.flag(panel, "diverging", path)
        if "z" in panel:
            check.matrix(panel["z"], f"{path}.z", coloured=True)
        else:
            check.say(f"{path}.z", "is missing.")
    if "extent" in figure:
        extent = check.row(figure["extent"], "extent", 4, "it: x0, x1, y0, y1,")
        if extent is not None and (not np.isfinite(extent).all() or extent[0] == extent[1] or extent[2] == extent[3]):
            check.say("extent", "must be finite and not empty: x0, x1, y0, y1.")


def _image_grid(check: _Check, figure: Mapping[str, Any]) -> None:
    images = check.entries(figure, "images", least=1)
    for number, each in enumerate(images):
        check.matrix(each, f"images[{number}]", coloured=True)
    captions = figure.get("captions", [])
    if not _is_list(captions) or len(captions) > len(images):
        check.say("captions", f"must be a list of at most {len(images)} words, one an image.")


def _graph(check: _Check, figure: Mapping[str, Any]) -> None:
    check.axis(figure, "colour")
    check.flags(figure, "directed", "equal")
    nodes = check.each(figure, "nodes", ("x", "y", "label", "value", "group"), least=1)
    for number, each in enumerate(nodes):
        path = f"nodes[{number}]"
        for name, needed in (("x", True), ("y", True), ("value", False)):
            check.number(each, name, path, needed)
        if not isinstance(each.get("group", 0), int | str):
            check.say(f"{path}.group", f"must be a number or a word, not {_said(each['group'])}.")
    if "edges" in figure:
        _edges(check, check.entries(figure, "edges"), len(nodes))
    if "marked" in figure:
        check.indices(check.row(figure["marked"], "marked"), "marked", len(nodes), "the nodes")


def _edges(check: _Check, edges: Sequence[Any], nodes: int) -> None:
    whole = _numbers(edges)
    if whole is not None and whole.ndim == 2 and whole.shape[1] in (2, 3):
        check.numbers += whole.size
        check.indices(whole[:, :2], "edges", nodes, "the nodes")
        return
    for number, edge in enumerate(edges):  # some with a weight, some without, or wrong ones
        row = _numbers(edge)
        if row is None or row.ndim != 1 or len(row) not in (2, 3):
            check.say(f"edges[{number}]", f"must be [from, to] or [from, to, weight], not {_said(edge)}.")
        else:
            check.numbers += len(row)
            check.indices(row[:2], f"edges[{number}]", nodes, "the nodes")


def _quiver(check: _Check, figure: Mapping[str, Any]) -> None:
    x = check.need(figure, "x", "")
    for name in ("y", "u", "v"):
        check.need(figure, name, "", None if x is None else len(x), "x")
    axes = figure.get("axes", {})
    if isinstance(axes, Mapping):
        check.fields(axes, "axes", ("x", "y", "colour"))
        for name in axes:
            check.axis(axes, name, "axes")
    else:
        check.say("axes", f"must be a dict of axes, not {_said(axes)}.")


def _boxes(check: _Check, figure: Mapping[str, Any]) -> None:
    if "image" in figure:
        check.matrix(figure["image"], "image", coloured=True)
    for number, each in enumerate(check.each(figure, "boxes", ("x", "y", "w", "h", "label", "score"))):
        path = f"boxes[{number}]"
        for name in ("x", "y", "w", "h"):
            check.number(each, name, path, needed=True)
        check.number(each, "score", path)
        if any(_is_number(each.get(name)) and each[name] < 0 for name in ("w", "h")):
            check.say(path, "has a negative size.")


def _points(check: _Check, figure: Mapping[str, Any]) -> None:
    check.axis(figure, "colour")
    check.entries(figure, "vertices", least=1)
    vertices = check.rows(figure.get("vertices", []), "vertices", 3) if not check.found else None
    if vertices is None:
        return
    faces = check.rows(figure["faces"], "faces", 3) if "faces" in figure else None
    check.indices(faces, "faces", len(vertices), "the vertices")
    if "values" in figure:
        check.row(figure["values"], "values", len(vertices), "vertices")


def _text(check: _Check, figure: Mapping[str, Any]) -> None:
    check.flags(figure, "difference")
    if "columns" not in figure:
        if not isinstance(figure.get("text"), str):
            check.say("text", "is missing." if "text" not in figure else "must be words.")
        return
    columns = check.each(figure, "columns", ("title", "text"), least=1)
    for number, column in enumerate(columns):
        for name in ("title", "text"):
            if not isinstance(column.get(name, "" if name == "title" else None), str):
                check.say(f"columns[{number}].{name}", "must be words.")
    if figure.get("difference") and len(columns) != 2:
        check.say("difference", f"is between two columns; there are {len(columns)}.")


def _table(check: _Check, figure: Mapping[str, Any]) -> None:
    columns = check.entries(figure, "columns", least=1)
    if not all(isinstance(each, str) for each in columns):
        check.say("columns", "must be words.")
    for number, row in enumerate(check.entries(figure, "rows")):
        if not _is_list(row) or len(row) != len(columns):
            count = len(row) if _is_list(row) else 0
            check.say(f"rows[{number}]", f"has {_many(count, 'cell')}, but there are {len(columns)} columns.")
        elif not all(cell is None or isinstance(cell, str | bool) or _is_number(cell) for cell in row):
            check.say(f"rows[{number}]", "must be words and numbers.")


KINDS: dict[str, tuple[Callable[[_Check, Mapping[str, Any]], None], tuple[str, ...]]] = {
    "curve": (_curve, ("x", "y", "series", "equal")),
    "scatter": (_scatter, ("x", "y", "colour", "series", "equal")),
    "bars": (_bars, ("x", "y", "series")),
    "histogram": (_histogram, ("x", "y", "series")),
    "heatmap": (_heatmap, ("z", "x", "y", "colour", "diverging")),
    "surface": (_heatmap, ("z", "x", "y", "colour", "diverging")),
    "image": (_image, ("panels", "shared", "extent", "x", "y", "colour")),
    "image-grid": (_image_grid, ("images", "captions")),
    "graph": (_graph, ("nodes", "edges", "directed", "marked", "colour", "equal")),
    "quiver": (_quiver, ("x", "y", "u", "v", "axes")),
    "boxes": (_boxes, ("image", "boxes")),
    "points": (_points, ("vertices", "faces", "values", "colour")),
    "text": (_text, ("text", "columns", "difference")),
    "table": (_table, ("columns", "rows")),
}


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _numbers(given: Any) -> np.ndarray | None:
    """Nested lists of numbers as an array, gaps as NaN; None where they are something else."""
    if not _is_list(given):
        return None
    try:
        values = np.asarray(given)
        if values.dtype.kind == "O":  # with gaps, or ragged
            flat = values.ravel()
            if not all(each is None or _is_number(each) for each in flat):
                return None
        elif values.dtype.kind not in "iuf" and values.size:
            return None
        return values.astype(np.float64)
    except (ValueError, TypeError):
        return None


def _first_wrong(given: Any) -> str:
    """'; series 3 is ...': the first entry of a flat list that is no number."""
    if not _is_list(given):
        return f", not {_said(given)}"
    for number, each in enumerate(given):
        if not _is_list(each) and each is not None and not _is_number(each):
            return f"; number {number} is {_said(each)}"
    return ""


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _said(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def array(given: Any) -> np.ndarray:
    """The numbers of a figure's list as an array, gaps as NaN."""
    values = _numbers(given)
    return np.empty(0) if values is None else values


def finite_range(values: Any) -> tuple[float, float] | None:
    """The lowest and the highest of the values that are finite."""
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else None


def is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)
