"""The contracts of the parts, and the decorators that make an ordinary class a part.

A part is the PyTorch object that it is. Its constructor's signature is its form; one decorator files it:

    @optimizer(paper="Symbolic Discovery of Optimization Algorithms", arxiv="2302.06675", name="Lion")
    class Lion(torch.optim.Optimizer): ...

Parameters that the engine gives (an optimizer's ``params``, a model's ``offer``) are not in the form: see `GIVEN`.
A part of any kind that tunes on the split "outer" says so: ``needs_outer = True`` (where it depends on its settings,
`requires` asks `task.size("outer")`). A recipe without such a split is then refused. A part whose numbers over time
can be learned while it trains names those settings: ``live = ("rate",)``, and reads them with `Value.now`.
Whatever a part keeps in attributes is checkpointed, tensors, generators, modules and plain data alike, and objects that
say their own state (`state()`, plain data and tensors) and take it back (`load(state)`); an attribute whose name starts
with an underscore is scratch that `setup` makes again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy, Site
    from engine.training.run import Run

C = TypeVar("C", bound=type)

# The constructor parameters of each kind that the engine gives; a nested part of these kinds is handed over as a
# factory that takes them.
GIVEN = {"optimizer": ("params",), "model": ("offer",), "layer": ("site",)}


@dataclass(frozen=True)
class PartInfo:
    """What a decorator says of a part; the rest is read from its signature and docstring."""

    kind: str
    id: str
    name: str
    papers: tuple[dict[str, str], ...] = ()
    default: bool = False
    recommends: Mapping[str, Any] = field(default_factory=dict)
    example: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "any"
    graph: str = "safe"
    nondeterministic: str = ""
    lr: str = "external"
    roles: tuple[str, ...] = ("main",)
    packages: tuple[str, ...] = ()


def _decorator(kind: str) -> Callable[..., Callable[[C], C]]:
    def decorate(
        *,
        id: str = "",
        name: str = "",
        paper: str | Sequence[tuple[str, str]] = "",
        arxiv: str = "",
        default: bool = False,
        recommends: Mapping[str, Any] | None = None,
        example: Mapping[str, Any] | None = None,
        precision: str = "any",
        graph: str = "safe",
        nondeterministic: str = "",
        lr: str = "external",
        roles: tuple[str, ...] = ("main",),
        packages: tuple[str, ...] = (),
    ) -> Callable[[C], C]:
        one = [(paper, arxiv)] if isinstance(paper, str) and paper else paper or []
        papers = tuple({"title": title, "arxiv": number} for title, number in one)

        def mark(cls: C) -> C:
            words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", cls.__name__)
            cls.__part__ = PartInfo(  # type: ignore[attr-defined]
                kind=kind,
                id=id or words.lower().replace(" ", "-"),
                name=name or words,
                papers=papers,
                default=default,
                recommends=recommends or {},
                example=example or {},
                precision=precision,
                graph=graph,
                nondeterministic=nondeterministic,
                lr=lr,
                roles=roles,
                packages=packages,
            )
            return cls

        return mark

    decorate.__name__ = kind
    decorate.__doc__ = (
        f"Makes a class a {kind}. `id` defaults to the class name in kebab case; `paper` and `arxiv` name its source "
        "(a list of pairs for several); `default`: a recipe that names none gets it; `recommends`: a recipe patch with "
        "the paper's settings; `example`: a patch that makes the smallest recipe exercise it; `precision` (any, fp32, "
        "float64), `graph` (safe, recapture, never), `nondeterministic` (threads, clock, remote), `lr` (who owns the "
        "learning rate: external, internal, none) and `roles` are declarations that conflicts are settled by; "
        "`packages` are those beyond torch that it cannot do without: it imports them where it uses them."
    )
    return decorate


task = _decorator("task")
model = _decorator("model")
layer = _decorator("layer")
loss = _decorator("loss")
sampler = _decorator("sampler")
optimizer = _decorator("optimizer")
schedule = _decorator("schedule")
technique = _decorator("technique")
procedure = _decorator("procedure")
decoder = _decorator("decoder")
transform = _decorator("transform")
search = _decorator("search")
probe = _decorator("probe")
study = _decorator("study")
language_model = _decorator("language-model")


# -- what a task offers and a model takes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Offer:
    """What a task offers: the shape of one input, without the batch, and what a model must answer.

    `input` is "vector" (features, coordinates, an observation), "image" (channels, height, width: also fields on a
    grid), "tokens" (length), "nodes" (features of a node: the batch is all nodes of one graph), "points" (a set of
    them a sample), "text" or "none" (the model is called without inputs). `output` is "classes" (`size` logits),
    "values" (`size` numbers), "next-token" (`size` logits at each position), "embedding" (`size` numbers that place a
    sample among the others), "field" (numbers on a grid), "sequence" (tokens of `size` kinds, made one after another:
    see `TokenByToken`), "actions" (one of `size`, or `size` numbers), "tour", "design", "samples", "solution", "text".

    `answer` is the shape of one answer where it is not `(size,)`, such as a field's channels, height and width. `about`
    is what else a model must know: a graph's matrix, the spans of coordinates.
    """

    input: str
    shape: tuple[int, ...]
    output: str
    size: int
    vocabulary: int = 0
    span: tuple[float, float] | None = None  # the valid range of an input's values, where it has one
    answer: tuple[int, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def features(self) -> int:
        """Numbers in one input."""
        return math.prod(self.shape)


class TokenByToken(Protocol):
    """What a decoder asks of a model that writes a sequence, token by token: any model for "sequence" has this.

    A task that offers "sequence" has as its last input the answer's own tokens, each one place later, behind the token
    that begins every answer; the inputs before it are what the answer is made from. The model's own answer is then
    logits [B, L, size] of each token, given the true ones before it. `Offer.about` tells the tokens "padding", "begin"
    and "end", which is part of the answer, and "longest", the most tokens of one, its end included.

    A decoder answers with a dict: "logits" as above, "tokens" [B, longest], padded behind their end, and "score" [B],
    their log-probability. Metrics of the answer itself are measured of "tokens"; without a decoder the most likely
    token at each place stands for them, which is right throughout exactly where a greedy decoder is.
    """

    def begin(self, *inputs: Tensor) -> Any:
        """Reads what the answer is made from. The state is a tensor, or dicts, lists and tuples of tensors, one row for
        each answer, and numbers that hold for all of them: a decoder repeats, drops and reorders rows."""

    def advance(self, state: Any, token: Tensor) -> tuple[Tensor, Any]:
        """Takes the last token of each row [B]; gives the log-probabilities of the next [B, size], and the state that
        follows."""


class FollowsODE(Protocol):
    """A module whose output is where an ordinary differential equation dz/dt = f(t, z) leads its input. Whoever wants
    to look at the way finds it by walking modules, by its `look_at`.

    `span` is the time of input and output, `rtol` and `atol` are its solver's tolerances. `look_at` is what a training
    pass keeps beside its output: nothing (None), the state at a time between (a tensor), or, with "steps", the states
    at which the solver's steps began. They are then in `looked`, with their times, without a gradient. Looking changes
    neither steps nor output.
    """

    span: tuple[float, float]
    rtol: float
    atol: float
    look_at: Tensor | Literal["steps"] | None
    looked: list[tuple[Tensor, Tensor]]

    def velocity(self, t: Tensor, z: Tensor) -> Tensor:
        """f(t, z), differentiable."""


Terms = dict[str, Tensor]
Splits = ("train", "val", "test", "outer")
Figure = dict[str, Any]
Answering = Callable[["Batch"], Any]


@dataclass
class Batch:
    """Some samples: named inputs, target, the samples' stable indices in their split, weights and metadata."""

    inputs: dict[str, Tensor]
    target: Any
    index: Tensor
    split: str = "train"
    weight: Tensor | None = None
    mask: Tensor | None = None
    meta: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def asked(self) -> Tensor | None:
        """Which samples are asked for [B], where others are there only to be seen: a mask with one entry a sample."""
        return self.mask if self.mask is not None and self.mask.dim() == 1 else None

    @property
    def x(self) -> Tensor:
        """The first input."""
        return next(iter(self.inputs.values()))

    def with_x(self, x: Tensor) -> Batch:
        """The same batch with another first input."""
        first = next(iter(self.inputs))
        return replace(self, inputs={**self.inputs, first: x})

    def call(self, module: nn.Module) -> Any:
        """The module's answer to the inputs, in their order."""
        return module(*self.inputs.values())

    def cut(self, rows: slice) -> Batch:
        """Some of its samples."""
        return Batch(
            {name: tensor[rows] for name, tensor in self.inputs.items()},
            None if self.target is None else self.target[rows],
            self.index[rows],
            self.split,
            None if self.weight is None else self.weight[rows],
            None if self.mask is None else self.mask[rows],
            {name: tensor[rows] for name, tensor in self.meta.items()},
        )


