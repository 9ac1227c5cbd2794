"""Pictures of every place and of every kind of figure: `python -m tests.screenshots DIR [--size 1280x720] [--figures]`.

Drives the real window offscreen, on the real engine, in a workspace of its own: builds a recipe by clicks, trains it
twice with different optimizers and seeds, runs a small sweep, and saves each place light and dark. The figures are
drawn from example data; with `--figures` only they are.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.places import Context
    from tests.app.person import Person

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

TOURS = """
[task]
use = "tsp"
points = 20
instances = 32

[model]
use = "attention-model"
width = 32
heads = 4
layers = 2

[optimizer]
use = "adamw"
lr = 1e-3

[procedure]
use = "rl4co-attention-model"

[training]
batch_size = 64
evaluate_every = 1

[budget]
steps = 150
"""

# The figures of the sheet, one of each kind, and how many stand side by side in it.
SHEET = (
    *("curve", "scatter", "bars", "histogram", "heatmap", "surface", "field", "image-grid"),
    *("tour", "causes", "quiver", "boxes", "mesh", "text", "table", "archive"),
)
ACROSS = 4

SWEEP = """
[search]
use = "random"
trials = 8

[search.space]
"optimizer.lr" = { low = 1e-4, high = 3e-2, log = true }
"""


def main(arguments: list[str] | None = None) -> int:
    ask = argparse.ArgumentParser(prog="tests.screenshots", description="Saves a picture of every place.")
    ask.add_argument("folder", type=Path)
    ask.add_argument("--size", default="1280x720", help="the window's size")
    ask.add_argument("--figures", action="store_true", help="only the figures, not the places")
    given = ask.parse_args(arguments)
    width, _, height = given.size.partition("x")
    given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        # What the window remembers of a person (theme, places) stays out of the pictures.
        os.environ["ATHANOR_CONFIG"] = home
        draw_figures(Path(home), given.folder)
        if not given.figures:
            take(Path(home) / "Digits lab", given.folder, (int(width), int(height)))
    return 0


def draw_figures(home: Path, folder: Path) -> None:
    """A picture of each kind of figure, light and dark, as it is copied out of the window."""
    from PySide6.QtCore import QSettings
    from PySide6.QtTest import QTest
    from PySide6.QtWidgets import QApplication

    from app.figures import FigureView
    from app.places import Context
    from app.theme import Theme
    from engine.workspace import Workspace
    from tests.app.example_figures import EXAMPLES

    application = QApplication.instance() or QApplication([])
    settings = QSettings(str(home / "figures.ini"), QSettings.Format.IniFormat)
    context = Context(Workspace(home / "Figures"), settings, Theme(settings))
    try:
        for theme in ("light", "dark"):
            context.theme.choose(theme)
            for name, make in EXAMPLES.items():
                frame = FigureView(context)
                frame.resize(640, 420)
                frame.show_figure(make())
                frame.show()
                while frame.view is None:
                    QTest.qWait(10)
                application.processEvents()
                frame.picture().save(str(folder / f"figure-{name}-{theme}.png"))
                print(folder / f"figure-{name}-{theme}.png", flush=True)
                frame.close()
            sheet([folder / f"figure-{name}-{theme}.png" for name in SHEET], folder / f"sheet-{theme}.png", context)
    finally:
        context.close()


def sheet(files: list[Path], file: Path, context: Context) -> None:
    """Several pictures side by side as one."""
    from PySide6.QtCore import QPoint, Qt
    from PySide6.QtGui import QImage, QPainter

    width, height = 480, 324
    rows = -(-len(files) // ACROSS)
    whole = QImage(ACROSS * width, rows * height, QImage.Format.Format_RGB32)
    whole.fill(context.theme.colour("surface"))
    painter = QPainter(whole)
    for number, each in enumerate(files):
        keep = Qt.AspectRatioMode.KeepAspectRatio
        small = QImage(str(each)).scaled(width - 16, height - 16, keep, Qt.TransformationMode.SmoothTransformation)
        painter.drawImage(QPoint(number % ACROSS * width + 8, number // ACROSS * height + 8), small)
    painter.end()
    whole.save(str(file))
    print(file, flush=True)


def take(home: Path, folder: Path, size: tuple[int, int]) -> None:
    from PySide6.QtGui import QCursor
    from PySide6.QtWidgets import QApplication

    from app.window import Window
    from engine.workspace import Workspace
    from tests.app.person import Person

    application = QApplication.instance() or QApplication([])
    workspace = Workspace(home)
    window = Window(workspace, "recipe")
    window.resize(*size)
    window.show()
    window.begin()
    QCursor.setPos(window.mapToGlobal(window.rect().bottomRight()))  # over nothing that lights up
    person = Person(window)
    try:
        shown = train(person)
        for theme in ("light", "dark"):
            window.context.actions.start(f"theme.{theme}")
            for place in ("library", "recipe", "runs", "compare", "sweep", "machine"):
                person.go(place)
                look(person, place, shown)
                save(person, folder / f"{place}-{theme}.png")
            person.go("runs").opened(run=shown["tours"])
            turn(person, "Figures")
            save(person, folder / f"figures-{theme}.png")
            turn(person, "Recipe")
    finally:
        from tests.app.test_end_to_end import end_engine

        window.close()
        application.processEvents()
        end_engine(workspace)


def save(person: Person, file: Path) -> None:
    """Saves the window as it is when it has come to rest."""
    person.rest(2.0)
    person.window.grab().save(str(file))
    print(file, flush=True)


def turn(person: Person, title: str) -> None:
    """Turns to a tab of the run's details."""
    person.rest(1.0)
    tabs = person.window.places["runs"].details.tabs
    tabs.setCurrentIndex([tabs.tabText(index) for index in range(tabs.count())].index(title))


def train(person: Person) -> dict[str, object]:
    """A real training: two optimizers with three seeds each, a sweep, and a run that is still going."""
    recipe = person.recipe()
    person.wait(lambda: recipe.train_button.isEnabled())
    person.choose("model", "multilayer perceptron")
    person.line("budget")
    person.write(recipe.pane.form.rows["epochs"].field.line, "12")
    person.add("techniques", "progressive n:m")
    person.add("techniques", "gradient clipping")
    for count, words in ((3, "adamw"), (6, "lion")):
        person.recipe()  # training shows the runs
        person.choose("optimizer", words)
        person.line("")
        person.write(recipe.pane.form.rows["name"].field.line, f"Digits, {words}")
        person.write(recipe.seeds, "0-2")
        person.click(recipe.train_button)
        person.wait(lambda: len(person.runs()) == count, 60)  # noqa: B023 - called before the loop goes on
        person.wait(lambda: all(run["state"] == "done" for run in person.runs()), 300)
    saved = [run["id"] for run in person.runs()]
    plain = recipe.document.text
    engine = person.window.context.engine
    queued: list[str] = []
    engine.ask(lambda service: service.queue(plain + SWEEP, name="A rate for Lion"), queued.append)
    engine.ask(lambda service: service.queue(TOURS, name="Tours of 20 places"), queued.append)
    person.wait(lambda: len(queued) == 2)
    person.wait(lambda: all(person.run(run)["state"] == "done" for run in queued), 300)
    person.recipe()
    person.write(recipe.seeds, "0")
    person.line("budget")
    person.write(recipe.pane.form.rows["epochs"].field.line, "4000")
    live = person.train()["id"]
    person.wait(lambda: person.run(live)["state"] == "training")
    person.rest(4)
    return {"saved": saved, "live": live, "sweep": queued[0], "tours": queued[1]}


def look(person: Person, place: str, shown: dict[str, object]) -> None:
    """Puts something worth a picture on the place."""
    widget = person.window.places[place]
    if place == "runs":
        widget.opened(run=shown["live"])
    elif place == "compare":
        widget.opened(runs=shown["saved"])
    elif place == "sweep":
        widget.opened(run=shown["sweep"])
    elif place == "recipe":
        person.line("optimizer")
    elif place == "library":
        widget.opened(part="lion")


if __name__ == "__main__":
    sys.exit(main())
