"""Networks that know how their best weights depend on the hyperparameters, and tune them as they train."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from engine.fields import Count, Live, NonNegative, OptimizerPart, Positive, Sites
from engine.kit.anatomy import anatomy_of
from engine.kit.live import bounds
from engine.kit.two_level import LearnedValues, resting
from engine.parts import Batch, Procedure, Task, procedure

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

ID = "self-tuning-networks"
START = 0.01  # standard deviation of the first V and C
HYPER_RATE = 0.003


class Told:
    """What a network's layers are told of the hyperparameters for a pass: [h], one row a sample [B, h], or nothing."""

    def __init__(self) -> None:
        self.values: Tensor | None = None


class BestResponse(nn.Module):
    """A linear or convolutional layer whose outputs change with the hyperparameters, sample by sample:

        out = (W x + b) + (V h) * (W_h x) + (C h) * b_h         * acts on an output unit, or a channel

    It keeps the weights of the layer that it takes the place of as W and b. `hyper` is the h of the moment; a pass may
    be told another one.
    """

    def __init__(self, module: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d, hyper: Tensor, told: Told):
        super().__init__()
        if parametrize.is_parametrized(module):
            raise ValueError("it cannot take the place of a layer whose weights are mapped (masked, normalized).")
        self.role = "linear" if isinstance(module, nn.Linear) else "conv"
        self.weight, self.bias = module.weight, module.bias
        self._like = [module]  # in a list: its weights are ours, not those of a module inside
        self._told = told
        units = len(module.weight)
        fresh = self._fresh(module)
        self.weight_h = fresh.weight
        self.bias_h = fresh.bias
        self.scale = nn.Parameter(torch.randn(units, len(hyper)) * START)
        self.shift = nn.Parameter(torch.randn(units, len(hyper)) * START) if module.bias is not None else None
        self.register_buffer("hyper", hyper.clone())
        self.hyper: Tensor

    @staticmethod
    def _fresh(module: Any) -> Any:
        """A layer of the same form, started as usual."""
        bias = module.bias is not None
        if isinstance(module, nn.Linear):
            return nn.Linear(module.in_features, module.out_features, bias)
        return type(module)(
            module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding,
            module.dilation, module.groups, bias, module.padding_mode,
        )  # fmt: skip

    @property
    def _h(self) -> Tensor:
        return self.hyper if self._told.values is None else self._told.values

    def forward(self, x: Tensor) -> Tensor:
        out = self._apply_weight(x, self.weight, self.bias)
        h = self._h
        out = out + self._shaped(h @ self.scale.T, out) * self._apply_weight(x, self.weight_h, None)
        if self.shift is None:
            return out
        return out + self._shaped((h @ self.shift.T) * self.bias_h, out)

    def _apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.role == "linear":
            return F.linear(x, weight, bias)
        return self._like[0]._conv_forward(x, weight, bias)  # type: ignore[operator]

    def _shaped(self, values: Tensor, out: Tensor) -> Tensor:
        """One number a unit, or a row of them a sample, ready to act on outputs."""
        if self.role == "conv":
            return values.view(*values.shape, *[1] * (out.dim() - 2))
        return values.view(len(values), *[1] * (out.dim() - 2), -1) if values.dim() == 2 else values

    def weight_square(self) -> Tensor:
        """The squared length of W + (V h) * W_h: one number, or one for each sample."""
        own, other = self.weight.flatten(1), self.weight_h.flatten(1)
        scale = self._h @ self.scale.T
        per_unit = own.square().sum(1) + 2 * scale * (own * other).sum(1) + scale.square() * other.square().sum(1)
        return per_unit.sum(-1)

    def fold(self) -> nn.Module:
        """The plain layer at the hyperparameters of the moment."""
        plain = self._fresh(self._like[0]).to(self.weight.device)
        with torch.no_grad():
            scale = self.hyper @ self.scale.T
            plain.weight.copy_(self.weight + scale.view(-1, *[1] * (self.weight.dim() - 1)) * self.weight_h)
            if self.shift is not None:
                plain.bias.copy_(self.bias + (self.hyper @ self.shift.T) * self.bias_h)
        return plain