class Task:
    """Data, objective and metrics.

    A subclass sets `offer` and `metric` (name, "max" or "min"), implements `load`, `objective` and `metrics`. What it
    loads are tensors by name, one row a sample, which the engine keeps on the device. `groups` names the values of the
    metadata "group", where it has that. A task without an `objective` of its own (`needs_loss`) wants a recipe with a
    loss; one for which there is none to write down (`has_objective` False: an environment, a game, a solver's problem)
    wants a procedure that brings one.

    `stream` says where training batches come from. "rows": the stored training split, each sample once an epoch or as
    a sampler chooses. "whole": all of that split at every step, in its stored order (the nodes of a graph). "drawn":
    fresh samples, from `draw`; the other splits may be stored. "none": there are no samples; a batch has no inputs and
    stands for the one problem that there is. In the last two `epoch_steps` steps count as an epoch.

    A task that is learned by acting has `environment(count)`, which makes copies of its world, and `actions`: see
    `engine.kit.environments`.

    `judges` names the splits of which `judge` measures what no row tells: the return of episodes, the distance of
    generated samples, the error of a solution. Where there is nothing else to measure, `by_row` is False: stored rows
    are then not answered one by one, and are there for whoever wants to look at them. `input_gradients` names the
    inputs by which the objective differentiates the answer (a residual): they require a gradient, in training and where
    the objective is measured.
    """

    offer: Offer
    metric: tuple[str, str] = ("accuracy", "max")
    groups: tuple[str, ...] = ()
    needs_loss: bool = False
    has_objective: bool = True
    collects: bool = False
    stream: str = "rows"
    epoch_steps: int = 100
    judges: tuple[str, ...] = ()
    by_row: bool = True
    input_gradients: tuple[str, ...] = ()
    apart: Mapping[str, Tensor] | None = None  # rows of the stored training split by the split that they are for

    def load(self) -> None:
        """Makes the data; called once, before anything else. Draws from generators that its own settings seed."""
        raise NotImplementedError

    def columns(self, split: str) -> dict[str, Tensor]:
        """The split's tensors by name, one row a sample: inputs, "target", "weight", "mask", and metadata named
        "meta.NAME"; none of them where the task has no such split.

        A mask with more than one entry a sample is between the task and its objective (the positions that count). One
        with one entry says which samples are asked for: the others, such as a graph's nodes of other splits, are seen
        by the model, have no weight in any loss and count in no metric.
        """
        if self.stream == "none":
            return {}
        raise NotImplementedError

    def draw(self, size: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Fresh training samples, as columns of that many rows on the generator's device."""
        raise NotImplementedError

    def judge(self, split: str, answer: Answering, rng: torch.Generator) -> dict[str, float]:
        """Metrics of a split that no row tells. `answer(batch)` is what the trained model answers, as a decoder or
        variant has it; `rng` draws the same at every evaluation, so that curves show the model and not the draw."""
        return {}

    def objective(self, output: Any, batch: Batch) -> Terms:
        """The task's own loss: named terms, a value a sample where it exists (shape [B]), else a scalar."""
        raise NotImplementedError

    def metrics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """A value a sample (shape [B]) for each metric; their mean over a split is the metric."""
        raise NotImplementedError

    def overall(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """Metrics that are no means over samples (retrieval, ranking), from the answers to a whole split at once; asked
        for where `collects` says so."""
        return {}

    def summary(self, totals: dict[str, float]) -> dict[str, float]:
        """The metrics to report from the means over a split; what is no plain mean is computed here."""
        return totals

    def split(self, name: str) -> dict[str, Tensor]:
        """A split's tensors as a run sees them: where a recipe sets a share of the training samples apart
        (`training.outer`), "train" is what is left of them and "outer" the others."""
        rows = self.apart.get(name) if self.apart is not None else None
        if rows is None:
            return self.columns(name)
        return {column: tensor[rows] for column, tensor in self.columns("train").items()}

    def size(self, split: str) -> int:
        """Samples in a split, 0 where the task has no such split."""
        columns = self.split(split)
        return len(next(iter(columns.values()))) if columns else 0

    def figure(self) -> dict[str, Any] | None:
        """Some samples as figure data, for the preview."""
        return None

    def figures(self, answer: Answering, rng: torch.Generator) -> dict[str, Figure]:
        """What a person looks at to see how far the training is, by name; drawn at evaluations, and at the end."""
        return {}


class Model(nn.Module):
    """An architecture. Built for what a task offers (first constructor argument `offer`), or refuses by ValueError.

    `inputs`, `outputs`: the kinds that it is made for (`Offer`), asked before it is built; empty: any.
    """

    inputs: ClassVar[tuple[str, ...]] = ()
    outputs: ClassVar[tuple[str, ...]] = ()

    def anatomy(self) -> Anatomy:
        """What the model is made of; derived from its modules where a subclass does not say."""
        from engine.kit.anatomy import derive

        return derive(self)


class Layer(nn.Module):
    """A drop-in module. `role` is where it may go: "norm", "activation", "linear", "conv", "weight" (linear and conv).

    The protocol below is found by walking modules, wherever they sit in a model; every member is optional, and any
    module may have it:

        param_options()       {parameter name: options of its optimizer group}, asked when the optimizer is made
        init_from(*inputs)    called once, with what the first training batch brings it, before the optimizer exists
        tick(progress)        called before each optimizer step (not before each micro-batch), and once more with the
                              last step's progress after a checkpoint was loaded: the same progress must mean the same
        observe(batch, losses)
                              called after each training (micro-)batch with what came of it: the objective of each
                              sample (shape [B], detached), or None where there is none
        aux_loss()            a scalar that is added to the training loss under the name layer:PATH, or None
        measures()            {name: scalar} that the log shows as layer/PATH/NAME, read after a training step
        spends()              {name: scalar}: what its last forward pass cost where that is not always the same (steps
                              of a solver); evaluations show it as a metric of that name, summed over modules
        figures()             {name: figure} that is stored beside those of the task, at evaluations and at the end
        side(**tensors)       called before each forward pass, in training and evaluation, with the batch's metadata
                              that `needs_side` names, one row a sample; a task without it is refused
        fold()                a plain module that computes the same in evaluation; what is inside folds before it
        weight_square()       the squared length of the weights it computes with: one number, or one a sample [B]

    The loss of a layer is asked for once a (micro-)batch, when the terms of its step are made: where a procedure
    passes the model several times, the last pass counts, which is the one that the step's output came from. A layer
    that keeps it from its forward pass keeps None in evaluation mode.
    """

    role: ClassVar[str] = ""
    needs_total: ClassVar[bool] = False  # `tick` must be told the number of steps
    needs_side: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def for_site(cls, site: Site, **settings: Any) -> nn.Module:
        """The module that takes the place of the one at `site`. Raises ValueError where it does not fit."""
        return cls(site, **settings)


def give_side(modules: Sequence[nn.Module], batch: Batch) -> None:
    """Hands the modules the side inputs of the batch that comes."""
    for module in modules:
        module.side(**{name: batch.meta[name] for name in module.needs_side})  # type: ignore[operator, union-attr]


def with_side(module: nn.Module) -> list[nn.Module]:
    """The modules inside one that need side inputs."""
    return [inner for inner in module.modules() if getattr(inner, "needs_side", ())]


class Loss:
    """A training objective: `(output, batch) -> named terms`, per sample where it exists.

    One that declares ``reads = ("features",)`` is called with what the model's head takes as well:
    `(output, batch, features)`. `setup(run)`, where it exists, is called once before the first step.
    """

    additive: ClassVar[bool] = True  # a batch's value is the mean over its samples: it may be split
    outputs: ClassVar[tuple[str, ...]] = ()  # the kinds of output (`Offer.output`) that it takes; empty: any
    reads: ClassVar[tuple[str, ...]] = ()  # as for techniques
    needs: ClassVar[tuple[str, ...]] = ()  # the columns that it reads from a batch, as for samplers

    def __call__(self, output: Any, batch: Batch) -> Terms:
        raise NotImplementedError


class Sampler:
    """The order and make-up of the training batches. Evaluation always takes a split as it is stored.

    `start` is called once, before anything is drawn; it sets `batches`, the batches of one epoch, which stays as it
    is. Then `next` gives one batch after another: the indices of its samples in the training split, on the data's
    device, in any number. A sample may come twice in a batch. A batch without samples makes a step in which nothing
    is updated; it counts in the budget. Draw from `rng` alone, and keep it under a name with an underscore: it is
    among the run's streams, and saved with them. Everything else that `next` depends on is state.

    `needs` names the columns that the task must have, "target" or metadata ("group", "experience"); where they depend
    on the settings, the constructor sets it. A sampler whose data come in experiences says in `experience` which one
    the last batch is from, counted from 0, and in `experience_ended` whether it was that one's last:
    `on_experience_end` follows, and an evaluation.
    Where it has a method `observe(run, batch, losses)`, it is told after each (micro-)batch what came of it: the
    objective of each sample (shape [B], detached), or None where there is none.
    """

    needs: tuple[str, ...] = ()
    batches: int = 1
    experience: int = 0
    experience_ended: bool = False

    def start(self, meta: Mapping[str, Tensor], size: int, batch_size: int, rng: torch.Generator) -> None:
        """`meta` holds the metadata columns and "target", one row a sample; `size` counts the samples."""
        raise NotImplementedError

    def next(self) -> Tensor:
        raise NotImplementedError


class Source(Protocol):
    """Something trained elsewhere: what a part receives for a `SourceField`, a list of them for a `SourcesField`.

    Nothing is read, and no recipe trained, before `model` or `state` is asked for. Ask in `setup` or later, or where a
    model is built; in `requires` only `label` and `recipe` are to be had.
    """

    @property
    def label(self) -> str:
        """What a person calls it, as in the recipe: "run:3f2a@best"."""
        ...

    @property
    def recipe(self) -> Mapping[str, Any]:
        """What it was trained by, with every default."""
        ...

    @property
    def metrics(self) -> Mapping[str, float]:
        """What was measured of it."""
        ...

    def model(self) -> nn.Module:
        """The trained model: built anew, on the device of who asks, in evaluation mode, its parameters frozen."""
        ...

    def state(self) -> Mapping[str, Any]:
        """The checkpoint, for what stands beside the weights; that of `@best` holds them alone."""
        ...


# -- time --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """Where a run is: optimizer steps done, steps in all (None when the budget is open), and the epoch.

    In a recipe with phases all three count from the begin of the phase: a fraction of the run is one of the phase.
    """

    step: int
    steps: int | None = None
    epoch: float = 0.0

    @property
    def fraction(self) -> float:
        """From 0 at the first step to 1 at the last."""
        return min(self.step / max(self.steps - 1, 1), 1.0) if self.steps else 0.0


class Schedule:
    """A curve over a run: `factor(at)` multiplies a base value. `needs_total`: it must know the number of steps."""

    needs_total: ClassVar[bool] = True

    def factor(self, at: Progress) -> float:
        raise NotImplementedError

    def options(self, at: Progress, lr: float) -> dict[str, float]:
        """The optimizer's group options at this moment, `lr` being its base rate; most schedules set the rate alone."""
        return {"lr": lr * self.factor(at)}


@dataclass
class Value:
    """A number over time: a constant, a base value times a schedule's factor, or one that is learned in the run.

    A part that can compute with a tensor reads `now`, and names the setting in its class attribute ``live``: then
    another part may learn it (see `engine.fields.Live`). What learns it puts a `tensor` here: one number, or, while a
    batch passes, one for each of its samples (shape [B]). Between steps it is one number without a graph.
    """

    value: float
    schedule: Schedule | None = None
    tensor: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def at(self, progress: Progress) -> float:
        """The number of the moment. One that is learned is on the device: it is read with `now`."""
        if self.tensor is not None:
            raise RuntimeError("A value that is learned is read with now(); at() is for numbers alone.")
        return self.value * self.schedule.factor(progress) if self.schedule else self.value

    def now(self, progress: Progress) -> float | Tensor:
        """The number of the moment, or the tensor where it is learned."""
        return self.at(progress) if self.tensor is None else self.tensor

    @classmethod
    def of(cls, value: float | Value) -> Value:
        """What a part's constructor calls on a parameter that may change over time."""
        return value if isinstance(value, Value) else cls(float(value))


# -- surgery -----------------------------------------------------------------------------------------------------------

# A part of any kind that changes the model while it trains says so (``rewrites = True``) and implements
#
#     @classmethod
#     rewrite(cls, run, operation, arguments) -> Moves
#
# which changes `run.model` in place. ``run.rewrite(id, operation, **arguments)`` calls it between two steps (or within
# a procedure's own step, when no update is under way), lets all that hangs on the old parameters follow, and appends
# the call to the run's structure log. A checkpoint holds that log; whoever loads it builds the model, calls the same
# operations with the same arguments (plain data and tensors), and only then loads tensors: so an operation may depend
# on nothing but the model's structure and its arguments. It is a class method because a run that goes on from the
# checkpoint need not have the part in its recipe.
#
# A part that holds parameters, or something for each of them, from step to step (an average, a list, a copy) implements
# `on_surgery(run, moves)`, called after optimizers and masks have followed. Where it cannot, it says
# ``keeps_parameters = True`` and is refused beside a part that rewrites. Optimizer state is carried by the engine: what
# has the parameter's shape is taken along, and where a state has tensors of other shapes the parameter starts anew.


class Moved(NamedTuple):
    """What became of a parameter or buffer: the new one (None: it is gone), and how a tensor that was kept beside the
    old one, entry by entry, is brought to the new one's entries (None: it cannot be, and starts anew)."""

    new: Tensor | None
    take: Callable[[Tensor], Tensor] | None = None


Moves = dict[Tensor, Moved]

# What a part of any kind does to which weights of the model is asked before training, to find what clashes:
#
#     @classmethod
#     claims(cls, settings, anatomy) -> {parameter name: claim}
#
# A claim is a rank of `engine.kit.weight_maps`, or "mask" for a part that holds entries at zero, or "factors" for one
# that puts other parameters in the weight's place, so that there is nothing left for another part to act on.


# -- hooks -------------------------------------------------------------------------------------------------------------

# The positions of `run.update`, in order. `backward`, `unscale` and `step` are the engine's own.
POSITIONS = (
    "backward",
    "unscale",
    "reduce",
    "privatize",
    "combine",
    "mask",
    "shape",
    "clip",
    "noise",
    "step",
    "project",
    "remask",
    "average",
)


class Technique:
    """Hooks around the step. A subclass implements those it needs; the base class has none that costs anything.

    At a position of the update it implements the method of that name, `privatize(run, role)` to `average(run, role)`,
    and finds the gradients in `role.parameters`. Recipe order decides only inside a position. Beside these, where they
    exist, the loop calls:

        on_batch(run, batch) -> batch                  before the step, on the training (micro-)batch
        on_terms(run, terms, output, batch) -> terms   the loss terms of a training step, still named
        observe(run, batch, losses)                    after each (micro-)batch: what came of it, as for samplers
        on_step_end(run)                               after a step, when no update is under way: time for surgery
        on_experience_end(run)                         after an experience's last step, where the data come in such
        on_epoch_end(run)                              after an epoch's last step, before its evaluation
        after_evaluation(run, metrics)                 after an evaluation of the live run
        after_epoch(run)                               after an epoch's last step and its evaluation, where one is due
        on_end(run)                                    after the last step, before the final evaluation
        on_surgery(run, moves)                         after a part has changed the model's parameters (see `Moved`)

    An optimizer may have `on_step_end(run, role)`, `on_end(run, role)` and `on_surgery(run, moves)` too, and an
    optimizer's come first.

    Two positions can give it more than the gradient, and have one owner each:

        reduce(run, role, shards) -> gradients     the mean gradient of each worker in this process, in the order of
                                                   `run.workers.here`; returns the one that all workers step with
        combine(run, role, terms) -> gradients     where `per_term` is set: the gradient of each named term, from the
                                                   step's own graph; returns the one to step with

    `reads` names what of the step it needs beside gradients (`Procedure.offers`): a procedure without it is refused.
    With "features" in it, `run.features` is what entered the model's head in the last forward pass, with gradient.
    `needs` names the columns that it reads from a batch, as for samplers. `needs_total`: it must know the number of
    steps, as for a schedule. `additive` False says that the terms it adds or changes couple the samples of a batch, so
    that a step cannot be split. `asks_again`: it asks for the loss of a batch at other weights (`run.oracle`), which a
    procedure that brings its own gives only where it has an `objective` to be asked for. `any_role`: it acts on what
    role it is called for and keeps its state by role, so that a recipe may bind it to others than it declares, by
    ``on = ["critic"]``.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    needs_total: ClassVar[bool] = False
    per_term: ClassVar[bool] = False
    any_role: ClassVar[bool] = False
    additive: ClassVar[bool] = True
    asks_again: ClassVar[bool] = False
    rewrites: ClassVar[bool] = False
    keeps_parameters: ClassVar[bool] = False
    _on: tuple[str, ...] = ()  # the recipe's `on`

    def setup(self, run: Run) -> None:
        """Called once, when model and optimizer exist and before a checkpoint is loaded."""

    def prepare_model(self, run: Run, model: nn.Module) -> nn.Module:
        """The model to train, changed before the optimizer exists (layers replaced, weights mapped)."""
        return model

    def group_options(self, run: Run, model: nn.Module) -> dict[str, dict[str, Any]]:
        """Options of the optimizer's groups by parameter name: ``{"head.bias": {"weight_decay": 0.0}}``."""
        return {}

    def variants(self, run: Run) -> dict[str, Callable[[], AbstractContextManager[None]]]:
        """Further ways to evaluate the model: name -> a context in which the model is that variant."""
        return {}

    def values(self) -> dict[str, Value]:
        """The numbers over time that the log shows as series."""
        return {name: v for name, v in vars(self).items() if isinstance(v, Value) and v.schedule}

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        """Why this part cannot work here, or None. Every kind of part may have this method."""
        return None


class Procedure:
    """Owns the step. Never calls backward or step on an optimizer: `run.update(role, terms)` does.

    One that has gradients without a backward pass hands them over: ``run.update(role, terms, grads)``, one a parameter
    of the role; whatever acts on gradients then acts on these.

    `offers`: what techniques may read of its step; "terms" are named terms that can be differentiated. `makes`: the
    roles whose updates techniques may act on, by name or, where their number depends on the model, as a pattern such
    as "layer*". `divisible`: a step may be split into micro-batches or workers, because it updates each role once, by
    by a gradient that is a mean over samples.

    It may have the hooks that techniques have outside of the update (`on_step_end` to `on_end`, see `Technique`), and
    `project(run, role)`, which is called for every role at that position, after those of techniques: what it makes of
    the weights holds after each step.

    `uses`: the sections of the recipe that it needs; others are left out of the run. One without a model makes what
    holds its solution (`make_model`). `inputs`, `outputs`: the kinds of task that it can work on (`Offer`); empty:
    any. `brings_objective`: it makes its own loss where the task has none.
    """

    uses: ClassVar[tuple[str, ...]] = ("model", "optimizer")
    inputs: ClassVar[tuple[str, ...]] = ()
    outputs: ClassVar[tuple[str, ...]] = ()
    brings_objective: ClassVar[bool] = False
    seeded: ClassVar[bool] = True  # False: a solver that draws nothing; runs with other seeds are the same run
    trains: ClassVar[bool] = True  # False: there are no steps; `act` is called once, before the final evaluation
    offers: ClassVar[tuple[str, ...]] = ("gradients", "output", "terms", "features")
    makes: ClassVar[tuple[str, ...]] = ("main",)
    divisible: ClassVar[bool] = True
    rewrites: ClassVar[bool] = False
    keeps_parameters: ClassVar[bool] = False

    def offer(self, task: Task) -> Offer:
        """What the recipe's model must do for it: a generator takes noise, a denoiser the time beside its input."""
        return task.offer

    def given(self, run: Run, batch: Batch) -> Batch:
        """What its model is asked in the place of a batch of the task: noise, or noisy samples with their time.

        Whoever passes a batch through the model by itself (an oracle, a transform, a probe) asks for it. It draws from
        none of the run's streams, gives the same for the same batch, and returns what it has made as it is.
        """
        return batch

    def objective(self, run: Run, output: Any, batch: Batch) -> Terms:
        """Where it brings its objective as terms of the model's answer: those, for a batch as `given` makes it."""
        raise NotImplementedError

    def make_model(self, task: Task) -> nn.Module:
        """Where it uses no model of the recipe's: the module whose parameters and buffers hold the solution.

        It is saved, restored and watched for numbers that are not finite, as any model is.
        """
        raise NotImplementedError

    def pace(self) -> dict[str, float]:
        """How much of a counter one step takes, where every step takes the same: a budget in it is a number of steps
        then, and schedules know how long the run is."""
        return {}

    @classmethod
    def calls(cls, settings: Mapping[str, Any], task: Task, recipe: Mapping[str, Any], steps: int) -> int:
        """Roughly how often it will ask its language models in so many steps: what a person is told beforehand. A
        decoder may have this method too."""
        return 0

    def prepare_model(self, run: Run, model: nn.Module) -> nn.Module:
        """The model to train, as the techniques left it, changed before any optimizer exists."""
        return model

    def setup(self, run: Run) -> None:
        """Called once, when the model exists; roles are made here: ``run.add_role(name, module)``."""

    def step(self, run: Run, batch: Batch) -> Any:
        """One training step on one (micro-)batch; returns the output where there is one, for the training metrics."""
        raise NotImplementedError

    def act(self, run: Run) -> None:
        """What a procedure that trains nothing does, once: edits ``run.model`` in place, logs what it finds."""
        raise NotImplementedError

    def predict(self, run: Run, batch: Batch) -> Any:
        """The model's answer at evaluation."""
        return batch.call(run.model)

    def variants(self, run: Run) -> dict[str, Callable[[], AbstractContextManager[None]]]:
        """Further ways to evaluate the model, as for techniques: the configurations of one network, for example."""
        return {}

    def result(self, run: Run) -> dict[str, float]:
        """Numbers to report at the end, beside the metrics."""
        return {}

    def figures(self, run: Run) -> dict[str, Figure]:
        """What a person looks at to see what it does, by name; drawn when the task's figures are."""
        return {}

    def found(self, run: Run) -> dict[str, Any]:
        """What it found that a recipe can say, as changes by path, like those of a search: ``{"model.genotype": ...}``.

        The log keeps it at the end of a run as a message of the kind "found".
        """
        return {}


class Decoder:
    """How a trained model answers: by search, an ensemble, sampling, adaptation while it is tested. Trains nothing, so
    it can be exchanged on a saved run. Where a recipe names none, the procedure's own `predict` answers.

    Every evaluation of a split begins with `reset` and then asks `predict` for one batch after the other. It stands in
    evaluation mode, in the variant that is measured and the recipe's normalization, without gradients; an answer
    outside of such an evaluation (a probe's) begins with `reset` too, so that no answer leaves a trace in another's.

    `outputs`, `inputs`: the kinds that it can answer for (`Offer.output`, `Offer.input`); empty: any.
    `reads`: as for techniques. `ordered`: an answer depends on what came before it in the evaluation.
    `adapts`: it changes the model's own tensors while it answers; the engine puts them back after the evaluation.
    `cost`: model calls a sample, None where only counting tells; what is counted is logged as `decoder/calls`.
    """

    outputs: ClassVar[tuple[str, ...]] = ()
    inputs: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = ()
    ordered: ClassVar[bool] = False
    adapts: ClassVar[bool] = False

    @property
    def cost(self) -> float | None:
        return 1.0

    def setup(self, run: Run) -> None:
        """Called once, when the model exists and before a checkpoint is loaded."""

    def reset(self, run: Run, rng: torch.Generator) -> None:
        """An evaluation begins: whatever earlier ones left is forgotten."""

    def predict(self, run: Run, batch: Batch, rng: torch.Generator) -> Any:
        """The answer to a batch, in the form that the task's metrics take. `run.answer(batch)` is the model's own."""
        return run.answer(batch)

    def figures(self, run: Run) -> dict[str, Figure]:
        """As a procedure's: how it came to its answers in the last evaluation."""
        return {}


# -- looking and searching ---------------------------------------------------------------------------------------------


@dataclass
class Finding:
    """What a probe saw: scalars by name and figures as data."""

    scalars: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)


class Probe:
    """Looks. `when` says at what: "evaluation" or "end" of a live run; all can be run on a saved one.

    `reads` is as for techniques: "output" where it needs the model's own answers or their gradients.

    One probe is made for a run, and its state is checkpointed as a technique's is. Where it has these methods,
    `setup(run)` is called once, and `watch(run, terms, output, batch)` in each training step, when its terms are known.
    """

    when: ClassVar[str] = "end"
    reads: ClassVar[tuple[str, ...]] = ()

    def look(self, run: Run) -> Finding:
        """Must leave weights, buffers, random streams and modes of the run as they were."""
        raise NotImplementedError


@dataclass
class Transformed:
    """What a transform made: a module that answers as the model does, or None where files are all there is.

    `facts` are numbers of its own; `files` are written into the run's folder; `figures` are stored like a probe's.
    """

    model: nn.Module | None
    facts: dict[str, float] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)


