"""The guide: the pages of resources/docs in a window of their own, beside the one that is worked in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PySide6.QtCore import Qt
from PySide6.QtGui import QTextBlock, QTextBlockFormat, QTextCharFormat, QTextCursor, QTextDocument, QTextFormat
from PySide6.QtWidgets import QTextBrowser, QVBoxLayout, QWidget

from app.theme import SIZE_TEXT, SPACE_L, SPACE_M, SPACE_S, Theme
from engine.workspace import RESOURCES

FOLDER = RESOURCES / "docs"
SIZE = (960, 760)
LINE_PERCENT = 140.0


@dataclass(frozen=True)
class Page:
    """One page: its file and the heading that it begins with."""

    file: Path
    title: str

    @property
    def id(self) -> str:
        return self.file.stem


def pages() -> list[Page]:
    """Every page there is, by title."""
    found = []
    for file in FOLDER.glob("*.md"):
        with file.open(encoding="utf-8") as lines:
            found.append(Page(file, lines.readline().lstrip("# ").strip()))
    return sorted(found, key=lambda page: page.title)


class GuideWindow(QWidget):
    """Shows a page; links within it and to the web work, text can be copied."""

    def __init__(self, theme: Theme, parent: QWidget | None = None):
        super().__init__(parent, Qt.WindowType.Window)
        self.theme = theme
        self.text = QTextBrowser()
        self.text.setOpenExternalLinks(True)
        self.text.setAccessibleName("Guide")
        self.text.document().setDocumentMargin(2 * SPACE_M)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.text)
        self.page: Page | None = None
        self._code = QTextCharFormat()
        self._code.setFont(theme.font(SIZE_TEXT - 1, fixed=True))
        theme.changed.connect(self._render)
        self.resize(*SIZE)

    def open(self, page: Page) -> None:
        """Shows a page and comes to the front."""
        if page != self.page:
            self.page = page
            self.setWindowTitle(f"{page.title} – Athanor")
            self._render()
        self.show()
        self.raise_()
        self.activateWindow()

    def _render(self) -> None:
        if self.page is None:
            return
        at = self.text.verticalScrollBar().value()
        document = self.text.document()
        document.setDefaultFont(self.theme.font(SIZE_TEXT))
        document.setMarkdown(
            self.page.file.read_text(encoding="utf-8"), QTextDocument.MarkdownFeature.MarkdownDialectGitHub
        )
        self._dress(document)
        self.text.verticalScrollBar().setValue(at)

    def _dress(self, document: QTextDocument) -> None:
        """Code on a ground of its own, and room between the blocks: Markdown says neither."""
        block, before = document.begin(), False
        while block.isValid():
            code, next_code = _is_code(block), _is_code(block.next())
            form = QTextBlockFormat(block.blockFormat())
            if code:
                form.setBackground(self.theme.colour("raised"))
                form.setTopMargin(0 if before else SPACE_S)
                form.setBottomMargin(0 if next_code else SPACE_L)
            else:
                form.setLineHeight(LINE_PERCENT, QTextBlockFormat.LineHeightTypes.ProportionalHeight.value)
                form.setTopMargin(SPACE_L if form.headingLevel() else 0)
                form.setBottomMargin(SPACE_S)
            cursor = QTextCursor(block)
            cursor.setBlockFormat(form)
            if code:
                cursor.select(QTextCursor.SelectionType.BlockUnderCursor)
                cursor.mergeCharFormat(self._code)
            block, before = block.next(), code


def _is_code(block: QTextBlock) -> bool:
    form = block.blockFormat()
    return block.isValid() and (form.hasProperty(QTextFormat.Property.BlockCodeLanguage) or form.nonBreakableLines())
