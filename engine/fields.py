"""The types that a part's constructor may give its parameters. Each is a kind of form field, and a check.

They are ordinary annotations: a type checker sees `float`, pydantic sees the limits, a form sees both.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Betas = tuple[Decay, Decay]
Widths = list[Count]
Numbers = list[float]

# A rate: a positive number that is best drawn on a log scale.
Rate = Annotated[float, Field(gt=0, json_schema_extra={"x-log": True})]

# A number, or one that changes over the run: see `engine.parts.Value`.
OverTime = Annotated[Any, WithJsonSchema({"type": "number", "x-value": True})]
NonNegativeOverTime = Annotated[Any, WithJsonSchema({"type": "number", "minimum": 0, "x-value": True})]
FractionOverTime = Annotated[Any, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1, "x-value": True})]

# A selection of a model's modules: a role ("norm"), paths with wildcards ("blocks.*.fc1"), "not first", "not last".
Sites = Annotated[str, Field(json_schema_extra={"x-sites": True})]
# Something trained elsewhere, by a text such as "run:ID@best" or "recipe:FILE": see `engine.parts.Source`.
SourceField = Annotated[Any, WithJsonSchema({"type": "string", "x-source": True})]
SourcesField = list[SourceField]
# What a part learns inside a run: path of a setting that is named `live` -> {low, high, log}; see `engine.kit.live`.
Live = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "x-space": True, "x-live": True})]
# What a search varies: path -> list of values, or {low, high, log, whole}, or either with a condition ({values, when},
# {low, high, ..., when}): see `engine.kit.spaces`.
Space = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "x-space": True})]


# Text of several lines.
Lines = Annotated[str, Field(json_schema_extra={"x-lines": True})]
# The address of a server that a part talks to, a secret's name, and whether only kept replies are used: what a part
# with such fields may do is asked of the person first, see `engine.endpoints`.
Endpoint = Annotated[str, Field(pattern=r"^https?://[^\s/?#@]+(/[^\s?#@]*)?$", json_schema_extra={"x-endpoint": True})]
SecretName = Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9-]*)?$", json_schema_extra={"x-secret": True})]
Replay = Annotated[Literal["record", "only"], Field(json_schema_extra={"x-replay": True})]


def part_of(kind: str) -> Any:
    """The annotation's mark for a parameter that is itself a part: ``Annotated[Any, part_of("layer")]``."""
    return WithJsonSchema({"x-part": kind})


def parts_of(kind: str) -> Any:
    """The annotation's mark for a list of parts."""
    return WithJsonSchema({"x-parts": kind})


LayerPart = Annotated[Any, part_of("layer")]
LossPart = Annotated[Any, part_of("loss")]
SchedulePart = Annotated[Any, part_of("schedule")]
OptimizerPart = Annotated[Any, part_of("optimizer")]
ModelPart = Annotated[Any, part_of("model")]
TaskPart = Annotated[Any, part_of("task")]
LanguagePart = Annotated[Any, part_of("language-model")]