class Transform:
    """What is done to a trained model: fold, merge, quantize, convert, compile, edit weights.

    The engine hands over a copy of the model in evaluation mode, which may be changed in place, and measures what
    comes back, the same way for all: the largest difference of the outputs, the metrics, parameters, bytes and seconds
    before and after. Several in a recipe follow each other, each on what the one before has made. The run and its
    random streams stay as they were; draws from torch's own generators are seeded.

    `samples`: how many training samples `apply` gets to look at. `reads` is as for techniques, beside the output,
    which every transform needs: a model that does not answer by itself cannot be measured.
    """

    samples: ClassVar[int] = 256
    reads: ClassVar[tuple[str, ...]] = ()

    def apply(self, model: nn.Module, sample: Batch) -> Transformed:
        """Raises ValueError with the reason where this model cannot be transformed; the run goes on without it."""
        raise NotImplementedError


@dataclass
class Ask:
    """One configuration that somebody wants trained: changes to the recipe by path, and a share of its budget.

    `resume` is the id of an earlier ask that has ended: its run goes on, from where it stood, to the larger share of
    the budget that this one names; the changes are those of the earlier ask. `labels` say in a few words where a
    study's run stands on its axes.
    """

    id: str
    changes: dict[str, Any]
    budget: float = 1.0
    resume: str | None = None
    labels: dict[str, Any] = field(default_factory=dict)


