"""The look: tokens, from which one style sheet, one palette and the charts' colours are made, light and dark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PySide6.QtCore import QObject, QSettings, Qt, Signal
from PySide6.QtGui import QColor, QFont, QFontDatabase, QGuiApplication, QPalette, QPen
from PySide6.QtWidgets import QApplication

SPACE_XS, SPACE_S, SPACE_M, SPACE_L, SPACE_XL = 4, 8, 12, 16, 24
RADIUS = 6
SIZE_SMALL, SIZE_TEXT, SIZE_HEAD, SIZE_TITLE = 11, 13, 15, 20

# Safe for colour-blind readers; the dark row is the same hues, lifted to 3 : 1 on the dark surface.
SERIES_LIGHT = ("#0072B2", "#C98300", "#009E73", "#D55E00", "#CC79A7", "#3A93C8", "#7A5195", "#8C6D31")
SERIES_DARK = ("#4AA3DF", "#E69F00", "#1FBF92", "#F07A2B", "#E094BE", "#7CC7F2", "#B08BCB", "#C0A05C")

DASHES: tuple[list[float], ...] = ([], [6, 3], [2, 3], [8, 3, 2, 3])
VALIDATION_DASH = [4.0, 3.0]


@dataclass(frozen=True)
class Tokens:
    """The colours of one theme."""

    background: str
    surface: str
    raised: str
    line: str
    text: str
    muted: str
    accent: str
    accent_text: str
    hover: str
    selected: str
    good: str
    warning: str
    bad: str
    info: str
    series: tuple[str, ...]
    dark: bool


LIGHT = Tokens(
    background="#FAFAF9", surface="#FFFFFF", raised="#F3F2F0", line="#E3E2DF", text="#1C1B1A", muted="#6B6966",
    accent="#C8501E", accent_text="#FFFFFF", hover="#F1F0ED", selected="#FBE9E1", good="#1B7F4B", warning="#8F5F00",
    bad="#B3261E", info="#1F6FA8", series=SERIES_LIGHT, dark=False,
)  # fmt: skip
DARK = Tokens(
    background="#181817", surface="#222120", raised="#2B2A28", line="#373634", text="#ECEBE8", muted="#9C9A95",
    accent="#FF8A4C", accent_text="#1C1B1A", hover="#2D2C2A", selected="#46301F", good="#4CC38A", warning="#E0A93B",
    bad="#FF7B72", info="#6CB6EE", series=SERIES_DARK, dark=True,
)  # fmt: skip


class Theme(QObject):
    """Which theme is on. `changed` is sent after the application's palette and style sheet were set."""

    changed = Signal()

    def __init__(self, settings: QSettings | None = None, parent: QObject | None = None):
        super().__init__(parent)
        self._settings = settings
        stored = str(settings.value("theme", "system")) if settings is not None else "system"
        self.choice = stored if stored in ("light", "dark", "system") else "system"
        self.tokens = self._resolve()
        hints = QGuiApplication.styleHints()
        if hints is not None:
            hints.colorSchemeChanged.connect(self._system_changed)

    def choose(self, choice: str) -> None:
        """Takes 'light', 'dark' or 'system', remembers it and shows it."""
        self.choice = choice
        if self._settings is not None:
            self._settings.setValue("theme", choice)
        self.apply()

    def apply(self) -> None:
        """Sets the application's style, palette, font and style sheet."""
        self.tokens = self._resolve()
        application = QApplication.instance()
        if isinstance(application, QApplication):
            if application.style().objectName().lower() != "fusion":
                application.setStyle("Fusion")
            application.setPalette(self.palette())
            application.setFont(self.font())
            application.setStyleSheet(self.sheet())
        self.changed.emit()

    def series(self, index: int) -> QColor:
        """The colour of the index-th series; after eight they repeat, with another dash."""
        return QColor(self.tokens.series[index % len(self.tokens.series)])

    def pen(self, index: int, width: float = 1.5, validation: bool = False) -> QPen:
        """The pen of the index-th series. Validation has the same colour and another stroke."""
        pen = QPen(self.series(index))
        pen.setCosmetic(True)
        pen.setWidthF(width)
        dash = VALIDATION_DASH if validation else DASHES[(index // len(self.tokens.series)) % len(DASHES)]
        if dash:
            pen.setDashPattern(dash)
        return pen

    def colour(self, token: str) -> QColor:
        return QColor(getattr(self.tokens, token))

    def font(self, size: int = SIZE_TEXT, bold: bool = False, fixed: bool = False) -> QFont:
        """The system's font (or its fixed one) in a size of the scale, with digits of equal width."""
        kind = QFontDatabase.SystemFont.FixedFont if fixed else QFontDatabase.SystemFont.GeneralFont
        font = QFontDatabase.systemFont(kind)
        font.setPixelSize(size)
        font.setWeight(QFont.Weight.DemiBold if bold else QFont.Weight.Normal)
        font.setFeature(QFont.Tag("tnum"), 1)
        return font

    def palette(self) -> QPalette:
        tokens = self.tokens
        palette = QPalette()
        roles = {
            QPalette.ColorRole.Window: tokens.background,
            QPalette.ColorRole.Base: tokens.surface,
            QPalette.ColorRole.AlternateBase: tokens.raised,
            QPalette.ColorRole.Button: tokens.surface,
            QPalette.ColorRole.ToolTipBase: tokens.raised,
            QPalette.ColorRole.WindowText: tokens.text,
            QPalette.ColorRole.Text: tokens.text,
            QPalette.ColorRole.ButtonText: tokens.text,
            QPalette.ColorRole.ToolTipText: tokens.text,
            QPalette.ColorRole.PlaceholderText: tokens.muted,
            QPalette.ColorRole.Highlight: tokens.selected,
            QPalette.ColorRole.HighlightedText: tokens.text,
            QPalette.ColorRole.Link: tokens.accent,
            QPalette.ColorRole.Mid: tokens.line,
            QPalette.ColorRole.Accent: tokens.accent,
        }
        for role, value in roles.items():
            palette.setColor(role, QColor(value))
        for role in (QPalette.ColorRole.WindowText, QPalette.ColorRole.Text, QPalette.ColorRole.ButtonText):
            palette.setColor(QPalette.ColorGroup.Disabled, role, QColor(tokens.muted))
        return palette

    def sheet(self) -> str:
        """The style sheet: resources/theme.qss with the tokens put in."""
        text = SHEET.read_text(encoding="utf-8")
        values = {name: value for name, value in vars(self.tokens).items() if isinstance(value, str)}
        values.update(
            chevron=str((ICONS / f"chevron-{'dark' if self.tokens.dark else 'light'}.svg").as_posix()),
            check=str((ICONS / f"check-{'dark' if self.tokens.dark else 'light'}.svg").as_posix()),
        )
        for name, value in sorted(values.items(), key=lambda pair: -len(pair[0])):
            text = text.replace(f"@{name}", value)
        return text

    def _resolve(self) -> Tokens:
        if self.choice != "system":
            return DARK if self.choice == "dark" else LIGHT
        hints = QGuiApplication.styleHints()
        return DARK if hints is not None and hints.colorScheme() == Qt.ColorScheme.Dark else LIGHT

    def _system_changed(self) -> None:
        if self.choice == "system":
            self.apply()


ICONS = Path(__file__).resolve().parent.parent / "resources" / "icons"
SHEET = ICONS.parent / "theme.qss"
