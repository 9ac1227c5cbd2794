"""Figures drawn from data: a view for each kind (`VIEWS`), and the frame around any of them (`FigureView`)."""

from app.figures import maps, networks, pictures, reading, series, space
from app.figures.frame import FigureView
from app.figures.view import VIEWS, View

__all__ = ["VIEWS", "FigureView", "View", "maps", "networks", "pictures", "reading", "series", "space"]
