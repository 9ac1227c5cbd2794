"""Icons: strokes of 1.5 px on a 24 px grid, drawn in the colour that the theme wants."""

from __future__ import annotations

from functools import lru_cache

from PySide6.QtCore import QByteArray, QRectF, QSize, Qt
from PySide6.QtGui import QIcon, QPainter, QPixmap
from PySide6.QtSvg import QSvgRenderer

from app.theme import ICONS, Theme


@lru_cache(maxsize=256)
def _source(name: str) -> str:
    return (ICONS / f"{name}.svg").read_text(encoding="utf-8")


@lru_cache(maxsize=1024)
def pixmap(name: str, colour: str, size: int = 18, ratio: float = 1.0) -> QPixmap:
    """The icon in one colour, sharp at the screen's scale."""
    renderer = QSvgRenderer(QByteArray(_source(name).replace("currentColor", colour).encode()))
    image = QPixmap(QSize(round(size * ratio), round(size * ratio)))
    image.fill(Qt.GlobalColor.transparent)
    painter = QPainter(image)
    renderer.render(painter, QRectF(0, 0, image.width(), image.height()))
    painter.end()
    image.setDevicePixelRatio(ratio)
    return image


def icon(theme: Theme, name: str, token: str = "text", on: str = "accent", size: int = 18) -> QIcon:
    """The icon in a token's colour; checked it takes the colour `on`, disabled the muted one."""
    result = QIcon()
    tokens = theme.tokens
    colour, checked = getattr(tokens, token, token), getattr(tokens, on, on)
    for ratio in (1.0, 2.0):
        for mode in (QIcon.Mode.Normal, QIcon.Mode.Active, QIcon.Mode.Selected):
            result.addPixmap(pixmap(name, colour, size, ratio), mode, QIcon.State.Off)
            result.addPixmap(pixmap(name, checked, size, ratio), mode, QIcon.State.On)
        for state in (QIcon.State.Off, QIcon.State.On):
            result.addPixmap(pixmap(name, tokens.muted, size, ratio), QIcon.Mode.Disabled, state)
    return result