class Hyperparameters(LearnedValues):
    """Free numbers of the learned values, and how far around them the network looks: s = log(1 + exp(rho))."""

    def __init__(self, values: Any, ranges: Any, scale: float, tuned: bool):
        super().__init__(values, ranges)
        self.rho = nn.Parameter(torch.full_like(self.free, math.log(math.expm1(scale))), requires_grad=tuned)

    def scales(self) -> Tensor:
        return F.softplus(self.rho)

    def entropy(self) -> Tensor:
        """Of the normal distribution that the perturbed free numbers are drawn from."""
        return (self.scales() * math.sqrt(2 * math.pi * math.e)).log().sum()

    def drawn(self, samples: int, rng: torch.Generator) -> Tensor:
        """Perturbed free numbers, one row a sample."""
        noise = torch.randn((samples, len(self.free)), generator=rng, device=self.free.device)
        return self.free + self.scales() * noise


@procedure(
    id=ID,
    name="Self-Tuning Network (STN)",
    paper="Self-Tuning Networks: Bilevel Optimization of Hyperparameters using Structured Best-Response Functions",
    arxiv="1903.03088",
    graph="never",
    recommends={
        "optimizer": {"use": "sgd", "lr": 0.01},
        "techniques": [{"use": "dropout-at-sites", "rate": 0.05}],
        "procedure": {"use": ID, "tune": {"techniques.0.rate": {"low": 0.0, "high": 0.95}}},
        "training": {"outer": 0.2},
    },
    example={
        "task": {"use": "digits", "train_limit": 100},
        "model": {"hidden": [4]},
        "training": {"outer": 0.2, "batch_size": 16},
        "techniques": [{"use": "dropout-at-sites", "rate": 0.05}, {"use": "weight-penalty"}],
        "procedure": {
            "use": ID,
            "warmup_epochs": 0,
            "tune": {
                "techniques.0.rate": {"low": 0.0, "high": 0.9},
                "techniques.1.strength": {"low": 1e-6, "high": 1.0, "log": True},
            },
        },
        "budget": {"steps": 9},
    },
)
class SelfTuningNetworks(Procedure):
    """Tunes dropout rates, penalties and the like while the model trains. The layers learn how their best weights
    change with these numbers, so that one gradient step on samples kept apart tells where the numbers should go.

        out = (W x + b) + (V h) * (W_h x) + (C h) * b_h     in each layer; h: free numbers, one row a sample
        training step:   h_i = h + s e_i,  e_i ~ N(0, 1);  the values that h_i stands for act on sample i;
                         all weights move by the training loss, h does not
        outer step:      loss on the outer split at h + s e_i, minus entropy_weight sum log(s sqrt(2 pi e));
                         only h and s move
        value = low + (high - low) sigmoid(h), on a log scale where its range says so;   s = log(1 + exp(rho))

    After `warmup_epochs` of training steps alone, `train_steps` of them and `valid_steps` outer ones take turns. What
    has no gradient (a dropout rate) can be tuned too: the outer loss depends on h through the layers.

    Helps: many regularization settings at once, in the time of about two runs; the settings also follow the training.
    Hurts: settings that the weights do not answer smoothly; a small outer split, which h fits. A network of twice the
        weights may train worse than the plain one with the same settings: with one dropout rate on 300 digits it was
        no better than the rate left where it began.
    Cost: twice the weights; a training step about twice as long, and an outer step for every second one.
    Choices: h and s share one optimizer, Adam at 0.003 where none is named. On the outer split the model is at rest
        (nothing drops) and penalties do not count. V and C start at a deviation of 0.01. At evaluation and in a saved
        model the layers stand at the h of the moment.

    Args:
        tune: What to tune: learned values of the recipe with their ranges.
        perturb_scale: The first s: how far around h the layers learn to answer.
        tune_scales: Let s move too; else it stays, and the outer step is taken at h itself.
        entropy_weight: What keeps s from shrinking to nothing.
        train_steps: Training steps between outer steps.
        valid_steps: Outer steps in a row.
        warmup_epochs: Epochs of training steps alone at the beginning.
        hyper_optimizer: What moves h and s; without one Adam at a rate of 0.003.
        sites: The layers that learn to answer.

    Raises:
        ValueError: Where nothing is to be tuned, or a range is none.
    """

    needs_outer = True
    makes = ("main", "hyper")

    def __init__(
        self,
        tune: Live = {},  # noqa: B006 - the default is shown in the form; it is never changed
        perturb_scale: Positive = 0.5,
        tune_scales: bool = True,
        entropy_weight: NonNegative = 1e-5,
        train_steps: Count = 2,
        valid_steps: Count = 1,
        warmup_epochs: NonNegative = 5.0,
        hyper_optimizer: OptimizerPart | None = None,
        sites: Sites = "weight",
    ):
        self.tune, self.perturb_scale, self.tune_scales = dict(tune), perturb_scale, tune_scales
        self.entropy_weight, self.train_steps, self.valid_steps = entropy_weight, train_steps, valid_steps
        self.warmup_epochs, self.sites = warmup_epochs, sites
        self._hyper_optimizer = hyper_optimizer
        self._bounds = bounds(self.tune)
        self._told = Told()
        self._layers: list[BestResponse] = []
        self._hyper: Hyperparameters

    def prepare_model(self, run: Run, model: nn.Module) -> nn.Module:
        self._hyper = Hyperparameters(run.live, self._bounds, self.perturb_scale, self.tune_scales)
        for site in anatomy_of(model).select(self.sites):
            layer = BestResponse(site.module, self._hyper.free.detach(), self._told)  # type: ignore[arg-type]
            site.put(layer)
            self._layers.append(layer)
        return model

    def setup(self, run: Run) -> None:
        self._hyper.to(run.device)
        run.add_role("main", run.model)
        optimizer = self._hyper_optimizer or (lambda groups: torch.optim.Adam(groups, lr=HYPER_RATE))
        run.add_role("hyper", self._hyper, optimizer=optimizer, schedule=False)

    def step(self, run: Run, batch: Batch) -> Any:
        output = self._train(run, batch)
        done = run.progress.step + 1 - round(self.warmup_epochs * run.steps_per_epoch)
        if done > 0 and done % self.train_steps == 0:
            for _ in range(self.valid_steps):
                self._tune(run)
        return output

    def _train(self, run: Run, batch: Batch) -> Any:
        """Every weight moves; each sample is seen under settings of its own."""
        free = self._hyper.drawn(len(batch), run.rng(ID)).detach()
        self._told.values = free
        self._hyper.write(free)
        output = run.forward(batch)
        run.update("main", run.terms(output, batch), alone=True)
        self._rest()
        return output

    def _tune(self, run: Run) -> None:
        """The settings move, by what the layers say that they would do to the loss on samples kept apart."""
        batch = run.stream_of("outer", ID).next()
        run.batch = batch
        with resting(run.model):
            self._told.values = self._hyper.drawn(len(batch), run.rng(ID)) if self.tune_scales else self._hyper.free
            terms = run.objective(run.forward(batch), batch)
        if self.tune_scales:
            terms = {**terms, "entropy": -self.entropy_weight * self._hyper.entropy()}
        run.update("hyper", terms, alone=True)
        self._rest()
        if run.wants_gradient_norm:
            for path, scale in zip(self._hyper.paths, self._hyper.scales().detach().unbind(), strict=True):
                run.log(f"scale/{path}", scale)

    @torch.no_grad()
    def _rest(self) -> None:
        """Settings and layers stand at the h of the moment."""
        self._told.values = None
        self._hyper.leave()
        for layer in self._layers:
            layer.hyper.copy_(self._hyper.free)

    def result(self, run: Run) -> dict[str, float]:
        return {f"value/{path}": value for path, value in self._hyper.numbers().items()}

    def found(self, run: Run) -> dict[str, Any]:
        """The settings where they ended."""
        return self._hyper.numbers()

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if not settings["tune"]:
            return (
                'It tunes nothing; write tune = { "techniques.0.rate" = { low = 0, high = 0.9 } } for one of your own.'
            )
        try:
            sites = anatomy.select(settings["sites"])
        except ValueError as error:
            return str(error)
        if recipe["training"]["accumulate"] > 1:
            return "It draws batches of its own for the outer steps, so a step cannot be split; write accumulate = 1."
        wrong = [s.path for s in sites if not isinstance(s.module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)]
        if wrong or not sites:
            return f"Its layers are linear or convolutional; {', '.join(wrong) or 'nothing that is selected'} is not."
        return None
