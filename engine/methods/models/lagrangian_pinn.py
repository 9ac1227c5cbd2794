"""Networks that ride along with what moves, instead of watching it pass."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from engine.fields import Count
from engine.kit.anatomy import example_input
from engine.parts import Model, Offer, Task, model

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy


@model(
    id="lagrangian-pinn",
    name="Lagrangian PINN",
    paper="Lagrangian PINNs: A causality-conforming solution to failure modes of physics-informed neural networks",
    arxiv="2205.02902",
    recommends={
        "task": {"use": "transport-equation"},
        "optimizer": {"use": "adamw", "lr": 1e-3, "weight_decay": 0.0},
        "training": {"evaluate_every": 200},
        "budget": {"steps": 2000},
    },
    example={
        "task": {"use": "transport-equation", "places": 8, "times": 4},
        "model": {"hidden": 6, "depth_u": 2},
        "training": {"evaluate_every": 3},
        "budget": {"steps": 4},
    },
)
class LagrangianPINN(Model):
    """Solves an equation of what moves with two networks: one says where a point that starts at x0 has got to, the
    other what it carries. Fast motion, on which a network that answers u(x, t) fails, becomes a straight line.

        X(x0, t) = x0 + t N_x(x0, t),   U(x0, t) = u0(x0) + t N_u(x0, t)
        loss = |dX/dt - c(U)| + |dU/dt - viscosity U_xx - reaction U|,   roots of sums of squares over the grid

    The two start right by construction; u at a fixed place is found between the carried points.

    Helps: convection that is fast for the time looked at; any speed costs the same.
    Hurts: where curves cross (a shock without viscosity) X cannot be turned back: watch `crossed`. It is made for one
        dimension of space.
    Cost: two small networks in the place of one, and with viscosity second derivatives.
    Choices: the networks are separate; the reference shares their first and last hidden layers. It takes the second
        derivative by x0, which is right only while dX/dx0 = 1; here it is that by x. Without the hard start, X is
        x0 + N_x all the same, because a network that is periodic in x0 cannot represent x0 itself. It was trained with
        the AMSGrad form of Adam.

    Args:
        hidden: Units of each hidden layer.
        depth_u: Hidden layers of the network for what is carried.
        depth_x: Hidden layers of the network for the place.
        hard_ic: Whether the state at time 0 is built in; else it is a term of the loss.

    Raises:
        ValueError: For a task that does not say where points start and with what.
    """

    def __init__(self, offer: Offer, hidden: Count = 50, depth_u: Count = 4, depth_x: Count = 2, hard_ic: bool = True):
        super().__init__()
        if "carried" not in offer.about or offer.input != "vector" or offer.size != 1:
            raise ValueError(
                "A Lagrangian PINN solves an equation of transport, and this task does not say where points start and "
                "what they carry. Choose a task with such an equation, or another model."
            )
        self._offer = offer
        self._from: Mapping[str, Any] = offer.about["carried"]
        self.hard_ic = hard_ic
        self.displacement = _network(offer.features, [hidden] * depth_x)
        self.state = _network(offer.features, [hidden] * depth_u)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        moved, carried = self.displacement(x), self.state(x)
        place = self._from["place"](x)
        if not self.hard_ic:
            return {"place": place + moved, "state": carried}
        t = self._from["time"](x)
        return {"place": place + t * moved, "state": self._from["state"](x) + t * carried}

    def anatomy(self) -> Anatomy:
        from engine.kit.anatomy import Anatomy

        return Anatomy(
            self,
            stem=None,
            blocks=[*list(self.displacement)[:-1], *list(self.state)[:-1]],
            features=self.state[-2],
            head=self.state[-1],
            example=example_input(self._offer),
        )

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if recipe.get("loss"):
            return "it answers with two tensors, which only the objective of its task can take; leave [loss] out."
        return None


def _network(inputs: int, hidden: list[int]) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (wide, units) in enumerate(pairwise([inputs, *hidden])):
        layers[f"layer{i + 1}"] = nn.Sequential(OrderedDict(linear=nn.Linear(wide, units), activation=nn.Tanh()))
    layers["head"] = nn.Linear(hidden[-1], 1)
    return nn.Sequential(layers)
