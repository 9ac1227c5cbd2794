"""The SQLite log: everything a workspace knows of its runs, and the one channel between its processes."""

from engine.log.log import Log, SeriesInfo, new_id
from engine.log.points import Points
from engine.log.schema import SCHEMA_VERSION
from engine.log.writer import SeriesWriter

__all__ = ["SCHEMA_VERSION", "Log", "Points", "SeriesInfo", "SeriesWriter", "new_id"]
