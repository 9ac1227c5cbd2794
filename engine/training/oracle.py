"""What plain gradients do not give: the loss at other weights, gradients in parts, curvature along a direction.

Each call replays the random draw of the step (the same dropout mask), leaves buffers and parameter gradients as they
were, and is counted. An oracle can be made from any module and any function of (output, batch), so that optimizers
with `attach` work without the workbench:

    oracle = Oracle(model, lambda output, batch: {"task": cross_entropy(output, batch.target)}, batch)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from engine.kit import curvature
from engine.parts import Batch, Terms
from engine.training.random import global_state, replayed


def mean_of(term: Tensor, weight: Tensor | None = None) -> Tensor:
    """A term as one number: the mean over its samples, weighted where the batch has weights."""
    if term.dim() == 0:
        return term
    return term.mean() if weight is None else (term * weight).sum() / weight.sum()


def total_of(terms: Mapping[str, Tensor], weight: Tensor | None = None) -> Tensor:
    """The one place that adds named terms up."""
    parts = [mean_of(term, weight) for term in terms.values()]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


class Oracle:
    """Values and derivatives of the loss on a batch; `count` is the number of passes made through the model."""

    def __init__(
        self,
        model: nn.Module,
        objective: Callable[[Any, Batch], Terms],
        batch: Batch | None = None,
        *,
        draw: dict[str, Tensor] | None = None,
        autocast: Callable[[], Any] = nullcontext,
        before: Callable[[Batch], None] | None = None,
        counted: Callable[[], None] = lambda: None,
    ):
        self.model = model
        self.objective = objective
        self.batch = batch
        self.loss: Tensor | None = None  # the step's own loss, detached: costs no pass
        self.count = 0
        self._draw = draw
        self._autocast = autocast
        self._before = before  # called with the batch before it is passed through the model
        self._counted = counted  # told of every pass, beside `count`

    def bind(self, batch: Batch, draw: dict[str, Tensor] | None = None, loss: Tensor | None = None) -> None:
        """Points the oracle at the batch of the current step."""
        self.batch, self._draw, self.loss = batch, draw, loss

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _pass(self) -> None:
        self.count += 1
        self._counted()

    @contextmanager
    def _replay(self) -> Iterator[None]:
        draw = self._draw if self._draw is not None else global_state(self.device)
        with replayed(draw, self.device):
            yield

    def terms(self, params: Mapping[str, Tensor] | None = None, batch: Batch | None = None) -> Terms:
        """The named terms, differentiable with respect to `params` (by name; the model's own when None)."""
        batch = self.batch if batch is None else batch
        if batch is None:
            raise ValueError("The oracle has no batch; bind one or pass it.")
        if type(self.model).forward is nn.Module.forward:
            raise ValueError(
                "The optimizer asks for the loss again at other weights, and those that it moves here are no model "
                "that answers by itself. Choose another optimizer for them."
            )
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self._pass()
        if self._before is not None:
            self._before(batch)
        with self._replay(), self._autocast():
            output = functional_call(self.model, {**buffers, **(params or {})}, tuple(batch.inputs.values()))
            return self.objective(output, batch)

    def total(self, params: Mapping[str, Tensor] | None = None, batch: Batch | None = None) -> Tensor:
        """The loss, differentiable."""
        batch = self.batch if batch is None else batch
        return total_of(self.terms(params, batch), batch.weight if batch is not None else None)

    @torch.no_grad()
    def value(self, params: Mapping[str, Tensor] | None = None, batch: Batch | None = None) -> Tensor:
        """The loss, without a graph."""
        return self.total(params, batch)

    def parameters(self) -> list[Tensor]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @torch.enable_grad()
    def grad(
        self,
        params: Mapping[str, Tensor] | None = None,
        batch: Batch | None = None,
        per: str = "batch",
        create_graph: bool = False,
    ) -> Any:
        """Gradients with respect to the trainable parameters (or to `params`, in their order).

        per="batch": a list of tensors; "term": such a list for each named term; "sample": each with a leading
        dimension for the samples.
        """
        over = list(params.values()) if params is not None else self.parameters()
        batch = self.batch if batch is None else batch
        if per == "batch":
            return self._derive(self.total(params, batch), over, create_graph)
        if per == "term":
            terms = self.terms(params, batch)
            weight = batch.weight if batch is not None else None
            return {n: self._derive(mean_of(t, weight), over, create_graph, retain=True) for n, t in terms.items()}
        if per == "sample":
            return self._per_sample(params, batch, over, create_graph)
        raise ValueError(f"per={per!r} is not one of batch, term, sample.")

    def _per_sample(self, params: Any, batch: Batch | None, over: Sequence[Tensor], create_graph: bool) -> list[Tensor]:
        terms = self.terms(params, batch)
        each: Tensor | int = 0
        for name, term in terms.items():
            if term.dim() == 0:
                raise ValueError(f"The term {name!r} has no value per sample, so it has no gradient per sample.")
            each = each + term
        assert isinstance(each, Tensor)
        rows = [self._derive(value, over, create_graph, retain=True) for value in each]
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    @staticmethod
    def _derive(value: Tensor, over: Sequence[Tensor], create_graph: bool, retain: bool = False) -> list[Tensor]:
        grads = torch.autograd.grad(
            value, over, create_graph=create_graph, retain_graph=retain or create_graph, allow_unused=True
        )
        return [torch.zeros_like(p) if g is None else g for p, g in zip(over, grads, strict=True)]

    @torch.enable_grad()
    def input_grad(self, x: Tensor, batch: Batch | None = None) -> Tensor:
        """The gradient of the samples' summed loss with respect to the first input, at x (other inputs as they are)."""
        batch = self.batch if batch is None else batch
        assert batch is not None
        x = x.detach().requires_grad_(True)
        frozen = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        terms = self.terms(frozen, batch.with_x(x))
        summed = total_of({name: t.sum() if t.dim() else t * len(batch) for name, t in terms.items()})
        return torch.autograd.grad(summed, x)[0]

    def hvp(
        self, vectors: Sequence[Tensor], batch: Batch | None = None, params: Mapping[str, Tensor] | None = None
    ) -> list[Tensor]:
        """The Hessian of the loss times a direction (one tensor a trainable parameter, or one of `params`)."""
        return self.hessian(batch, params)(vectors)

    @torch.enable_grad()
    def hessian(
        self, batch: Batch | None = None, params: Mapping[str, Tensor] | None = None
    ) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        """The Hessian as a product, for `engine.kit.curvature`: one pass builds the graph, each product is one more."""
        over = list(params.values()) if params is not None else self.parameters()
        product = curvature.hessian(self.total(params, batch), over)

        def counted(vectors: Sequence[Tensor]) -> list[Tensor]:
            self._pass()
            return product(vectors)

        return counted

    def jacobian(self, batch: Batch | None = None) -> list[Tensor]:
        """The Jacobian of the flattened output, one [outputs, *parameter shape] tensor a trainable parameter."""
        batch = self.batch if batch is None else batch
        if batch is None:
            raise ValueError("The oracle has no batch; bind one or pass it.")
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self._pass()
        if self._before is not None:
            self._before(batch)
        with self._replay(), torch.enable_grad(), self._autocast():
            output = functional_call(self.model, buffers, tuple(batch.inputs.values())).reshape(-1)
        over = self.parameters()
        rows = [self._derive(value, over, create_graph=False, retain=True) for value in output]
        return [torch.stack(column) for column in zip(*rows, strict=True)]
