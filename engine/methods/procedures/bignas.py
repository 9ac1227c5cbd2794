"""Training one network so that every smaller network inside it is a good one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from engine.fields import Whole
from engine.kit.elastic import Config, Elastic
from engine.parts import Batch, Procedure, Task, Terms, procedure

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

ID = "bignas"


@contextmanager
def undropped(model: nn.Module) -> Iterator[None]:
    """Within the context nothing is silenced at random."""
    layers = [module for module in model.modules() if isinstance(module, _DropoutNd) and module.training]
    try:
        for layer in layers:
            layer.training = False
        yield
    finally:
        for layer in layers:
            layer.training = True


@procedure(
    id=ID,
    name="BigNAS single-stage supernet",
    paper="BigNAS: Scaling Up Neural Architecture Search with Big Single-Stage Models",
    arxiv="2003.11142",
    graph="never",
    recommends={
        "model": {"use": "elastic-cnn", "dropout": 0.2, "zero_gamma": True},
        "schedule": {"use": "exponential", "decay": 0.97, "floor": 0.05},
        "training": {"normalization": "recalibrated", "calibration_batches": 10},
    },
    example={
        "task": {"use": "digits"},
        "model": {"use": "elastic-cnn", "widths": [4], "kernels": [3]},
        "training": {"normalization": "recalibrated", "calibration_batches": 2, "evaluation_batch": 512},
    },
)
class BigNAS(Procedure):
    """Trains an elastic network so that the networks inside it can be used as they are, without further training. Each
    step trains the largest on the labels, and on the same batch the smallest and some random ones to answer like it.

        L = CE(f_largest(x), y) + sum over the smallest and n random children of CE(f_child(x), softmax f_largest(x))

    The largest one's answer is held fixed as a target. All gradients are added up and one step is taken.

    Helps: one training for devices of several sizes; choosing an architecture after the training.
    Hurts: a child that is evaluated with the running statistics that all share loses tens of points: set normalization
        to recalibrated. On small images the smallest child was no better than the same network trained alone, and
        children that learn the labels themselves did as well as those that learn the largest one's answer.
    Cost: a pass forward and back for each child: with two random ones about two and a half that of the largest alone.
    Choices: dropout acts in the largest alone, and weight decay once a step, in the optimizer. The children's terms
        have the weight of the label's. Children are drawn choice by choice, each value equally likely. The metrics are
        those of the largest; the variants smallest and middle are measured beside it.

    Args:
        random_children: Children drawn at random in each step.
        children: The largest and the smallest in each step, or as many children, all drawn at random.
        distillation: Whether the children learn the largest one's answer; else the labels.
    """

    def __init__(
        self,
        random_children: Whole = 2,
        children: Literal["sandwich", "random"] = "sandwich",
        distillation: bool = True,
    ):
        self.random_children, self.children, self.distillation = random_children, children, distillation

    def step(self, run: Run, batch: Batch) -> Any:
        model: Any = run.model
        first, *others = self.drawn(model, run.rng(ID))
        model.configure(first)
        output = run.forward(batch)
        terms = run.terms(output, batch)
        soft = output.detach().softmax(-1)
        with undropped(model):
            for number, config in enumerate(others):
                model.configure(config)
                answer = run.forward(batch)
                terms[f"child{number}"] = self._term(run, answer, soft, batch)
        model.configure(model.largest())
        run.update("main", terms)
        return output

    def drawn(self, model: Elastic, rng: torch.Generator) -> list[Config]:
        """The networks of one step; the first learns the labels."""
        drawn = [model.sample(rng) for _ in range(self.random_children)]
        if self.children == "random":
            return [model.sample(rng), model.sample(rng), *drawn]
        return [model.largest(), model.smallest(), *drawn]

    def _term(self, run: Run, answer: Any, soft: Any, batch: Batch) -> Any:
        if self.distillation:
            return F.cross_entropy(answer.float(), soft.float(), reduction="none")
        terms: Terms = run.objective(answer, batch)
        return torch.stack([term.expand(len(batch)) for term in terms.values()]).sum(0)

    def variants(self, run: Run) -> dict[str, Callable[[], AbstractContextManager[None]]]:
        model: Any = run.model
        return {
            "smallest": partial(model.configured, model.smallest()),
            "middle": partial(model.configured, model.middle()),
        }

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if not isinstance(anatomy.module, Elastic):
            return "It trains the networks inside an elastic one; choose a model of many configurations."
        if task.offer.output != "classes":
            return f"Its children learn class probabilities, and the task offers {task.offer.output}."
        return None
