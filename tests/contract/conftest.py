"""The catalog's parts as parameters, and a second process in which runs are resumed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from engine import registry
from engine.endpoints import Permissions
from tests.endpoint import Endpoint, by_rules, serving

CATALOG = registry.catalog()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "part" in metafunc.fixturenames:
        metafunc.parametrize("part", list(CATALOG.parts))
    if "tasked" in metafunc.fixturenames:
        metafunc.parametrize("tasked", [e.id for e in CATALOG.of_kind("task")])
    if "trained" in metafunc.fixturenames:
        metafunc.parametrize("trained", [e.id for e in CATALOG.parts.values() if e.kind in TRAINED])
    if "posed" in metafunc.fixturenames:
        metafunc.parametrize("posed", [e.id for e in CATALOG.of_kind("task")])
    if "decoded" in metafunc.fixturenames:
        metafunc.parametrize("decoded", [e.id for e in CATALOG.of_kind("decoder")])
    if "transforming" in metafunc.fixturenames:
        metafunc.parametrize("transforming", [e.id for e in CATALOG.of_kind("transform")])
    if "searched" in metafunc.fixturenames:
        metafunc.parametrize("searched", [e.id for e in CATALOG.of_kind("search")])
    if "studied" in metafunc.fixturenames:
        metafunc.parametrize("studied", [e.id for e in CATALOG.of_kind("study")])


TRAINED = (
    *("task", "model", "layer", "loss", "sampler", "optimizer"),
    *("schedule", "technique", "procedure", "decoder", "probe", "transform", "language-model"),
)


@pytest.fixture(scope="package")
def server() -> Iterator[Endpoint]:
    """What the parts that talk to a server talk to in this folder: their default address is this one's."""
    fields = [f for entry in CATALOG.parts.values() for f in entry.schema["properties"].values() if f.get("x-endpoint")]
    with serving(by_rules()) as endpoint:
        before = [field.get("default") for field in fields]
        for field in fields:
            field["default"] = endpoint.url
        yield endpoint
        for field, default in zip(fields, before, strict=True):
            field["default"] = default


@pytest.fixture(autouse=True)
def _allowed(server: Endpoint, _own_folders: None) -> None:
    """The server is allowed in this test, and in the processes that it starts; nothing else is."""
    Permissions().allow(server.origin)


@pytest.fixture(scope="session")
def another_process():
    """A process that has not seen what this one did."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool
