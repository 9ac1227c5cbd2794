"""What a form is given by the window around it."""

from __future__ import annotations

from typing import Any

from app.forms.fields import FormContext
from app.forms.sources import pick_source
from app.places import Context
from engine.catalog import Catalog


def form_context(context: Context, **more: Any) -> FormContext:
    """A form's surroundings: the catalog as far as it is read, cards and sources; `more` as in FormContext."""
    return FormContext(
        context.catalog or Catalog([]),
        open_card=lambda part: context.go("library", part=part),
        pick_source=lambda at, take: pick_source(context, at, take),
        **more,
    )
