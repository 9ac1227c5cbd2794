"""Whether the best learning rate stays the same when a network gets wider."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field

from engine.fields import Count, Numbers, Positive, Widths
from engine.parts import Answer, Ask, Figure, Row, Study, study

EDGE = "probe/sharpness/edge"
LOSS = "train/loss"
PARAMETRIZATIONS = {"both": ("mup", "ntp"), "mup": ("mup",), "ntp": ("ntp",)}
Two = Annotated[Widths, Field(min_length=2)]


@study(
    id="lr-transfer-sharpness",
    name="Does the learning rate transfer across widths?",
    paper="Why do Learning Rates Transfer? Reconciling Optimization and Scaling Limits for Deep Learning",
    arxiv="2402.17457",
    recommends={
        "task": {"use": "digits", "target": "one-hot", "standardize": True, "train_limit": 512},
        "model": {"use": "scaled-residual-mlp"},
        "loss": {"use": "half-squared-error"},
        "optimizer": {"use": "sgd", "momentum": 0.0, "weight_decay": 0.0},
        "schedule": {"use": "constant"},
        "training": {"batch_size": 512, "evaluate_every": 10},
        "budget": {"epochs": 0, "steps": 200},
    },
    example={
        "task": {"use": "digits", "target": "one-hot", "standardize": True, "train_limit": 32},
        "model": {"use": "scaled-residual-mlp", "depth": 1},
        "loss": {"use": "half-squared-error"},
        "optimizer": {"use": "sgd"},
        "training": {"batch_size": 32, "evaluate_every": 2},
        "budget": {"steps": 4},
        "study": {"widths": [4, 8], "rates": [0.5, 1.0], "look_at": 1.0, "iterations": 4, "samples": 32},
    },
)
class LrTransferSharpness(Study):
    """Trains networks of several widths with several learning rates, and watches how sharp the loss gets.
    In muP the sharpness times the rate runs alike at every width, up to the edge of stability at 2; so does the best
    rate. In NTP wide networks stay away from the edge, and the best rate drifts.

        best(N) = argmin_eta0 loss_T(N, eta0);   drift = |log2 best(N_max) / best(N_min)|
        edge(N, t) = eta lambda_max(t);   spread = (max_N edge - min_N edge) / mean_N edge at the end

    Helps: before a rate that was found on a small network is used on a large one.
    Hurts: on a loss that the rates hardly tell apart, the best one is luck: give it seeds and steps enough.
    Cost: a run for each parametrization, width, rate and seed, each with its probes.
    Choices: a run that diverged counts as infinitely bad. The loss is that of the last training step, its mean over the
        seeds. The spread and the edge are taken at the rate `look_at`, as a mean over the last quarter of the looks.
        The loss itself coincides less well across widths than the sharpness does.

    Args:
        widths: The widths to compare, the smallest first.
        rates: The base rates eta_0 to try; the rate of SGD is eta_0 gamma^2.
        look_at: The rate whose sharpness is compared across widths; one of the rates.
        parametrization: Which parametrizations to compare.
        seeds: Runs of each setting, with the recipe's seed and those after it.
        iterations: Steps of Lanczos at each look.
        samples: Training samples that the sharpness is measured on.

    Raises:
        ValueError: For fewer than two widths, repeated widths or rates, or a `look_at` that is none of the rates.
    """

    reads = (EDGE, LOSS)

    def __init__(
        self,
        widths: Two = [64, 128, 256, 512],  # noqa: B006 - the default is shown in the form; it is never changed
        rates: Numbers = [0.25, 0.5, 1.0, 2.0, 4.0],  # noqa: B006
        look_at: Positive = 2.0,
        parametrization: Literal["both", "mup", "ntp"] = "both",
        seeds: Count = 1,
        iterations: Count = 20,
        samples: Count = 256,
    ):
        if len(set(widths)) < max(len(widths), 2) or len(set(rates)) < max(len(rates), 1):
            raise ValueError("give at least two widths and one rate, each of them once.")
        if look_at not in rates:
            raise ValueError(f"look_at = {look_at:g} is none of the rates {', '.join(f'{r:g}' for r in rates)}.")
        self.widths, self.rates, self.look_at = sorted(widths), sorted(rates), look_at
        self.parametrization, self.seeds = parametrization, seeds
        self.iterations, self.samples = iterations, samples
        self._kinds = PARAMETRIZATIONS[parametrization]

    def plan(self, recipe: Mapping[str, Any]) -> list[Ask]:
        missing = [name for name in ("width", "parametrization") if name not in recipe["model"]]
        if missing:
            raise ValueError(f"the model {recipe['model']['use']} has no {missing[0]}; use scaled-residual-mlp.")
        probe = {"use": "sharpness", "iterations": self.iterations, "samples": self.samples, "kernel": False}
        asks = []
        for kind, width, rate, k in product(self._kinds, self.widths, self.rates, range(self.seeds)):
            labels = {"parametrization": kind, "width": width, "rate": rate, "seed": k}
            changes = {"model.parametrization": kind, "model.width": width, "optimizer.lr": rate}
            # Where the sharpness is not looked at, its looks would only cost time.
            looks = [probe] if rate == self.look_at else []
            changes |= {"seed": recipe["seed"] + k, "probes": looks}
            asks.append(Ask(f"{kind}-{width}-{rate:g}-{k}", changes, labels=labels))
        return asks

    def report(self, table: Sequence[Row]) -> Answer:
        answer = Answer()
        sentences = []
        for kind in self._kinds:
            rows = [row for row in table if row.labels["parametrization"] == kind]
            losses = {width: [self._loss(rows, width, rate) for rate in self.rates] for width in self.widths}
            edges = {width: self._edge(rows, width) for width in self.widths}
            answer.figures[f"loss-{kind}"] = self._loss_figure(kind, losses)
            answer.figures[f"edge-{kind}"] = self._edge_figure(kind, edges)
            sentences.append(self._judge(kind, losses, edges, answer.scalars))
        answer.verdict = " ".join(sentences)
        return answer

    # -- measuring -------------------------------------------------------------------------------------------------

    def _loss(self, rows: Sequence[Row], width: int, rate: float) -> float:
        """The mean loss of the last step over the seeds; infinite where a run has failed or is missing."""
        found = [row for row in rows if (row.labels["width"], row.labels["rate"]) == (width, rate)]
        ends = [row.series[LOSS][1][-1] if row.state == "done" and LOSS in row.series else math.inf for row in found]
        mean = statistics.fmean(ends) if ends else math.inf
        return mean if math.isfinite(mean) else math.inf

    def _edge(self, rows: Sequence[Row], width: int) -> tuple[list[int], list[float]]:
        """Rate times sharpness over the steps, the mean over the seeds; empty where a run has failed."""
        found = [row for row in rows if (row.labels["width"], row.labels["rate"]) == (width, self.look_at)]
        if not found or any(row.state != "done" or EDGE not in row.series for row in found):
            return [], []
        curves = [row.series[EDGE][1] for row in found]
        length = min(len(curve) for curve in curves)
        means = [statistics.fmean(curve[i] for curve in curves) for i in range(length)]
        return found[0].series[EDGE][0][:length], means

    def _judge(
        self,
        kind: str,
        losses: Mapping[int, list[float]],
        edges: Mapping[int, tuple[list[int], list[float]]],
        scalars: dict[str, float],
    ) -> str:
        """Puts the numbers of one parametrization into the scalars; returns them in words."""
        name = "muP" if kind == "mup" else "NTP"
        prefix = f"{kind} " if len(self._kinds) > 1 else ""
        small, large = self.widths[0], self.widths[-1]
        best = {width: self._best(losses[width]) for width in (small, large)}
        if math.isnan(best[small]) or math.isnan(best[large]):
            words = f"In {name} no rate trains both widths."
        else:
            drift = abs(math.log2(best[large] / best[small]))
            scalars[f"{prefix}drift"] = drift
            words = f"In {name} the best rate is {best[small]:g} at width {small} and {best[large]:g} at {large}"
            words += f" (a drift of {drift:.3g} octaves)."
        ends = [statistics.fmean(curve[-max(len(curve) // 4, 1) :]) for _, curve in edges.values() if curve]
        if len(ends) == len(self.widths):
            mean = statistics.fmean(ends)
            scalars[f"{prefix}edge"] = mean
            scalars[f"{prefix}spread"] = (max(ends) - min(ends)) / mean if mean else 0.0
            words = words[:-1] + f"; at rate {self.look_at:g}, rate times sharpness ends from {min(ends):.3g} to "
            words += f"{max(ends):.3g}."
        return words

    def _best(self, losses: Sequence[float]) -> float:
        lowest = min(losses)
        return self.rates[losses.index(lowest)] if math.isfinite(lowest) else math.nan

    # -- figures ---------------------------------------------------------------------------------------------------

    def _loss_figure(self, kind: str, losses: Mapping[int, list[float]]) -> Figure:
        series = []
        for width, values in losses.items():
            there = [(math.log2(rate), v) for rate, v in zip(self.rates, values, strict=True) if math.isfinite(v)]
            series.append({"name": f"width {width}", "x": [x for x, _ in there], "y": [y for _, y in there]})
        return {
            "kind": "curve",
            "title": f"Loss by rate, {kind}",
            "x": {"label": "log2 of the base rate"},
            "y": {"label": "training loss at the end"},
            "series": series,
        }

    def _edge_figure(self, kind: str, edges: Mapping[int, tuple[list[int], list[float]]]) -> Figure:
        series = [{"name": f"width {width}", "x": steps, "y": values} for width, (steps, values) in edges.items()]
        return {
            "kind": "curve",
            "title": f"Rate times sharpness, {kind}, base rate {self.look_at:g}",
            "x": {"label": "step"},
            "y": {"label": "eta lambda_max"},
            "series": series,
        }
