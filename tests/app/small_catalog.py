"""A small catalog with one part for each kind of field, as the registry would write it."""

from __future__ import annotations

from typing import Any

from engine.catalog import Catalog, Entry

FRACTION = {"type": "number", "minimum": 0, "maximum": 1}
RATE = {"type": "number", "exclusiveMinimum": 0, "x-log": True}


def _entry(id: str, kind: str, properties: dict[str, Any] | None = None, **more: Any) -> Entry:
    schema = {"type": "object", "properties": properties or {}, "required": more.pop("required", [])}
    name = id.replace("-", " ").capitalize()
    words = f"Does what {name} does, in a sentence. And a second one."
    return Entry(id, more.pop("name", name), more.pop("slot", kind), kind, words, f"parts:{id}", schema, **more)


def small_catalog() -> Catalog:
    widths = {"type": "array", "items": {"type": "integer", "minimum": 1}, "default": [64]}
    pair = {"type": "array", "prefixItems": [FRACTION, FRACTION], "default": [0.9, 0.99]}
    return Catalog(
        [
            _entry("toy", "task", {"noise": {**FRACTION, "default": 0.1}}, default=True),
            _entry(
                "plain",
                "model",
                {
                    "hidden": {**widths, "title": "hidden", "description": "Units of each layer."},
                    "bias": {"type": "boolean", "default": True},
                    "act": {"enum": ["relu", "gelu"], "type": "string", "default": "relu"},
                    "norm": {"anyOf": [{"x-part": "layer"}, {"type": "null"}], "default": None},
                    "stack": {"x-parts": "layer", "default": []},
                },
                default=True,
                name="Plain net",
            ),
            _entry("wide", "model", {"hidden": widths, "factor": {"type": "integer", "minimum": 1, "default": 2}}),
            _entry("centre", "layer", {"eps": {**RATE, "default": 1e-5}}),
            _entry("squeeze", "layer", {"ratio": {**FRACTION, "default": 0.25}}),
            _entry("crawl", "optimizer", {"lr": {**RATE, "default": 0.001}, "betas": pair}, default=True),
            _entry(
                "leap",
                "optimizer",
                {"lr": {**RATE, "default": 0.1}, "reach": {"type": "integer", "minimum": 1, "default": 3}},
                papers=[{"title": "Leaping over valleys", "arxiv": "2001.00001"}],
                formula="w <- w - lr g",
                helps="Where valleys are wide.",
                hurts="Where they are narrow.",
                cost="One buffer a weight.",
                recommends={"schedule": {"use": "fall"}, "training": {"batch_size": 64}},
                file="engine/catalog.py",
            ),
            _entry("still", "schedule", default=True),
            _entry("fall", "schedule", {"floor": {**FRACTION, "default": 0.0}}),
            _entry("direct", "procedure", default=True),
            _entry("solve", "procedure", uses=[]),
            _entry(
                "shake",
                "technique",
                {
                    "amount": {"type": "number", "minimum": 0, "x-value": True, "default": 0.1},
                    "where": {"type": "string", "x-sites": True, "default": "norm"},
                },
                slot="gradient",
            ),
            _entry("prune", "technique", {"n": {"type": "integer", "minimum": 1, "default": 2}}, slot="sparsity"),
            _entry("table", "technique", {"file": {"type": "string", "x-file": True}}, required=["file"]),
            _entry("look", "probe", {"limit": {"anyOf": [{"type": "integer"}, {"type": "string"}], "default": "all"}}),
            _entry("every", "search", {"space": {"type": "object", "x-space": True}}, required=["space"]),
        ],
        {
            "training": {
                "type": "object",
                "properties": {"batch_size": {"type": "integer", "minimum": 1, "default": 32, "title": "batch size"}},
            },
            "budget": {"type": "object", "properties": {"epochs": {"type": "number", "minimum": 0, "default": 10.0}}},
        },
    )
