"""What can be done with a saved run: a look with any probe, another way to answer, a transform; and its figures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QObject, Qt, Signal
from PySide6.QtWidgets import QFrame, QHBoxLayout, QScrollArea, QSizePolicy, QToolButton, QVBoxLayout, QWidget

from app import words
from app.figures import FigureView
from app.figures.frame import Stored
from app.forms.around import form_context
from app.forms.fields import UNSET, ComboBox
from app.forms.parts import PartField
from app.places import Context, button, label
from app.questions import Question
from app.theme import SPACE_M, SPACE_S, SPACE_XS
from engine.catalog import Catalog
from engine.errors import Problem
from engine.figures import problems
from engine.recipe import PLANS, Recipe

PATIENCE_S = 600.0
MOST = 24


@dataclass(frozen=True)
class Act:
    """One thing to do with a saved run: by a part of which kind, and how the engine is asked.

    `at` is where the part stands in the recipe that checks its settings.
    """

    kind: str
    at: str
    does: str  # "Answer again" on the button
    tip: str
    begun: str  # said while the engine is at it, after the part's name
    ask: Callable[[Any, str, Mapping[str, Any]], int]


ACTS = (
    Act(
        "probe",
        "probes.0",
        "Look",
        "Runs this probe on the run's newest checkpoint.",
        "looks at the newest checkpoint",
        lambda engine, run, use: engine.probe(run, use),
    ),
    Act(
        "decoder",
        "decoder",
        "Answer again",
        "Measures the test split with the newest checkpoint's weights, answered by this decoder.",
        "answers for the test split",
        lambda engine, run, use: engine.evaluate(run, "test", {"decoder": dict(use)}),
    ),
    Act(
        "transform",
        "transforms.0",
        "Transform",
        "Does this to a copy of the newest checkpoint's model, measures it, and keeps the result in the run's folder.",
        "works on the newest checkpoint",
        lambda engine, run, use: engine.transform(run, use),
    ),
)


@dataclass(frozen=True)
class Kept:
    """The figures of one name that a run has: when they were drawn, and the newest one's data (None: as before)."""

    run: str
    probe: str
    name: str
    history: tuple[Stored, ...]
    figure: Mapping[str, Any] | None = None
    problems: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        return self.run, self.probe, self.name

    @property
    def id(self) -> int:
        return self.history[-1][0]


def read_figures(log: Any, run: str, known: Collection[int]) -> list[Kept]:
    """What figures a run has, the name that came last first. Runs on the reader's thread.

    The newest of each name is read unless its id is known. Of figures of one step, drawn again after a resume, the last
    counts.
    """
    found: dict[tuple[str, str], dict[Any, int]] = {}
    for row in log.figure_list(run):
        steps = found.setdefault((row["probe"], row["name"]), {})
        at = row["step"] if row["step"] is not None else -row["id"]
        steps.pop(at, None)
        steps[at] = row["id"]
    kept = []
    for (probe, name), steps in reversed(found.items()):
        history = tuple((id, at if at >= 0 else None) for at, id in steps.items())
        newest = log.figure(history[-1][0]) if history[-1][0] not in known else None
        data = newest["data"] if newest is not None else None
        wrong = tuple(problems(data)) if newest is not None else ()
        kept.append(Kept(run, probe, name, history, data, wrong))
    return kept[:MOST]


def recipe_with(text: str, changes: Mapping[str, Any]) -> str:
    """A recipe's text with changes by path, None taking away what stands there; a plan of many runs becomes one."""
    recipe = Recipe.parse(text)
    for plan in PLANS:
        recipe.remove(plan)
    for path, value in changes.items():
        if value is None:
            recipe.remove(path)
        else:  # the log keeps the keys of a table in the order of the alphabet; a part's name comes first
            first = {"use": value["use"]} if isinstance(value, Mapping) and "use" in value else {}
            recipe.set(path, {**first, **value} if first else value)
    return recipe.text()


def open_changed(context: Context, run: Mapping[str, Any], changes: Mapping[str, Any], owner: QWidget) -> None:
    """Opens a run's recipe with changes in the Recipe place; worked out off the GUI thread."""
    text, name = str(run["recipe"]), str(run["name"] or run["id"])

    def failed(error: Exception) -> None:
        context.message(f"The point's recipe cannot be opened: {error}", level="error")

    context.worker.ask(
        lambda _: recipe_with(text, changes),
        lambda changed: context.go("recipe", text=changed, name=name),
        failed=failed,
        owner=owner,
    )


class FigureCard(QFrame):
    """The figures of one name, the newest first seen, and below it which part drew it."""

    opened = Signal(dict)

    def __init__(self, context: Context):
        super().__init__()
        self.stamp: tuple[str, int] = ("", 0)
        self.setProperty("role", "panel")
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Maximum)  # a tall page leaves it as it is
        self.view = FigureView(context, sized=True)
        self.view.opened.connect(self.opened)
        self.caption = label("", "small", wrap=True)
        column = QVBoxLayout(self)
        column.setContentsMargins(SPACE_S, SPACE_XS, SPACE_S, SPACE_S)
        column.setSpacing(SPACE_XS)
        column.addWidget(self.view)
        column.addWidget(self.caption)

    def show_kept(self, kept: Kept, caption: str) -> None:
        """Draws the newest figure, unless it is shown or a person looks at an older one."""
        self.caption.setText(caption)
        self.caption.setVisible(bool(caption))
        following = self.view.following
        if (kept.run, kept.id) != self.stamp:
            self.stamp = (kept.run, kept.id)
            self.view.show_history(kept.history)
            if following and kept.figure is not None:
                self.view.show_figure(kept.figure, kept.problems)


