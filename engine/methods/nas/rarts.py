"""Architecture search by relaxation: two networks of one architecture, drawn to each other, and first derivatives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.fields import Fraction, NonNegative, OptimizerPart, Positive
from engine.kit.choice import architecture, choices, decide, entropies, genotype, twin
from engine.parts import Batch, Procedure, Task, procedure

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

ID = "rarts"
RATE, DECAY, BETAS = 3e-4, 1e-3, (0.5, 0.999)


def pull(these: Sequence[Tensor], others: Sequence[Tensor], beta: float) -> Tensor:
    """``beta / 2 |these - others|^2``, the others held fixed: its slope is ``beta (these - others)``."""
    away = torch._foreach_sub(list(these), [other.detach() for other in others])
    return beta / 2 * torch.stack([a.square().sum() for a in away]).sum()


class Parameters(nn.Module):
    """Tensors that are trained as one player."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        super().__init__()
        self.each = nn.ParameterList(parameters)


@procedure(
    id=ID,
    name="RARTS",
    paper="RARTS: An Efficient First-Order Relaxed Architecture Search Method",
    arxiv="2008.03901",
    graph="never",
    recommends={
        "model": {"use": "choice-cell"},
        "optimizer": {"use": "sgd", "lr": 0.025, "momentum": 0.9, "weight_decay": 3e-4},
        "training": {"outer": 0.5},
        "budget": {"epochs": 30},
    },
    example={
        "task": {"use": "digits", "train_limit": 60},
        "model": {"use": "choice-cell", "channels": 2},
        "optimizer": {"use": "sgd", "lr": 0.025, "momentum": 0.9},
        "training": {"outer": 0.5, "batch_size": 8},
        "procedure": {"use": ID, "retrain": 0.4},
        "budget": {"steps": 6},
    },
)
class RARTS(Procedure):
    """Searches which operations a network should be made of. Two copies of its weights share one architecture: one
    learns from the training split, the other from the outer split, and they are drawn to each other. The architecture
    learns from both, so that no second derivative is needed.

        F(y, w, a) = L_outer(y, a) + weight L_train(w, a) + beta / 2 |y - w|^2
        w <- w - lr (weight dL_train/dw(w, a) + beta (w - y))
        y <- y - lr (dL_outer/dy(y, a) + beta (y - w))                      at the new w
        a <- a - lr_a (weight dL_train/da(w, a) + dL_outer/da(y, a))        at the new w and y

    At the end, or after 1 - `retrain` of the run, each choice keeps the operation with the largest weight; what is
    left of the run trains the plain network that was found, from fresh weights, on the training split.

    Helps: finding a cell in one run, at about the cost of first-order search, where second-order search needs products
        with second derivatives.
    Hurts: with a small weight and beta the optimum of F is not that of the two-level problem; for 1 / (2 weight) +
        1 / beta >= 2 on a problem like (w - a)^2 it has none at all.
    Cost: a second copy of the weights and four passes forward and back in a step.
    Choices: the pull is a term of the loss of each copy, so it passes through the optimizer's momentum. Weight decay is
        the optimizer's. Each copy keeps its own batch statistics. The architecture moves by Adam at 0.0003 with betas
        0.5 and 0.999 and a decay of 0.001 where no optimizer is named. The model that is measured is w's.

    Args:
        train_weight: What the training loss counts (the paper's lambda).
        beta: How strongly the two copies are drawn to each other.
        architecture_optimizer: What moves the architecture; without one Adam at 0.0003.
        retrain: Share of the run in which the found network alone is trained from the start.
    """

    needs_outer = True
    makes = ("main", "copy", "architecture")
    keeps_parameters = True  # the two copies of the weights are drawn to each other one by one

    def __init__(
        self,
        train_weight: Positive = 1.0,
        beta: NonNegative = 1.0,
        architecture_optimizer: OptimizerPart | None = None,
        retrain: Fraction = 0.0,
    ):
        self.train_weight, self.beta, self.retrain = train_weight, beta, retrain
        self._architecture_optimizer = architecture_optimizer
        self.fresh: dict[str, Tensor] = {}  # the weights that the found network starts from
        self._copy: nn.Module

    def setup(self, run: Run) -> None:
        shared = architecture(run.model)
        self._copy = twin(run.model)
        if self.retrain:
            self.fresh = {name: tensor.detach().clone() for name, tensor in run.model.state_dict().items()}
        run.add_role("main", run.model, but=shared)
        run.add_role("copy", self._copy, but=shared)
        optimizer = self._architecture_optimizer or _adam
        run.add_role("architecture", Parameters(shared), optimizer=optimizer, schedule=False)

    def step(self, run: Run, batch: Batch) -> Any:
        if self.retrain and run.progress.step >= self._turn(run):
            if run.progress.step == self._turn(run):
                self._settle(run)
            output = run.forward(batch)
            run.update("main", run.terms(output, batch), alone=True)
            return output
        return self._search(run, batch)

    def _search(self, run: Run, batch: Batch) -> Any:
        """One iteration: each copy on its split, then the architecture on both."""
        other = run.stream_of("outer", ID).next()
        w, y = run.roles["main"].parameters, run.roles["copy"].parameters
        output = run.forward(batch)
        run.update("main", {**self._weighed(run.terms(output, batch)), "pull": pull(w, y, self.beta)}, alone=True)
        run.batch = other
        terms = run.objective(run.forward(other, self._copy), other)
        run.update("copy", {**terms, "pull": pull(y, w, self.beta)}, alone=True)
        ours = run.total(self._weighed(run.objective(run.forward(batch), batch)), batch)
        theirs = run.total(run.objective(run.forward(other, self._copy), other), other)
        run.update("architecture", {"train": ours, "outer": theirs}, alone=True)
        if run.wants_gradient_norm:
            for path, entropy in entropies(run.model).items():
                run.log(f"entropy/{path}", entropy)
        return output

    def _weighed(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.train_weight * term for name, term in terms.items()}

    def _turn(self, run: Run) -> int:
        """The step at which the search ends and the network that was found begins anew."""
        steps = run.progress.steps
        assert steps is not None
        return round((1 - self.retrain) * steps)

    @torch.no_grad()
    def _settle(self, run: Run) -> None:
        """Keeps the best operation of each choice; weights and optimizer start from the beginning."""
        decide(run.model)
        kept = {path: choice.kept.clone() for path, choice in choices(run.model).items()}
        alphas = [a.clone() for a in architecture(run.model)]
        run.model.load_state_dict(self.fresh)
        for alpha, value in zip(architecture(run.model), alphas, strict=True):
            alpha.copy_(value)
        for path, choice in choices(run.model).items():
            choice.keep(int(kept[path]))
        optimizer = run.roles["main"].optimizer
        if optimizer is not None:
            optimizer.state.clear()
        run.note(f"The search is over: {', '.join(genotype(run.model))}. What is left of the run trains that.")

    def result(self, run: Run) -> dict[str, float]:
        """The share of each operation in what was found."""
        found = genotype(run.model)
        return {f"share/{name}": count / len(found) for name, count in sorted(Counter(found).items())}

    def found(self, run: Run) -> dict[str, Any]:
        """The recipe of the plain network."""
        names = genotype(run.model)
        return {"model.genotype": names} if names and "genotype" in run.recipe["model"] else {}

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if not architecture(anatomy.module):
            return "The model leaves no choice open; use one with choice blocks, such as a cell without a genotype."
        if recipe["training"]["accumulate"] > 1:
            return "It draws batches of its own for the second copy, so a step cannot be split; write accumulate = 1."
        budget = recipe["budget"]
        if settings["retrain"] and budget["seconds"] and not (budget["epochs"] or budget["steps"]):
            return "To train what it found it must know how long the run is; set budget.epochs or budget.steps."
        return None


def _adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=RATE, betas=BETAS, weight_decay=DECAY)