@dataclass
class Report:
    """How an ask came out.

    The objective (lower is better, infinity where the run gave none), whatever else was measured, the objective's
    curve over the run's steps, and what it cost: the steps and seconds of the whole run, an earlier ask's part of it
    included.
    """

    ask: str
    objective: float
    metrics: dict[str, float] = field(default_factory=dict)
    run: str = ""
    state: str = "done"
    steps: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)


SPANS = ("share", "whole")


class Search:
    """Proposes and learns. `ask` returns up to n configurations, none while it must be told more or has finished;
    `tell` takes the reports, in whatever order they come.

    `ahead` is how many of its evaluations may wait at once without what the others showed. `spans` is what schedules
    and phases span in a run that gets a share of the budget: "share", so that each run is a small whole one and cannot
    go on, or "whole", so that a share is the beginning of the whole run, which a later ask may resume.

    It needs no engine: whoever has a function to minimize starts it, asks, evaluates and tells (`minimize`). A sweep
    that was killed asks a new one again and tells it the same in the same order: what it proposes may depend on
    nothing else than that and the generator that it was started with.
    """

    ahead: ClassVar[int] = 16
    spans: str = "share"

    def start(self, rng: torch.Generator) -> None:
        """Called once before the first ask."""

    def total(self) -> int | None:
        """How many evaluations it will want, where that is known."""
        return None

    def ask(self, n: int) -> list[Ask]:
        raise NotImplementedError

    def tell(self, report: Report) -> None:
        """Learns from one evaluation."""

    def result(self) -> Finding:
        """What it has learned beside the best run: numbers and figures for the sweep's own page."""
        return Finding()


