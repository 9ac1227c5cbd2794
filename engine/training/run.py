"""One run in memory: what the parts of a recipe see and use. The loop that drives it is in `loop.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from engine.errors import AthanorError, Problem, RecipeError
from engine.kit import calibration
from engine.kit.anatomy import Anatomy, anatomy_of
from engine.kit.masks import Masks
from engine.parts import (
    Batch,
    Decoder,
    Figure,
    Loss,
    Moves,
    Probe,
    Procedure,
    Progress,
    Schedule,
    Task,
    Technique,
    Terms,
    Value,
    give_side,
    info,
    is_part,
    matches,
    with_side,
)
from engine.parts import named_modules_with as modules_with
from engine.phases import Stage
from engine.training import roles
from engine.training.data import Columns, Endless, Shuffled, Stream, some
from engine.training.oracle import Oracle, total_of
from engine.training.phases import Course
from engine.training.random import Streams, derive_seed, forked, global_state
from engine.training.recorder import Recorder
from engine.training.roles import Role
from engine.training.surgery import Structure
from engine.training.workers import Workers

DETAIL_EVERY = 10  # steps between points of series that cost more than a scalar that is there anyway
# What every run counts, so that runs can be compared at equal cost: backward passes, training samples, passes that
# oracles made through a model, and bytes that workers sent. Parts count what else there is, under names of their own.
COUNTS = ("gradient-passes", "samples", "oracle-calls", "bytes-sent")
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Run:
    """The parts of a recipe, built, and the services they share. Made by `assemble.assemble`."""

    def __init__(
        self,
        recipe: Mapping[str, Any],
        task: Task,
        model: nn.Module,
        procedure: Procedure,
        techniques: list[Technique],
        loss: Loss | None,
        device: torch.device,
        recorder: Recorder,
        decoder: Decoder | None = None,
    ):
        training = recipe["training"]
        self.recipe = recipe
        self.seed: int = recipe["seed"]
        self.task = task
        self.offer = task.offer
        self.model = model
        self.procedure = procedure
        self.techniques = techniques
        self.loss = loss
        self.decoder = decoder
        self.device = device
        self.recorder = recorder
        self.streams = Streams(self.seed, device)
        self.accumulate: int = training["accumulate"]
        self.share = 1.0  # of the step's samples that the current micro-batch holds
        self.last_micro = True  # of the worker's part of the step
        self.workers = Workers(sent=partial(self.count, "bytes-sent"))
        self.worker = 0  # whose part of the step this is
        self.counts = dict.fromkeys(COUNTS, 0)
        self.precision: str = training["precision"]
        self.evaluation_batch: int = training["evaluation_batch"]
        self.normalization: str = training["normalization"]
        self.asked = 0  # samples that were to be answered, over all evaluations
        self.calls = 0  # samples that the model itself was asked for, over all evaluations
        self.roles: dict[str, Role] = {}
        self.masks = Masks(lambda: self.model)
        self.structure = Structure()
        self.step = 0
        self.steps: int | None = None  # in all, over every phase
        self.begin = 0  # the step at which this phase begins, and the one at which it ends
        self.end: int | None = None
        self.epochs_before = 0.0
        self.course: Course
        self.stage: Stage
        self.seconds = 0.0
        self.step_loss: Tensor | None = None  # of the main role, or the sum over all where there is none
        self.finished = ""  # why the run ends after this step, where a part has said so
        self.batch: Batch | None = None
        self.draw: dict[str, Tensor] | None = None
        self.stream: Stream | None = None
        self.further: dict[str, Stream] = {}
        self.live: dict[str, Value] = {}  # the settings that a part of this run learns, by path
        self.default_optimizer: Callable[[Any], torch.optim.Optimizer] | None = None
        self.default_schedule: Callable[[], Schedule | None] = lambda: None
        self.losses: Tensor | None = None  # of the (micro-)batch's samples, where somebody observes them
        self.keep_losses = False
        self._columns: dict[str, Columns] = {}
        self._entered: dict[str, Tensor] = {}  # the head, in the last forward pass
        self._head_hook: RemovableHandle | None = None
        self._call: nn.Module | Callable[..., Any] = model
        self.probes: list[Probe] = []
        self._watching: list[Callable[..., None]] = []
        self._on_terms: list[Callable[..., Terms]] = []
        self._aux: list[tuple[str, nn.Module]] = []
        self.observing: list[Any] = []  # the modules that are told what came of a batch
        self._ticking: list[Any] = []
        self._side: list[nn.Module] = []
        self._measuring: list[tuple[str, nn.Module]] = []
        self._values: list[tuple[str, Value]] = []

    # -- where it is -----------------------------------------------------------------------------------------------

    @property
    def progress(self) -> Progress:
        steps = None if self.end is None else self.end - self.begin
        return Progress(self.step - self.begin, steps, (self.step - self.begin) / self.steps_per_epoch)

    @property
    def steps_per_epoch(self) -> int:
        return max(self.stream.batches, 1) if self.stream is not None else 1

    @property
    def epoch(self) -> float:
        """Passes over the training split, those of earlier phases with them."""
        return self.epochs_before + (self.step - self.begin) / self.steps_per_epoch

    @property
    def samples(self) -> int:
        """Samples in the training split."""
        return self.columns_of("train").size

    @property
    def anatomy(self) -> Anatomy:
        return anatomy_of(self.model)

    def rng(self, name: str) -> torch.Generator:
        """The named random stream of this run, on its device."""
        return self.streams.get(name)

    # -- data ------------------------------------------------------------------------------------------------------

    def columns_of(self, split: str) -> Columns:
        if split not in self._columns:
            self._columns[split] = Columns(self.task, split, self.device)
        return self._columns[split]

    def columns(self, split: str) -> dict[str, Tensor]:
        """A split's tensors on the device, one row a sample."""
        return self.columns_of(split).tensors

    def stream_of(self, split: str, name: str = "", size: int | None = None) -> Stream:
        """A further stream of a split's batches, shuffled anew each epoch, beside the one that the loop trains on; of
        the training samples, as the task hands them out, where they are no rows.

        Each `name` (a part's id) has a stream of its own, with its own generator; asking again gives the same one.
        Checkpoints hold it: a resumed run goes on with the batch that would have come.
        """
        key = f"{split}/{name}"
        if key not in self.further:
            columns = self.columns_of(split)
            batch_size, rng = size or self.recipe["training"]["batch_size"], self.rng(f"data order/{key}")
            if split == "train" and self.task.stream != "rows":
                self.further[key] = Endless(self.task, columns, batch_size, rng)
            elif columns.size:
                self.further[key] = Shuffled(columns, batch_size, rng)
            else:
                raise AthanorError(f"The task has no samples in the split {split!r}, so nothing can be drawn from it.")
        return self.further[key]

    def batches(self, split: str, size: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        """A split in its stored order; the whole of it where the task hands it out whole."""
        columns = self.columns_of(split)
        if self.task.stream == "whole":
            size, limit = max(columns.size, 1), None
        return columns.in_order(size or self.evaluation_batch, limit)

    def training_sample(self, size: int) -> Batch:
        """Some training samples to look at, the same every time, wherever the task has them from."""
        if self.columns_of("train").size:
            return next(self.batches("train", size, size))
        rng = torch.Generator(self.device)
        rng.manual_seed(derive_seed(self.seed, "samples to look at"))
        return some(self.task, self.columns_of("train"), size, rng)

    def has(self, split: str) -> bool:
        """Whether something can be measured of a split."""
        return split in self.task.judges or self.columns_of(split).size > 0

    def differentiable(self, batch: Batch) -> Batch:
        """The batch with a gradient for the inputs by which the task differentiates."""
        if not self.task.input_gradients:
            return batch
        wanted = {name: batch.inputs[name].detach().requires_grad_() for name in self.task.input_gradients}
        return replace(batch, inputs={**batch.inputs, **wanted})

    # -- the step --------------------------------------------------------------------------------------------------

    def autocast(self) -> AbstractContextManager[Any]:
        kind = AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype=kind) if kind else nullcontext()

    def forward(self, batch: Batch, model: nn.Module | None = None) -> Any:
        """A model's answer in the run's precision."""
        call = self._call if model is None else model
        self.give_side(batch)
        if self.precision == "fp32":
            return call(*batch.inputs.values())
        with self.autocast():
            return call(*batch.inputs.values())

    def give_side(self, batch: Batch) -> None:
        """Hands the layers that need more than the inputs what the batch has for them, before they see it."""
        if self._side:
            give_side(self._side, batch)

    def objective(self, output: Any, batch: Batch) -> Terms:
        """The recipe's loss, or the task's own; that of a procedure which brings one."""
        if type(self.procedure).objective is not Procedure.objective:
            return self.procedure.objective(self, output, batch)
        if self.loss is None:
            return self.task.objective(output, batch)
        if "features" in self.loss.reads:
            return self.loss(output, batch, self.features)  # type: ignore[call-arg]
        return self.loss(output, batch)

    def terms(self, output: Any, batch: Batch, own: Terms | None = None) -> Terms:
        """All terms of a training step, named: the objective, the layers' own, and what techniques add or change.

        `own` are the terms of a procedure that brings its objective where they are no function of the answer alone.
        """
        if self.precision != "fp32":
            output = _to_fp32(output)
        terms = {**(self.objective(output, batch) if own is None else own), **self._layer_terms()}
        for hook in self._on_terms:
            terms = hook(self, terms, output, batch)
        for watch in self._watching:
            watch(self, terms, output, batch)
        return terms

    @property
    def features(self) -> Tensor:
        """What entered the model's head in the last forward pass, with its gradient, in training and evaluation.

        For parts that declare ``reads = ("features",)``. Raises AthanorError where none does.
        """
        if "features" not in self._entered:
            raise AthanorError('There are no features: no part that reads "features" is in the recipe, or no pass yet.')
        found = self._entered["features"]
        return _to_fp32(found) if self.precision != "fp32" else found

    def keep_features(self) -> None:
        """From now on `features` holds what enters the head of the model as it is; again after the head was changed."""
        head, entered = self.anatomy.head, self._entered
        if self._head_hook is not None:
            self._head_hook.remove()

        def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if module is head:  # a copy of the model has a copy of this hook
                entered["features"] = inputs[0]

        self._head_hook = head.register_forward_pre_hook(keep)

    def total(self, terms: Terms, batch: Batch) -> Tensor:
        """Named terms of a batch as one number, differentiable: what an update of these terms would descend."""
        return total_of(terms, batch.weight)

    def update(
        self, role: str, terms: Terms, grads: Sequence[Tensor | None] | None = None, alone: bool = False
    ) -> None:
        """Takes one step of a role; see `roles.update`.

        `grads`, one a parameter of the role, stand in for the backward pass where a procedure knows them otherwise.
        What the terms ask of another role's parameters waits there for that role's next update (parts that share
        weights want it so); `alone` leaves the others no gradients.
        """
        player = self.roles[role]
        if self.keep_losses or self.observing:
            each = [term.detach() for term in terms.values() if term.dim() == 1]
            self.losses = torch.stack(each).sum(0) if each else None
        weight = self.batch.weight if self.batch is not None else None
        loss = roles.update(self, player, terms, weight, grads, alone)
        prefix = "train" if role == "main" else role
        if len(self.roles) > 1:
            self.log(f"{role}/loss", loss)
        if role == "main" or "main" not in self.roles:
            share = loss if self.share == 1.0 else loss * self.share
            self.step_loss = share if self.step_loss is None else self.step_loss + share
        if len(terms) > 1 and self.step % DETAIL_EVERY == 0:
            for name, term in terms.items():
                self.log(f"{prefix}/term/{name}", term.detach().mean())

    def count(self, what: str, more: int = 1) -> None:
        """Adds to one of the run's counters; a new one begins at nothing."""
        self.counts[what] = self.counts.get(what, 0) + more

    def tell(self, objective: float | Tensor) -> None:
        """The objective of a step that updates no role: what the log shows as its loss."""
        value = objective.detach() if isinstance(objective, Tensor) else torch.tensor(objective, device=self.device)
        self.step_loss = value if self.step_loss is None else self.step_loss + value

    def finish(self, reason: str) -> None:
        """Ends the run after this step, because there is nothing left to do; `reason` is a sentence for the log."""
        self.finished = reason

    def add_role(
        self, name: str, module: nn.Module, optimizer: Any = None, schedule: Any = None, but: Sequence[Tensor] = ()
    ) -> Role:
        """Makes a player: a module with an optimizer and a schedule (None: the recipe's, built anew; False: none).

        An optimizer is a function from parameter groups to one, as a field `OptimizerPart` gives it. `but` are the
        module's parameters that another role moves.
        """
        role = Role(name, module, others=list(but))
        role.collect()
        named = list(zip(role.names, role.parameters, strict=True))
        make = self.default_optimizer if optimizer is None else optimizer
        if make and named:
            role.optimizer = make(self._groups(name, module, named))
            role.base = [dict(group) for group in role.optimizer.param_groups]
            role.external = not is_part(role.optimizer) or info(role.optimizer).lr == "external"
            role.schedule = self.default_schedule() if schedule is None else schedule or None
            role.lr = role.base[0].get("lr", math.nan)
            if hasattr(role.optimizer, "attach") or getattr(role.optimizer, "closure", False):
                terms = self._optimizer_terms if module is self.model else self._oracle_terms
                role.oracle = self._oracle(module, terms)
                self._attach(role)
        if self.precision == "fp16" and role.optimizer is not None:
            role.scaler = torch.amp.GradScaler(self.device.type)
        roles.collect_hooks(role, self.techniques, self.procedure)
        self.roles[name] = role
        return role

    @staticmethod
    def _attach(role: Role) -> None:
        attach = getattr(role.optimizer, "attach", None)
        if attach is not None:
            try:
                attach(role.module, role.oracle)
            except ValueError as error:  # it refuses this model
                raise RecipeError([Problem("optimizer", info(role.optimizer).id, str(error))]) from error

    def _groups(self, role: str, module: nn.Module, named: Sequence[tuple[str, Tensor]]) -> list[dict[str, Any]]:
        """Optimizer groups: parameters with the same options (of their layers, of techniques) stand together."""
        options: dict[str, dict[str, Any]] = {}
        for path, inner in modules_with(module, "param_options"):
            for name, chosen in inner.param_options().items():  # type: ignore[operator]
                options.setdefault(f"{path}.{name}" if path else name, {}).update(chosen)
        for technique in self.techniques:
            if technique._on and not matches(role, technique._on):
                continue
            for name, chosen in technique.group_options(self, module).items():
                options.setdefault(name, {}).update(chosen)
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        for name, parameter in named:
            chosen = options.get(name, {})
            key = tuple(sorted((k, repr(v)) for k, v in chosen.items()))
            groups.setdefault(key, {"params": [], **chosen})["params"].append(parameter)
        return list(groups.values())

    # -- surgery -----------------------------------------------------------------------------------------------------

    def rewrite(self, part: str, operation: str, arguments: Mapping[str, Any], replaces: bool = False) -> Moves:
        """Changes the model after its optimizers exist: calls the operation of a part (by its id; see
        `engine.parts.Moved`), lets everything that hangs on the parameters follow, and keeps the call in the structure
        log. `replaces`: the operation sets what the last one of its name set before, which the log then forgets.

        Call it between two steps, or where the procedure has no update under way.
        """
        return self.structure.rewrite(self, part, operation, arguments, replaces)

    def on_surgery(self, moves: Moves) -> None:
        """Lets everything that hangs on the model's parameters follow: optimizers, masks, parts, the compiled pass."""
        for role in self.roles.values():
            role.on_surgery(moves, self._groups)
        self.masks.on_surgery(moves)
        optimizers = [role.optimizer for role in self.roles.values()]
        for part in (*optimizers, self.loss, self.procedure, *self.techniques, *self.probes):
            follow = getattr(part, "on_surgery", None)
            if follow is not None:
                follow(self, moves)
        if self.roles:
            self.make_ready()
        if isinstance(self._call, partial):
            self._call = self.model
            self.compile()

    def oracle(self, batch: Batch | None = None) -> Oracle:
        """Values and derivatives of the training loss on a batch (the current one when None)."""
        made = self._oracle(self.model)
        batch = batch if batch is not None else self.batch
        made.bind(self.procedure.given(self, batch) if batch is not None else batch, self.draw)  # type: ignore[arg-type]
        return made

    def _oracle(self, module: nn.Module, terms: Callable[[Any, Batch], Terms] | None = None) -> Oracle:
        terms = terms or self._oracle_terms
        return Oracle(module, terms, autocast=self.autocast, before=self.give_side, counted=self._counted)

    def _counted(self) -> None:
        self.counts["oracle-calls"] += 1

    def _oracle_terms(self, output: Any, batch: Batch) -> Terms:
        return self.objective(_to_fp32(output) if self.precision != "fp32" else output, batch)

    def _optimizer_terms(self, output: Any, batch: Batch) -> Terms:
        """What an optimizer that looks at the loss again must see: that of the step, with the layers' own terms."""
        return {**self._oracle_terms(output, batch), **self._layer_terms()}

    def _layer_terms(self) -> Terms:
        """The layers' own losses, of their last pass."""
        found = {f"layer:{path}": module.aux_loss() for path, module in self._aux}  # type: ignore[operator]
        return {name: _to_fp32(term) for name, term in found.items() if term is not None}

    # -- evaluation ------------------------------------------------------------------------------------------------

    def variants(self) -> dict[str, Callable[[], AbstractContextManager[None]]]:
        """The further ways to evaluate the model that the procedure and the techniques offer."""
        parts: list[Procedure | Technique] = [self.procedure, *self.techniques]
        return {name: make for part in parts for name, make in part.variants(self).items()}

    def answer(self, batch: Batch) -> Any:
        """The model's own answer, as its procedure gives it: what a decoder asks for, as often as it likes."""
        self.calls += len(batch)
        return self._own_answer(batch)

    def _own_answer(self, batch: Batch) -> Any:
        self.give_side(batch)
        with self.autocast():
            return _to_fp32(self.procedure.predict(self, batch))

    def predict(self, batch: Batch, variant: str | None = None) -> Any:
        """What the trained model answers: the one way in for metrics, probes and figures."""
        with self.answering(variant) as answer:
            return answer(batch)

    @contextmanager
    def answering(self, variant: str | None = None) -> Iterator[Callable[[Batch], Any]]:
        """All that an evaluation stands in, begun anew: its mode, the variant, the normalization and the decoder.

        Gives what answers a batch; a stream is answered in its order. Nothing of it is left afterwards.
        """
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(self.evaluating())
            if variant:
                stack.enter_context(self.variants()[variant]())
            stack.enter_context(self._normalized())
            if self.decoder is None:
                yield self._guarded(self.answer)
                return
            if self.decoder.adapts:
                stack.enter_context(calibration.kept(*self.modules()))
            rng = torch.Generator(self.device)
            rng.manual_seed(derive_seed(self.seed, f"decoder/{self.step}"))
            self.decoder.reset(self, rng)
            decoder = self.decoder
            yield self._guarded(lambda batch: decoder.predict(self, batch, rng))

    def _normalized(self) -> AbstractContextManager[None]:
        """The recipe's normalization of an evaluation."""
        if self.normalization == "batch":
            return calibration.batch_statistics(*self.modules())
        if self.normalization == "recalibrated":
            batches = self._calibration_batches()
            return calibration.recalibrated(*self.modules(), forward=self._own_answer, batches=batches)
        return nullcontext()

    def _calibration_batches(self) -> Iterator[Batch]:
        """The same whole training batches each time, drawn at random once."""
        columns, size = self.columns_of("train"), self.recipe["training"]["batch_size"]
        count = self.recipe["training"]["calibration_batches"]
        rng = torch.Generator(self.device)
        rng.manual_seed(derive_seed(self.seed, "calibration"))
        if self.task.stream != "rows":
            yield from (some(self.task, columns, size, rng) for _ in range(count if self.task.stream == "drawn" else 1))
            return
        rows = columns.rows(torch.randperm(columns.size, generator=rng, device=self.device))
        size = min(size, columns.size)
        for number in range(min(count, columns.size // size)):
            yield columns.batch(rows, number * size, (number + 1) * size)

    def _guarded(self, answer: Callable[[Batch], Any]) -> Callable[[Batch], Any]:
        def counted(batch: Batch) -> Any:
            self.asked += len(batch)
            return _with_statistics(answer, batch) if self.normalization == "batch" else answer(batch)

        return counted

    def modules(self) -> list[nn.Module]:
        """Every module that the run holds: those of its roles, and the model."""
        found = {id(module): module for module in (self.model, *(role.module for role in self.roles.values()))}
        return list(found.values())

    @contextmanager
    def serving(self, model: nn.Module) -> Iterator[None]:
        """A stretch in which the run answers with another model, which is in evaluation mode."""
        kept = self.model, self._call, self._side
        self.model, self._call, self._side = model, model, with_side(model)
        try:
            yield
        finally:
            self.model, self._call, self._side = kept

    def evaluating(self) -> AbstractContextManager[None]:
        """Evaluation mode, with draws that leave no trace on the training's."""
        return _evaluating(self)

    def evaluate(self, split: str, variant: str | None = None, limit: int | None = None) -> dict[str, float]:
        """The mean of every metric over a split, the mean objective as "loss", and what the task judges by itself."""
        sums: dict[str, Tensor] = {}
        answers: list[Any] = []
        rows, count = 0, 0.0
        with self.answering(variant) as answer:
            for batch in self.batches(split, limit=limit) if self.task.by_row else ():
                with torch.set_grad_enabled(bool(self.task.input_gradients)):
                    batch = self.differentiable(batch)
                    output = answer(batch)
                    measured = self._spent() | self.measured(output, batch)
                if self.task.collects:
                    answers.append(output)
                asked = batch.asked
                counted = len(batch) if asked is None else float(asked.sum())
                for name, value in measured.items():
                    value = value.detach().double()
                    if asked is not None and value.dim():
                        value = torch.where(asked, value, 0.0)
                    total = value.sum() if value.dim() else value * counted
                    sums[name] = sums[name] + total if name in sums else total
                rows, count = rows + len(batch), count + counted
            judged = self.task.judge(split, answer, self._judging(split)) if split in self.task.judges else {}
        if not count:
            return judged
        found = {name: total / count for name, total in sums.items()}
        if answers:
            found |= self.task.overall(_joined(answers), next(self.batches(split, rows, rows)))
        numbers = torch.stack(list(found.values())).tolist() if found else []
        return self.task.summary(dict(zip(found, numbers, strict=True))) | judged

    def measured(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """The task's metrics of an answer, and its objective as "loss"."""
        measured = self.task.metrics(output, batch)
        if not self.task.has_objective:
            return measured
        for name, term in self.task.objective(output, batch).items():
            measured["loss" if name == "task" else name] = term
        return measured

    def _spent(self) -> dict[str, Tensor]:
        """What the model's last pass cost, where its modules tell."""
        found: dict[str, Tensor] = {}
        for _, module in modules_with(self.model, "spends"):
            for name, value in module.spends().items():  # type: ignore[operator]
                found[name] = found[name] + value if name in found else value
        return found

    def figures(self) -> dict[str, Figure]:
        """What the task draws of the trained model's answers."""
        if type(self.task).figures is Task.figures:
            return {}
        with self.answering() as answer:
            return self.task.figures(answer, self._judging("figures"))

    def _judging(self, what: str) -> torch.Generator:
        rng = torch.Generator(self.device)
        return rng.manual_seed(derive_seed(self.seed, f"judge/{what}"))

    # -- the log ---------------------------------------------------------------------------------------------------

    def log(self, name: str, value: float | Tensor) -> None:
        """A point of a series at the current step."""
        self.recorder.add(name, self.step, value)

    def note(self, text: str, level: str = "info", kind: str = "") -> None:
        """A message that a person reads beside the curves."""
        self.recorder.sink.event(text, level=level, kind=kind, step=self.step)

    @property
    def wants_gradient_norm(self) -> bool:
        return self.step % DETAIL_EVERY == 0

    def log_gradient_norm(self, role: Role) -> None:
        """The norm of the gradient, before techniques shape or clip it."""
        grads = [p.grad for p in role.parameters if p.grad is not None]
        if grads:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            self.log("gradient-norm" if role.name == "main" else f"{role.name}/gradient-norm", norm)

    # -- made ready by `assemble` ----------------------------------------------------------------------------------

    def make_ready(self) -> None:
        """Collects what every step needs, once: hooks, layers with a protocol, values over time."""
        if self._head_hook is not None:  # the head may be another one now
            self.keep_features()
        self._watching = [probe.watch for probe in self.probes if hasattr(probe, "watch")]
        self._on_terms = [t.on_terms for t in self.techniques if hasattr(t, "on_terms")]
        self._aux = modules_with(self.model, "aux_loss")
        self._measuring = modules_with(self.model, "measures")
        whole = nn.ModuleList([self.model, *(role.module for role in self.roles.values())])
        self._ticking = [module.tick for _, module in modules_with(whole, "tick")]
        self.observing = [module for _, module in modules_with(whole, "observe")]
        self._side = with_side(whole)
        self._values = [
            (f"value/{info(t).id}.{name}", value) for t in self.techniques for name, value in t.values().items()
        ]
        if any(role.oracle is not None for role in self.roles.values()):
            self.keep_draw = True

    keep_draw = False

    def before_step(self) -> None:
        """What the engine does at the start of a step, before any part."""
        self._entered.clear()
        if self.keep_draw:
            self.draw = global_state(self.device)
        self.tick(self.progress)
        if self.live and self.step % DETAIL_EVERY == 0:
            for path, value in self.live.items():
                self.log(f"value/{path}", value.tensor)  # type: ignore[arg-type]
        if self._values and self.step % DETAIL_EVERY == 0:
            at = self.progress
            for name, value in self._values:
                self.log(name, value.at(at))

    def tick(self, at: Progress) -> None:
        """Tells the layers that change over the run where it is."""
        for tick in self._ticking:
            tick(at)

    def after_step(self) -> None:
        """What the engine does at the end of a step, after every part: the numbers that layers show of themselves."""
        if self._measuring and self.step % DETAIL_EVERY == 0:
            for path, module in self._measuring:
                for name, value in module.measures().items():  # type: ignore[operator]
                    self.log(f"layer/{path}/{name}" if path else f"layer/{name}", value.detach().clone())

    def compile(self) -> None:
        """Compiles the model's forward pass; the first failure goes back to eager with a message."""
        layers = (module for module in self.model.modules() if is_part(module))
        parts = [self.procedure, *self.techniques, *layers]
        if self.task.input_gradients:
            self.note("Not compiled: the task differentiates the answer by its inputs a second time.", "warning")
            return
        forbidding = [info(part).id for part in parts if info(part).graph == "never"]
        if forbidding:
            self.note(f"Not compiled: {', '.join(forbidding)} changes the model as it runs.", "warning")
            return
        self._call = partial(_compiled_or_eager, self, torch.compile(self.model))


def _with_statistics(answer: Callable[[Batch], Any], batch: Batch) -> Any:
    """An answer normalized by its batch: one number a channel has no variance, which torch refuses."""
    try:
        return answer(batch)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        sentence = "A batch of one sample has no statistics to normalize by; set another training.evaluation_batch."
        raise AthanorError(sentence) from error


def _compiled_or_eager(run: Run, compiled: Any, *inputs: Tensor) -> Any:
    try:
        return compiled(*inputs)
    except Exception as error:  # torch.compile raises many types, for reasons outside the recipe (no C++ compiler)
        if isinstance(error, AthanorError | torch.OutOfMemoryError):
            raise
        run._call = run.model
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        run.note(f"Compilation failed, the run goes on without it: {reason}", "warning")
        return run.model(*inputs)


class _evaluating:
    """Evaluation mode and forked random draws; the mode of every module is put back."""

    def __init__(self, run: Run):
        self.run = run

    def __enter__(self) -> None:
        modules = [m for role in self.run.roles.values() for m in role.module.modules()] or list(
            self.run.model.modules()
        )
        self._training = [m for m in modules if m.training]
        for module in self._training:
            module.training = False
        self._fork = forked(self.run.device, derive_seed(self.run.seed, f"evaluation/{self.run.step}"))
        self._fork.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._fork.__exit__(*exception)
        for module in self._training:
            module.training = True


def _joined(outputs: list[Any]) -> Any:
    """Answers to batches as the answer to all of them."""
    if isinstance(outputs[0], dict):
        return {name: _joined([output[name] for output in outputs]) for name in outputs[0]}
    if isinstance(outputs[0], list | tuple):
        return type(outputs[0])(_joined(list(each)) for each in zip(*outputs, strict=True))
    return torch.cat(outputs)


def _to_fp32(output: Any) -> Any:
    """Outputs of a half-precision pass as fp32, so that losses are computed there."""
    if isinstance(output, Tensor):
        return output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
    if isinstance(output, dict):
        return {name: _to_fp32(value) for name, value in output.items()}
    if isinstance(output, list | tuple):
        return type(output)(_to_fp32(value) for value in output)
    return output
