"""ConFIG: one step that no loss resists, from the gradients of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.fields import Decay, Numbers
from engine.kit.curvature import flat, gradient, like
from engine.parts import Batch, Moves, Procedure, Technique, procedure, technique

if TYPE_CHECKING:
    from engine.training.run import Role, Run

TITLE = "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks"
ARXIV = "2408.11104"
RANK = 1e-12  # eigenvalues of the small matrix of cosines below this share of the largest count as zero
TINY = 1e-6
EPS = 1e-8


def conflict_free(grads: Tensor, weights: Tensor | None = None) -> Tensor:
    """The conflict-free gradient of the rows of `grads`; its cosines with them are as `weights` (equal when None).

    Computed from the matrix of cosines, one row and column a loss, in float64. A row of zeros takes no part. Where the
    rows are opposite, no direction suits both, and the answer is zero.
    """
    wide = grads.double()
    lengths = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    there = lengths > 0
    units = wide / torch.where(there, lengths, 1.0)
    wanted = torch.ones_like(lengths) if weights is None else weights.to(wide).view(-1, 1)
    mixture = torch.linalg.pinv(units @ units.T, rtol=RANK, hermitian=True) @ (wanted * there)
    direction = (units.T @ mixture).squeeze(1)
    length = torch.linalg.vector_norm(direction)
    # A direction that suits all has a length of at least the largest weight; far less is the rounding of none.
    unit = torch.where(length > TINY * wanted.max(), direction / length, 0.0)
    return ((wide @ unit).sum() * unit).to(grads)


def _weights(given: Sequence[float], names: Sequence[str], device: torch.device) -> Tensor | None:
    if not given:
        return None
    if len(given) != len(names):
        raise ValueError(f"weights has {len(given)} numbers, and there are {len(names)} terms: {', '.join(names)}.")
    return torch.tensor(given, device=device)


def _checked(weights: Numbers) -> list[float]:
    if any(not weight > 0 for weight in weights):
        raise ValueError(f"weights = {weights} must all be greater than 0.")
    return weights


@technique(
    id="config-gradients",
    name="ConFIG",
    paper=TITLE,
    arxiv=ARXIV,
    recommends={"optimizer": {"use": "adamw", "lr": 0.001, "weight_decay": 0.0}},
    example={"task": {"use": "digits-two-targets"}},
)
class ConfigGradients(Technique):
    """Steps in the direction that every loss agrees to. A sum of losses can lower one and raise another; this direction
    has the same positive cosine with the gradient of each, and its length shrinks where they conflict.

        u_i = g_i / |g_i|;   d = U^+ 1, U having the rows u_i;   g = (sum_i g_i . d / |d|) d / |d|

    The log shows the lowest cosine between the step and a term's gradient, as `config-gradients/lowest-cosine`.

    Helps: Several losses on one network that differ in size and direction, such as an equation and its boundary.
    Hurts: Where one loss matters and the others only help: all of them get the same say, whatever their scale.
    Cost: A backward pass for each term, and memory for their gradients.
    Choices: Each named term of the loss counts as one loss, penalties included. What only one term depends on (a head)
        is part of the gradients as everything else. The length is the sum of the projections.

    Args:
        weights: Ratio of the cosines, one number a term in the order of the log; empty gives all the same.

    Raises:
        ValueError: For weights that are not positive, or not as many as there are terms.
    """

    per_term = True
    any_role = True

    def __init__(self, weights: Numbers = []) -> None:  # noqa: B006 - shown in the form; it is never changed
        self.weights = _checked(weights)

    def combine(self, run: Run, role: Role, terms: Mapping[str, list[Tensor]]) -> list[Tensor]:
        rows = torch.stack([flat(grads) for grads in terms.values()])
        found = conflict_free(rows, _weights(self.weights, list(terms), rows.device))
        if run.wants_gradient_norm:
            prefix = "" if role.name == "main" else f"{role.name}/"
            cosines = torch.nn.functional.cosine_similarity(rows, found.unsqueeze(0), dim=1)
            run.log(f"{prefix}config-gradients/lowest-cosine", cosines.min())
        return like(found, role.parameters)


@procedure(
    id="config-gradients-momentum",
    name="M-ConFIG",
    paper=TITLE,
    arxiv=ARXIV,
    recommends={"optimizer": {"use": "sgd", "lr": 0.001, "momentum": 0.0}},
    example={
        "task": {"use": "digits-two-targets"},
        "optimizer": {"use": "sgd", "lr": 0.001, "momentum": 0.0},
    },
)
class ConfigGradientsMomentum(Procedure):
    """Differentiates one loss a step, in turn, and combines the running means of all their gradients without conflict.
    It costs what one loss costs, however many there are.

        at step t, i = t mod m:   m_i <- b1 m_i + (1 - b1) g_i,   M_i = m_i / (1 - b1^(t_i))
        g = ConFIG(M_1 .. M_m);   f <- g (1 - b1^T);   p = (f - b1 f_before) / (1 - b1)
        s <- b2 s + (1 - b2) p^2;   w <- w - lr g / (sqrt(s / (1 - b2^T)) + 1e-8)
        t_i: how often loss i was seen;  T: steps since all were

    With one loss this is Adam. The recipe's optimizer only subtracts: choose plain SGD, without momentum.

    Helps: Many losses on one network where a backward pass for each is too dear.
    Hurts: Losses whose gradients turn quickly: the mean of each is m steps old when it is used.
    Cost: One forward and backward pass a step; memory for a mean a loss and three more copies of the weights.
    Choices: Nothing moves before every loss was seen once. Each named term counts as one loss, penalties included.

    Args:
        beta1: Decay of the running mean of each loss's gradient.
        beta2: Decay of the running mean of the squares.
        weights: Ratio of the cosines, one number a term in the order of the log; empty gives all the same.

    Raises:
        ValueError: For weights that are not positive, or not as many as there are terms.
    """

    offers = ("gradients", "output")
    divisible = False

    def __init__(
        self,
        beta1: Decay = 0.9,
        beta2: Decay = 0.999,
        weights: Numbers = [],  # noqa: B006 - shown in the form; it is never changed
    ) -> None:
        self.beta1, self.beta2 = beta1, beta2
        self.weights = _checked(weights)
        self.means: list[Tensor] = []  # of each loss's gradient, flattened
        self.seen: list[int] = []
        self.before = self.squares = torch.zeros(0)
        self.steps = 0

    def step(self, run: Run, batch: Batch) -> Any:
        output = run.forward(batch)
        terms = run.terms(output, batch)
        role = run.roles["main"]
        names = list(terms)
        turn = sum(self.seen) % len(names)
        value = run.total({names[turn]: terms[names[turn]]}, batch)
        run.count("gradient-passes")
        step = self.learn(flat(gradient(value, role.parameters)), turn, names)
        grads = [None] * len(role.parameters) if step is None else like(step, role.parameters)
        run.update("main", {name: each.detach() for name, each in terms.items()}, grads)
        return output

    def on_surgery(self, run: Run, moves: Moves) -> None:
        """Other weights: the means start anew."""
        self.means, self.seen, self.steps = [], [], 0

    @torch.no_grad()
    def learn(self, grad: Tensor, turn: int, names: Sequence[str]) -> Tensor | None:
        """Takes in the gradient of one loss; returns the direction to step against, None before all were seen."""
        if not self.means:
            self.means = [torch.zeros_like(grad) for _ in names]
            self.seen = [0] * len(names)
            self.before, self.squares = torch.zeros_like(grad), torch.zeros_like(grad)
        self.means[turn].lerp_(grad, 1 - self.beta1)
        self.seen[turn] += 1
        if min(self.seen) == 0:
            return None
        self.steps += 1
        rows = torch.stack([mean / (1 - self.beta1**n) for mean, n in zip(self.means, self.seen, strict=True)])
        found = conflict_free(rows, _weights(self.weights, names, grad.device))
        undone = found * (1 - self.beta1**self.steps)
        fresh = (undone - self.beta1 * self.before) / (1 - self.beta1)
        self.before = undone
        self.squares.mul_(self.beta2).addcmul_(fresh, fresh, value=1 - self.beta2)
        return found / ((self.squares / (1 - self.beta2**self.steps)).sqrt() + EPS)