class FigureCards(QObject):
    """The cards of a run's (or a sweep's) figures in a column, in the order in which `read_figures` gives them."""

    opened = Signal(dict)

    def __init__(self, context: Context, column: QVBoxLayout, first: int = 0):
        super().__init__()
        self.context = context
        self.column = column
        self.first = first  # where in the column the first card stands
        self.cards: dict[tuple[str, str, str], FigureCard] = {}

    @property
    def known(self) -> list[int]:
        """Ids of the figures that need not be read again."""
        return [card.stamp[1] for card in self.cards.values()]

    def show(self, kept: Sequence[Kept], caption: Callable[[Kept], str]) -> None:
        wanted = {each.key: each for each in kept}
        for key in [key for key in self.cards if key not in wanted]:
            card = self.cards.pop(key)
            card.hide()
            card.deleteLater()
        for number, (key, each) in enumerate(wanted.items()):
            card = self.cards.get(key) or self._new(key)
            at = self.column.itemAt(self.first + number)
            if at is None or at.widget() is not card:
                self.column.removeWidget(card)
                self.column.insertWidget(self.first + number, card)
            card.show_kept(each, caption(each))

    def _new(self, key: tuple[str, str, str]) -> FigureCard:
        card = self.cards[key] = FigureCard(self.context)
        card.opened.connect(self.opened)
        return card


