"""The catalog's parts as parameters, and a second process in which runs are resumed."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from engine import registry

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
    *("schedule", "technique", "procedure", "decoder", "probe", "transform"),
)


@pytest.fixture(scope="session")
def another_process():
    """A process that has not seen what this one did."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool
