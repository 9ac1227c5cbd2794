"""A search and a study that only the tests have: put into a folder that ATHANOR_PARTS names."""

HALVING = '''
"""Successive halving with one run a configuration, each new draw leaning on what the best run so far showed."""
import torch
from engine.parts import Answer, Ask, Finding, Search, Study, search, study


@search(id="halving", example={"search": {"first": 4}})
class Halving(Search):
    """Halves the runs and doubles their budget until one is left.

    Args:
        first: Runs to start with.
        whole: Whether a run goes on, or starts anew with the larger share.
    """

    ahead = 1

    def __init__(self, first: int = 4, whole: bool = True):
        self.first = first
        self.spans = "whole" if whole else "share"
        self.rungs: list[list[str]] = [[]]
        self.values: dict[str, float] = {}
        self.changes: dict[str, dict] = {}

    def start(self, rng):
        self.rng = rng

    def ask(self, n):
        rung = len(self.rungs) - 1
        size = self.first >> rung
        if len(self.rungs[-1]) == size:
            if len(self.values) < len(self.changes) or size == 1:
                return []
            self.rungs.append([])
            return self.ask(n)
        id = str(len(self.changes))
        share = 1 / (self.first >> rung)
        if rung == 0:
            drawn = float(torch.rand((), generator=self.rng)) * 0.1
            leaning = 0.0 if not self.values else min(self.values.values())
            changes, before = {"optimizer.lr": drawn * (1 + 0.01 * leaning)}, None
        else:
            ranked = sorted(self.rungs[rung - 1], key=lambda each: self.values[each])
            before = ranked[len(self.rungs[-1])]
            changes = self.changes[before]
        self.rungs[-1].append(id)
        self.changes[id] = changes
        return [Ask(id, changes, share, before if self.spans == "whole" else None)]

    def tell(self, report):
        self.values[report.ask] = report.objective

    def result(self):
        series = {"name": "value", "x": list(range(len(self.values))), "y": list(self.values.values())}
        figure = {"kind": "curve", "title": "Told", "series": [series]}
        return Finding({"told": float(len(self.values))}, {"told": figure})


@study(id="rates")
class Rates(Study):
    """Asks whether the larger of two rates ends with the lower training loss.

    Args:
        rates: The two rates.
        seeds: How many seeds.
    """

    reads = ("train/lo*",)

    def __init__(self, rates: list[float] = [0.01, 0.1], seeds: int = 2):
        self.rates, self.seeds = rates, seeds

    def plan(self, recipe):
        if recipe["optimizer"]["use"] != "sgd":
            raise ValueError("it compares the rates of plain gradient descent.")
        return [
            Ask(f"{rate} {k}", {"optimizer.lr": rate, "seed": recipe["seed"] + k}, labels={"lr": rate, "seed": k})
            for rate in self.rates
            for k in range(self.seeds)
        ]

    def report(self, table):
        ends = {rate: [] for rate in self.rates}
        for row in table:
            if row.state == "done":
                ends[row.labels["lr"]].append(row.series["train/loss"][1][-1])
        means = [sum(each) / max(len(each), 1) for each in ends.values()]
        figure = {"kind": "curve", "title": "Ends", "series": [{"name": "loss", "x": self.rates, "y": means}]}
        word = "yes" if means[1] < means[0] else "no"
        return Answer({"difference": means[1] - means[0]}, {"ends": figure}, f"{word}, over {len(table)} runs.")
'''
