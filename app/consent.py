"""The question before anything is sent to another machine: which one, what, how often, and for how long it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QMessageBox, QPushButton, QWidget

from app.places import Context
from engine.endpoints import Contact, Permissions, named_in
from engine.recipe import Recipe

ALWAYS, ONCE, NO = "always", "once", "no"


def ask_first(
    context: Context,
    owner: QWidget,
    text: str,
    calls: int | None,
    proceed: Callable[[Sequence[Contact]], None],
    stopped: Callable[[Exception | None], None],
) -> None:
    """Goes on at once where a recipe talks to nobody, or to whom it may; asks the person otherwise.

    `proceed` is called with what is allowed for this time only, `stopped` where nothing may start, with the error
    if there is one.
    """

    def answered(contacts: Sequence[Contact], answer: str) -> None:
        if answer == NO:
            context.message("Nothing was sent, and no run was started.")
            stopped(None)
        elif answer == ALWAYS:
            context.worker.ask(lambda _: _allow(contacts), lambda _: proceed(()), failed=stopped, owner=owner)
        else:
            proceed(contacts)

    def looked(contacts: Sequence[Contact]) -> None:
        if contacts:
            Consent(contacts, calls, lambda answer: answered(contacts, answer), owner).open()
        else:
            proceed(())

    named = named_in(Recipe.parse(text).filled(context.catalog), context.catalog) if context.catalog else []
    if named:
        context.worker.ask(lambda _: Permissions().refused(named), looked, failed=stopped, owner=owner)
    else:
        proceed(())


def _allow(contacts: Sequence[Contact]) -> None:
    for contact in contacts:
        Permissions().allow(contact.origin, contact.secret)


class Consent(QMessageBox):
    """Asks whether runs may talk to some machines; `answered` is called with "always", "once" or "no"."""

    def __init__(
        self, contacts: Sequence[Contact], calls: int | None, answered: Callable[[str], None], parent: QWidget
    ):
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setIcon(QMessageBox.Icon.Question)
        self.setWindowTitle("Send text to another program?")
        self.setTextFormat(Qt.TextFormat.PlainText)  # a recipe from elsewhere says what stands here
        hosts = " and ".join(dict.fromkeys(contact.origin for contact in contacts))
        self.setText(f"This recipe sends text to {hosts}.")
        self.setInformativeText(words_for(contacts, calls))
        self.buttons_of: dict[str, QPushButton] = {
            ALWAYS: self.addButton("Allow always", QMessageBox.ButtonRole.AcceptRole),
            ONCE: self.addButton("Only this time", QMessageBox.ButtonRole.AcceptRole),
            NO: self.addButton("Do not send", QMessageBox.ButtonRole.RejectRole),
        }
        self.setDefaultButton(self.buttons_of[NO])
        self.setEscapeButton(self.buttons_of[NO])
        self.finished.connect(lambda _result: answered(self._chosen()))

    def _chosen(self) -> str:
        clicked = self.clickedButton()
        return next((name for name, button in self.buttons_of.items() if button is clicked), NO)


def words_for(contacts: Sequence[Contact], calls: int | None) -> str:
    """What is sent, and how often, in words."""
    lines = ["Sent are the task's samples, the prompts, and what the model answered before."]
    lines += [f"Your secret {contact.secret!r} goes along to {contact.host}." for contact in contacts if contact.secret]
    often = f"about {calls:,} times a run" if calls else "an unknown number of times"
    lines.append(f"The model is asked {often}; a provider may bill you for that.")
    lines.append("What you allow is kept on this computer, in no recipe and no workspace.")
    return " ".join(lines)
