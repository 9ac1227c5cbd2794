"""The figures of one run: what its probes drew, and a look at it with any probe of the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QHBoxLayout, QScrollArea, QVBoxLayout, QWidget

from app.forms.around import form_context
from app.forms.fields import UNSET
from app.forms.figures import FigureView
from app.forms.parts import PartField
from app.places import Context, button, label
from app.questions import Question
from app.theme import SPACE_M, SPACE_S, SPACE_XS
from engine.catalog import Catalog
from engine.errors import Problem
from engine.recipe import Recipe

AT = "probes.0"  # where the probe stands in the recipe that checks it
PATIENCE_S = 600.0
FIGURE_HEIGHT = 230
MOST = 24


class FigureCard(QWidget):
    """One figure, and below it which probe drew it when."""

    def __init__(self, context: Context):
        super().__init__()
        self.stamp: tuple[str, int] = ("", 0)
        self.view = FigureView(context.theme)
        self.view.setMinimumHeight(FIGURE_HEIGHT)
        self.caption = label("", "small", wrap=True)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(SPACE_XS)
        column.addWidget(self.view)
        column.addWidget(self.caption)

    def show_figure(self, stamp: tuple[str, int], figure: Mapping[str, Any], caption: str) -> None:
        """Draws the figure, unless it is the one that is shown."""
        self.caption.setText(caption)
        if stamp != self.stamp:
            self.stamp = stamp
            self.view.show_figure(figure)


class FiguresPage(QWidget):
    """Above: which probe, its settings, and the button. Below: the newest figure of each kind."""

    def __init__(self, context: Context):
        super().__init__()
        self.context = context
        self.run: dict[str, Any] = {}
        self.use: dict[str, Any] = {}
        self.cards: dict[tuple[str, str], FigureCard] = {}
        self._looked_at = ""
        self._question = Question(context, PATIENCE_S, self)
        self._question.answered.connect(self._answered)
        self._question.failed.connect(self._failed)
        self._build()
        context.catalog_ready.connect(self._take_catalog)
        if context.catalog is not None:
            self._take_catalog(context.catalog)

    def _build(self) -> None:
        self.forms = form_context(self.context)
        self.field = PartField(AT, {"x-part": "probe"}, self.forms)
        self.field.button.setAccessibleName("Which probe looks at the run")
        self.field.edited.connect(self._edited)
        self.look = button("Look", self.ask_look, "primary", "Runs this probe on the run's newest checkpoint.")
        self.state = label("", "small", wrap=True, selectable=True)
        row = QHBoxLayout()
        row.setSpacing(SPACE_S)
        row.addWidget(self.field, 1)
        row.addWidget(self.look)
        self.none = label("No probe has looked at this run yet. Choose one above.", "muted", wrap=True)
        inside = QWidget()
        self.holder = QVBoxLayout(inside)
        self.holder.setContentsMargins(SPACE_S, SPACE_S, SPACE_S, SPACE_S)
        self.holder.setSpacing(SPACE_M)
        self.holder.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.holder.addLayout(row)
        self.holder.addWidget(self.field.below)
        self.holder.addWidget(self.state)
        self.holder.addWidget(self.none)
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setWidget(inside)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(area)

    # -- which probe -------------------------------------------------------------------------------------------------

    def _take_catalog(self, catalog: Catalog) -> None:
        self.forms.catalog = catalog
        probes = catalog.of_kind("probe")
        if not self.use and probes:
            self.use = {"use": probes[0].id}
        self._show_use()

    def _edited(self, path: str, value: Any) -> None:
        recipe = Recipe.of({"probes": [self.use]})
        if value is UNSET:
            recipe.remove(path)
        else:
            recipe.set(path, value)
        self.use = dict(recipe.document["probes"][0])
        self._show_use()

    def problems(self) -> list[Problem]:
        """What is wrong with the probe's settings."""
        found = Recipe.of({"probes": [self.use]}).check(self.forms.catalog) if self.use else []
        return [problem for problem in found if problem.path.startswith(AT)]

    def _show_use(self) -> None:
        problems = self.problems()
        self.field.show_value(self.use or UNSET, problems)
        self._enable(problems)

    def _enable(self, problems: list[Problem]) -> None:
        why = ""
        if not self.use:
            why = "There is no probe in the catalog yet."
        elif problems:
            why = str(problems[0])
        elif not self.run.get("checkpoints"):
            why = "The run has no checkpoint yet, so there is nothing to look at."
        elif self._question.open:
            why = "A probe is looking."
        self.look.setEnabled(not why)
        self.look.setToolTip(why or "Runs this probe on the run's newest checkpoint.")

    # -- a look ------------------------------------------------------------------------------------------------------

    def ask_look(self) -> None:
        """Has the engine run the probe; the figures come when it is done."""
        run, use = str(self.run["id"]), dict(self.use)
        self._looked_at = run
        self._question.ask(lambda engine: engine.probe(run, use))
        self._enable([])
        name = self.forms.catalog.parts[use["use"]].name
        self._say(f"{name} looks at the newest checkpoint …")

    def _answered(self, _answer: dict[str, Any]) -> None:
        self._end("")
        if self._looked_at == self.run.get("id"):
            self.read()

    def _failed(self, error: Exception) -> None:
        reason = (str(error) or type(error).__name__).replace(f"{AT}: ", "")
        self._end(f"There is no figure: {reason}", "bad")

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

    def read(self) -> None:
        """Reads the figures, off the GUI thread."""
        id = str(self.run["id"])

        def newest(log: Any) -> tuple[str, list[dict[str, Any]]]:
            kept = {(figure["probe"], figure["name"]): figure for figure in log.figures(id)}
            return id, sorted(kept.values(), key=lambda figure: -figure["id"])[:MOST]

        self.context.reader.ask(newest, self._show, key="details-figures", owner=self)

    def _show(self, found: tuple[str, list[dict[str, Any]]]) -> None:
        run, figures = found
        if run != self.run.get("id"):
            return
        self.none.setVisible(not figures)
        wanted = {(figure["probe"], figure["name"]): figure for figure in figures}
        for key in [key for key, card in self.cards.items() if key not in wanted or card.stamp[0] != run]:
            card = self.cards.pop(key)
            card.hide()
            card.deleteLater()
        for place, (key, figure) in enumerate(wanted.items()):
            if key not in self.cards:
                self.cards[key] = FigureCard(self.context)
            self.holder.removeWidget(self.cards[key])
            self.holder.insertWidget(4 + place, self.cards[key])
            self.cards[key].show_figure((run, figure["id"]), figure["data"], self._caption(figure))

    def _caption(self, figure: Mapping[str, Any]) -> str:
        entry = self.forms.catalog.parts.get(str(figure["probe"]))
        step = f", step {figure['step']:,}" if figure["step"] is not None else ""
        return f"{entry.name if entry else figure['probe']}{step}"