def minimize(search: Search, function: Callable[[Ask], float], seed: int = 0) -> list[tuple[Ask, float]]:
    """Carries a search out on a function of its asks, in this process; returns what was asked and its values."""
    search.start(torch.Generator().manual_seed(seed))
    told = []
    while asks := search.ask(1):
        for ask in asks:
            told.append((ask, float(function(ask))))
            search.tell(Report(ask.id, told[-1][1]))
    return told


@dataclass
class Row:
    """One run of a study: where it stands on the axes, and what was measured. `series` holds steps and values."""

    labels: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    state: str = "done"
    steps: int = 0
    seconds: float = 0.0
    series: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    run: str = ""


@dataclass
class Answer(Finding):
    """What a study found: numbers, figures, and the verdict, one or two sentences that a person reads first."""

    verdict: str = ""


class Study:
    """Asks a question of many runs: a plan of recipes, then figures and a verdict.

    `reads` names the series, with wildcards, that the report looks at; the rows of its table hold them.
    """

    reads: ClassVar[tuple[str, ...]] = ()

    def plan(self, recipe: Mapping[str, Any]) -> list[Ask]:
        """The runs: what each changes in the filled recipe, with a label for every axis. The same at every call."""
        raise NotImplementedError

    def report(self, table: Sequence[Row]) -> Answer:
        """The answer from the runs that have ended, in the order of the plan; some may have failed or diverged."""
        raise NotImplementedError