class FiguresPage(QWidget):
    """Above: what to do, with which part and settings, and the button. Below: its figures, by name."""

    def __init__(self, context: Context):
        super().__init__()
        self.context = context
        self.run: dict[str, Any] = {}
        self.act = ACTS[0]
        self.uses: dict[str, dict[str, Any]] = {}  # by kind: what was chosen last
        self._looked_at = ""
        self._question = Question(context, PATIENCE_S, self)
        self._question.answered.connect(self._answered)
        self._question.failed.connect(self._failed)
        self._build()
        context.catalog_ready.connect(self._take_catalog)
        if context.catalog is not None:
            self._take_catalog(context.catalog)

    @property
    def use(self) -> dict[str, Any]:
        """The part that is chosen, with its settings."""
        return self.uses.get(self.act.kind, {})

    def _build(self) -> None:
        self.forms = form_context(self.context)
        self.choice = ComboBox()
        self.choice.setAccessibleName("What to do with the run")
        for act in ACTS:
            self.choice.addItem(act.kind.capitalize(), act.kind)
        self.choice.activated.connect(lambda at: self._choose(ACTS[at]))
        self.look = button("", self.ask_look, "primary")
        self.state = label("", "small", wrap=True, selectable=True)
        self.settings = QToolButton()
        self.settings.setText("Settings")
        self.settings.setCheckable(True)
        self.settings.setToolTip("Shows or hides the settings of this part.")
        self.settings.setAccessibleName("Settings of the part")
        self.settings.toggled.connect(self._open_settings)
        self.row = QHBoxLayout()
        self.row.setSpacing(SPACE_S)
        self.row.addWidget(self.choice)
        below = QHBoxLayout()
        below.setSpacing(SPACE_S)
        below.addWidget(self.look)
        below.addWidget(self.settings)
        below.addStretch()
        self.drawer = QWidget()
        self.drawn_out = QVBoxLayout(self.drawer)
        self.drawn_out.setContentsMargins(0, 0, 0, 0)
        self.none = label(
            "This run has no figures yet. Its task may draw some as it trains, and a probe does when it looks.",
            "muted",
            wrap=True,
        )
        inside = QWidget()
        self.holder = QVBoxLayout(inside)
        self.holder.setContentsMargins(SPACE_S, SPACE_S, SPACE_S, SPACE_S)
        self.holder.setSpacing(SPACE_M)
        self.holder.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.holder.addLayout(self.row)
        self.holder.addLayout(below)
        self.holder.addWidget(self.drawer)
        self.holder.addWidget(self.state)
        self.holder.addWidget(self.none)
        self._put_field()
        self.drawer.hide()
        self._cards = FigureCards(self.context, self.holder, self.holder.count())
        self._cards.opened.connect(lambda changes: open_changed(self.context, self.run, changes, self))
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setWidget(inside)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(area)

    def _put_field(self) -> None:
        """The field that chooses a part of the kind that the act needs."""
        self.field = PartField(self.act.at, {"x-part": self.act.kind}, self.forms)
        self.field.button.setAccessibleName(f"Which {self.act.kind}")
        self.field.edited.connect(self._edited)
        self.row.insertWidget(1, self.field, 1)
        self.field.button.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.drawn_out.addWidget(self.field.below)
        self.look.setText(self.act.does)

    def _open_settings(self, on: bool) -> None:
        self.drawer.setVisible(on)

    # -- which part --------------------------------------------------------------------------------------------------

    def _take_catalog(self, catalog: Catalog) -> None:
        self.forms.catalog = catalog
        for act in ACTS:
            parts = catalog.of_kind(act.kind)
            if act.kind not in self.uses and parts:
                self.uses[act.kind] = {"use": parts[0].id}
        self._show_use()

    def _choose(self, act: Act) -> None:
        if act is self.act:
            return
        self.act = act
        for widget in (self.field, self.field.below):
            widget.hide()
            widget.deleteLater()
        self._put_field()
        self._say("")
        self._show_use()

    def _recipe(self) -> Recipe:
        """A recipe with nothing but the part at its place."""
        section, _, listed = self.act.at.partition(".")
        return Recipe.of({section: [self.use] if listed else self.use})

    def _edited(self, path: str, value: Any) -> None:
        recipe = self._recipe()
        if value is UNSET:
            recipe.remove(path)
        else:
            recipe.set(path, value)
        self.uses[self.act.kind] = dict(recipe.get(self.act.at))
        self._show_use()

    def problems(self) -> list[Problem]:
        """What is wrong with the part's settings."""
        found = self._recipe().check(self.forms.catalog) if self.use else []
        return [problem for problem in found if problem.path.startswith(self.act.at)]

    def _show_use(self) -> None:
        problems = self.problems()
        self.field.show_value(self.use or UNSET, problems)
        self.settings.setEnabled(self.field.form is not None)
        self._enable(problems)

    def _enable(self, problems: list[Problem]) -> None:
        why = ""
        if not self.use:
            why = f"There is no {self.act.kind} in the catalog yet."
        elif problems:
            why = str(problems[0])
        elif not self.run.get("checkpoints"):
            why = "The run has no checkpoint yet, so there is nothing to look at."
        elif self._question.open:
            why = "The engine is at it."
        self.look.setEnabled(not why)
        self.look.setToolTip(why or self.act.tip)

    # -- doing it ----------------------------------------------------------------------------------------------------

    def ask_look(self) -> None:
        """Has the engine do it; figures and numbers come when it is done."""
        run, use, act = str(self.run["id"]), dict(self.use), self.act
        self._looked_at = run
        self._question.ask(lambda engine: act.ask(engine, run, use))
        self._enable([])
        self._say(f"{self.forms.catalog.parts[use['use']].name} {act.begun} …")

    def _answered(self, answer: dict[str, Any]) -> None:
        self._end(self._results(answer))
        if self._looked_at == self.run.get("id"):
            self.read()

    def _results(self, answer: Mapping[str, Any]) -> str:
        """The numbers that came out, beside those that the run had before."""
        before = self.run.get("metrics") or {}
        said = []
        for name, value in sorted({**(answer.get("scalars") or {}), **(answer.get("metrics") or {})}.items()):
            was = f" (was {words.number(before[name])})" if name in before else ""
            said.append(f"{name} {words.number(value)}{was}")
        return "\n".join(said)

    def _failed(self, error: Exception) -> None:
        reason = (str(error) or type(error).__name__).replace(f"{self.act.at}: ", "")
        nothing = "figure" if self.act.kind == "probe" else "result"
        self._end(f"There is no {nothing}: {reason}", "bad")

    def _end(self, sentence: str, role: str = "small") -> None:
        self._say(sentence, role)
        self._enable(self.problems())

    def _say(self, sentence: str, role: str = "small") -> None:
        self.state.setText(sentence)
        if self.state.property("role") != role:
            self.state.setProperty("role", role)
            self.state.style().unpolish(self.state)
            self.state.style().polish(self.state)
        self.state.setVisible(bool(sentence))

    # -- what was found ----------------------------------------------------------------------------------------------

    def show_run(self, run: dict[str, Any]) -> None:
        """Shows another run, or that this one has come further."""
        if run["id"] != self.run.get("id") and not self._question.open:
            self._say("")
        self.run = run
        self._enable(self.problems())
        self.read()

    @property
    def cards(self) -> dict[tuple[str, str, str], FigureCard]:
        return self._cards.cards

    def read(self) -> None:
        """Reads the figures, off the GUI thread."""
        id, known = str(self.run["id"]), self._cards.known
        self.context.reader.ask(
            lambda log: (id, read_figures(log, id, known)), self._show, key="details-figures", owner=self
        )

    def _show(self, found: tuple[str, list[Kept]]) -> None:
        run, kept = found
        if run == self.run.get("id"):
            self.none.setVisible(not kept)
            self._cards.show(kept, self._caption)

    def _caption(self, kept: Kept) -> str:
        entry = self.forms.catalog.parts.get(kept.probe)
        step = kept.history[-1][1]
        alone = len(kept.history) == 1
        said = entry.name if entry else kept.probe
        return f"{said}, step {_grouped(step)}" if alone and step is not None else said


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f")