# -- language models ---------------------------------------------------------------------------------------------------


class Message(NamedTuple):
    """One turn of a conversation. `role` is "system" (what it is told to be), "user" or "assistant" (itself)."""

    role: str
    text: str


class Reply(NamedTuple):
    """What a language model has said, and how many tokens it read and wrote for it."""

    text: str
    tokens: int = 0


class LanguageModel:
    """Answers text with text: a server's model, or rules. A part that needs one takes a field `LanguagePart`.

    `occasion` are numbers that say which time this is that the same thing is asked (the run's seed, its step). Where an
    answer is drawn at random, another occasion draws anew, and the same one brings the same answer back: so a run that
    is resumed, or replayed, hears what it heard before. It keeps no memory between two calls.
    """

    def replies(self, asked: Sequence[Sequence[Message]], occasion: Sequence[int] = ()) -> list[Reply]:
        """The replies to several conversations, in their order; they do not know of each other."""
        return [self.reply(conversation, occasion) for conversation in asked]

    def reply(self, conversation: Sequence[Message], occasion: Sequence[int] = ()) -> Reply:
        """The reply to one conversation, whose last turn is the user's."""
        raise NotImplementedError


def info(part: Any) -> PartInfo:
    """What the decorator said of a part (an object or its class)."""
    found: PartInfo = (part if isinstance(part, type) else type(part)).__part__  # type: ignore[attr-defined]
    return found


def roles_of(technique: Technique) -> tuple[str, ...]:
    """The roles, by name or pattern, whose updates a technique acts on: the recipe's `on`, or what it declares."""
    return technique._on or info(technique).roles


def matches(role: str, patterns: Sequence[str]) -> bool:
    """Whether one of the names or patterns means a role, or a role's own pattern means one of them."""
    return any(fnmatchcase(role, pattern) or fnmatchcase(pattern, role) for pattern in patterns)


def is_part(value: Any) -> bool:
    """Whether an object is a part: its class, or one it inherits from, was decorated."""
    return hasattr(type(value), "__part__")


def named_modules_with(module: nn.Module, member: str) -> list[tuple[str, nn.Module]]:
    """The modules that implement a member of the layer protocol, with their paths."""
    return [(path, m) for path, m in module.named_modules() if hasattr(m, member)]
