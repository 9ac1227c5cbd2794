"""The loop: steps, evaluation, checkpoints, and what a person asks of a live run.

Nothing here waits for the device between flushes: losses stay tensors until the recorder fetches many at once, and
divergence is seen in what it fetched.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomlkit
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine import endpoints, registry
from engine.axes import COUNTED, EPOCH, EXPERIENCE
from engine.errors import AthanorError, CheckpointError, LogError, PartError
from engine.parts import Batch, Probe, Progress, Transform, info, is_part, named_modules_with
from engine.replies import Replies
from engine.training import checkpoint, divergence, phases, sources
from engine.training.assemble import assemble, enabled, fitting, pick_device
from engine.training.measure import parameter_count, sparsity
from engine.training.random import forked, global_state, set_global_state
from engine.training.recorder import Memory, Recorder, Sink
from engine.training.run import DETAIL_EVERY, Run
from engine.training.state import capture, restore
from engine.training.surgery import Entry
from engine.training.transforms import Chain, next_number
from engine.workspace import Workspace

LOOK_SECONDS = 0.1
PAUSE_POLL = 0.05
LAST_TRY = 15.0  # seconds that a run's end waits for a disk or a log that cannot be written
RETRY = 0.5
TRAIN_METRIC_ROWS = 1024
FIGURES = 20  # of a kind that a task draws over a run


@dataclass
class Outcome:
    """How a run ended."""

    state: str
    steps: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    weights: str = ""
    message: str = ""
    found: dict[str, Any] = field(default_factory=dict)  # changes to the recipe that the procedure found, by path


class Diverged(AthanorError):
    """The loss, or a weight, is no longer a finite number."""

    def __init__(self, step: int, what: str = "The loss", where: str = ""):
        self.step = step
        super().__init__(
            f"{what} was not a finite number at step {step}{where}. Lower the learning rate, clip the gradient, or go "
            "on from the last good checkpoint with other settings."
        )


class Stopped(Exception):
    """A person asked the run to stop."""


class Trainer:
    """Drives one run to its end, from the start or from a checkpoint. `folder` None keeps no checkpoints."""

    def __init__(self, run: Run, folder: Path | None = None):
        self.folder = folder
        self.sink = run.recorder.sink
        self.metrics: dict[str, float] = {}
        self.found: dict[str, Any] = {}
        self.best: tuple[float, int] | None = None
        self._best_state: dict[str, Any] | None = None
        self._best_structure: list[Entry] = []
        self._saved_at = time.monotonic()
        self._finite_at = run.step  # the newest step at which all weights were seen to be finite
        self._unsaved = ""  # why the last checkpoint could not be written
        self._clock = time.perf_counter()
        self._looked = self._clock
        self._shown = (0, 0.0)  # step and seconds of the last throughput point
        self._waiting = threading.Event()
        if folder is not None:
            run.course.store(folder)
        self._take(run)

    def _take(self, run: Run) -> None:
        """Drives this run from now on: the first one, or that of the next phase."""
        self.run = run
        self.interval = round(run.recipe["training"]["evaluate_every"] * run.steps_per_epoch)
        self._began = run.seconds  # of training, before this phase
        self._counted = dict(run.counts)  # what earlier phases used up
        self._drawn: int | None = None  # the step of the newest figures
        self._logged: int | None = None  # and that of the newest counts
        self._stale = 0  # evaluations since the watched series last improved
        self._watched_best: float | None = None
        self._ended_early = False
        self._acted = run.procedure.trains  # whether a procedure that acts once has done so
        self._evaluated: int | None = None  # the step of the last evaluation
        self._due = run.course.due(run)
        self._on_batch = [t.on_batch for t in run.techniques if hasattr(t, "on_batch")]
        told: list[Any] = [getattr(run.stream, "sampler", None), *run.techniques]
        self._observe = [part.observe for part in told if hasattr(part, "observe")]
        run.keep_losses = bool(self._observe)
        if run.workers.processes > 1 and (self._observe or run.observing):
            raise AthanorError(
                "A part of this recipe goes by the loss of each sample, and of several processes each sees its own "
                "samples alone. Train it in one process; its workers may be several."
            )
        hooked = (run.procedure, *run.techniques, *self._optimizers())
        self._step_ends = any(hasattr(part, "on_step_end") for part in hooked)

    # -- the whole run ---------------------------------------------------------------------------------------------

    def train(self) -> Outcome:
        """Trains until the budget, an early stop, a request or a divergence ends the run."""
        try:
            if self.folder is not None:
                checkpoint.tidy(self.folder)
            if self.folder is not None and self.run.step == 0:
                self.save()
            self._announce("training")
            self._clock = time.perf_counter()
            self._keep_moment()
            while True:
                while not self._finished():
                    self._step()
                if self.run.stage is self.run.course.stages[-1] or self._at_share():
                    return self._finish("done")
                self._next_phase()
        except Stopped:
            return self._close("stopped", f"Stopped at step {self.run.step}.")
        except Diverged as error:
            return self._close("diverged", str(error), save=False)

    def _finished(self) -> bool:
        """Whether this phase is at its end, or the share of the whole run after which it may go on some other day."""
        return self._over() or self._at_share()

    @property
    def last(self) -> int | None:
        """The step at which it ends, where steps end it."""
        run, share = self.run, self.run.course.share
        return max(round(share * run.steps), 1) if run.steps and share < 1 else run.steps

    def _at_share(self) -> bool:
        run, share, seconds = self.run, self.run.course.share, self.run.recipe["budget"]["seconds"]
        if share == 1:
            return False
        if (self.last is not None and run.step >= self.last) or self._used_up(share):
            return True
        return bool(seconds) and self._seconds() - self._began >= share * seconds

    def _over(self) -> bool:
        """Whether this phase is at its end; the whole run, where it has no phases."""
        run, budget = self.run, self.run.recipe["budget"]
        if self._ended_early or run.finished or (run.end is not None and run.step >= run.end) or self._used_up():
            return True
        return bool(budget["seconds"]) and self._seconds() - self._began >= budget["seconds"]

    def _used_up(self, share: float = 1.0) -> bool:
        """Whether the phase has used up what its budget allows of the counter that it names."""
        budget = self.run.recipe["budget"]
        used = self.run.counts.get(budget["count"], 0) - self._counted.get(budget["count"], 0)
        return bool(budget["amount"]) and used >= share * budget["amount"]

    def _seconds(self) -> float:
        """Seconds of training so far, pauses not counted."""
        return self.run.seconds + time.perf_counter() - self._clock

    def _step(self) -> None:
        run = self.run
        assert run.stream is not None
        batch = run.stream.next()
        run.before_step()
        if batch.inputs:  # what stands for a task without samples is none
            run.counts["samples"] += len(batch)
        for worker, part in run.workers.parts(batch) if len(batch) else ():  # a step without samples only counts
            run.worker = worker
            micros = _split(part, run.accumulate)
            for number, micro in enumerate(micros):
                run.share, run.last_micro = len(micro) / len(batch), number == len(micros) - 1
                for hook in self._on_batch:
                    micro = hook(run, micro)
                run.batch = micro = run.differentiable(micro)
                run.give_side(micro)
                run.procedure.step(run, micro)
                if self._observe or run.observing:
                    self._tell(micro)
        if run.workers.processes > 1:
            self._agree()
        if run.step_loss is not None:
            run.recorder.watch("train/loss", run.step, run.step_loss)
            run.step_loss = None
        self._log_rate()
        run.after_step()
        run.step += 1
        if run.step % DETAIL_EVERY == 0:
            self._log_counts()
        if self._step_ends:
            self._call("on_step_end")
        epoch_ends, experience_ends = run.stream.at_epoch_end, run.stream.experience_ended
        if experience_ends:
            self._call("on_experience_end")
        if epoch_ends:
            self._call("on_epoch_end")
        due = self.interval and ((run.step - run.begin) % self.interval == 0 or experience_ends)
        if due and not self._ends():
            self._call("after_evaluation", self.evaluate())
        if epoch_ends:
            self._call("after_epoch")
        if run.step in self._due:
            self._keep_moment()
        if time.perf_counter() - self._looked > LOOK_SECONDS:
            self._look_up()

    def _tell(self, batch: Batch) -> None:
        """Tells whoever observes the training what came of a (micro-)batch."""
        run = self.run
        for module in run.observing:
            module.observe(batch, run.losses)
        for observe in self._observe:
            observe(run, batch, run.losses)
        run.losses = None

    def _agree(self) -> None:
        """What the processes of a run share beside the gradients: the loss of the whole step, and statistics."""
        run = self.run
        if run.step_loss is not None:
            run.step_loss = run.workers.sum([run.step_loss])[0]
        run.workers.align(run.model)

    def _log_counts(self) -> None:
        """What was used up until now: the axes on which runs of different kinds can be compared."""
        if self._logged == self.run.step:
            return
        self._logged = self.run.step
        run = self.run
        run.log(EPOCH, round(run.epoch, 9))  # phases add up to the same as one run
        if run.stream is not None and run.stream.experience:
            run.log(EXPERIENCE, run.stream.experience)
        for name, count in run.counts.items():
            if count:
                run.log(f"{COUNTED}{name}", count)

    def _log_rate(self) -> None:
        for role in self.run.roles.values():
            if role.optimizer is not None:
                self.run.log("lr" if role.name == "main" else f"{role.name}/lr", role.lr)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [role.optimizer for role in self.run.roles.values() if role.optimizer is not None]

    def _call(self, hook: str, *arguments: Any) -> None:
        for role in self.run.roles.values() if hook in ("on_step_end", "on_end") else ():
            method = getattr(role.optimizer, hook, None)
            if method is not None:
                method(self.run, role)
        for part in (self.run.procedure, *self.run.techniques):
            method = getattr(part, hook, None)
            if method is not None:
                method(self.run, *arguments)

    def _act(self) -> None:
        """What a procedure that trains nothing does, once."""
        if not self._acted:
            self.run.procedure.act(self.run)
            self._acted = True

    # -- phases ----------------------------------------------------------------------------------------------------

    def _ends(self) -> bool:
        """Whether the last phase is at its end: the final evaluation comes next."""
        return self.run.stage is self.run.course.stages[-1] and self._over()

    def _next_phase(self) -> None:
        """Ends a phase and goes over to the one that follows it."""
        run, course = self.run, self.run.course
        self._flush()
        self._act()
        if self.interval and self._evaluated != run.step and run.has("val"):
            self._call("after_evaluation", self.evaluate())
        for part in phases.leaving(run):
            if hasattr(part, "on_end"):
                part.on_end(run)
        if course.wants_last(run.stage):
            course.keep(run.stage, "last", self.state())
        seconds = self._seconds()
        following = phases.follow(run, self.state())
        following.seconds, self._clock = seconds, time.perf_counter()
        self._take(following)
        self.best = self._best_state = None  # the best of the last phase is the run's
        self._announce("training")
        self._keep_moment()
        if self.save():  # until then a process that takes over would need what is dropped
            course.drop()

    def _keep_moment(self) -> None:
        """Keeps the state of this step where a later phase names it."""
        moment = self._due.get(self.run.step)
        if moment is not None:
            self.run.course.keep(self.run.stage, moment, self.state())

    # -- between steps ---------------------------------------------------------------------------------------------

    def _look_up(self) -> None:
        """A few times a second: fetch, watch for divergence, tell how far it is, obey, save."""
        run = self.run
        self._looked = time.perf_counter()
        self._flush()
        self._require_finite()
        seconds = self._seconds()
        steps, since = run.step - self._shown[0], seconds - self._shown[1]
        if since > 0.5:
            run.log("throughput", steps * run.stream.batch_size / since)  # type: ignore[union-attr]
            self._shown = (run.step, seconds)
        self.sink.run(step=run.step, epoch=run.epoch, seconds=seconds)
        self._obey()
        if self.folder is not None and time.monotonic() - self._saved_at > run.recipe["training"]["checkpoint_every"]:
            self.save()

    def _flush(self, wait: bool = False) -> None:
        bad = self.run.recorder.flush(wait=wait)
        if bad is not None:
            raise Diverged(bad, where=divergence.layers(self.run))

    def _require_finite(self) -> None:
        """Weights can be lost while the loss is a number still: where a layer takes no part in it, or hides it."""
        if not divergence.all_finite(self.run):
            where = f" and all were at step {self._finite_at}{divergence.layers(self.run)}"
            raise Diverged(self.run.step, "A weight", where)
        self._finite_at = self.run.step

    def _obey(self) -> None:
        request = self.sink.requested
        if request == "stop":
            self.sink.answered("stop")
            raise Stopped
        if request == "checkpoint":
            self.save()
            self.sink.answered("checkpoint")
        elif request == "pause":
            self._pause()
        elif request == "resume":
            self.sink.answered("resume")

    def _pause(self) -> None:
        """Saves, then waits in the process, everything in place, until asked to go on."""
        run = self.run
        run.seconds = self._seconds()
        self._clock = time.perf_counter()
        self.save()
        self.sink.run(state="paused", message=f"Paused at step {run.step}.", step=run.step, seconds=run.seconds)
        self.sink.answered("pause")
        while self.sink.requested not in ("resume", "stop"):
            self._waiting.wait(PAUSE_POLL)
        self._clock = time.perf_counter()
        if self.sink.requested == "stop":
            self.sink.answered("stop")
            raise Stopped
        self.sink.run(state="training", message="")
        self.sink.answered("resume")

    def _announce(self, state: str) -> None:
        run = self.run
        epochs = run.course.epochs(run)
        if epochs is not None and run.course.share < 1:
            epochs *= run.course.share
        columns: dict[str, Any] = {"message": f"Phase {run.stage.label}" if run.stage.label else ""}
        self.sink.run(state=state, step=run.step, steps=self.last, epoch=run.epoch, epochs=epochs, **columns)
        self.sink.flush(wait=False)

    # -- evaluation ------------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        """Measures the validation split (and a part of the training split), logs, and keeps the best weights."""
        run = self.run
        started = time.perf_counter()
        self._evaluated = run.step
        found = self.measure("val") | self.measure("outer")
        limit = min(max(run.columns_of("val").size, 256), TRAIN_METRIC_ROWS)
        found |= {f"train/{n}": v for n, v in run.evaluate("train", limit=limit).items() if n != "loss"}
        for name, value in found.items():
            run.log(name, value)
        for path, share in sparsity(run.model).items():
            run.log(f"sparsity/{path}" if path else "sparsity", share)
        self._log_counts()
        for probe in self._probes("evaluation"):
            found |= self.look(probe)
        if self._drawn is None or run.step - self._drawn >= (run.steps or run.step) / FIGURES:
            self._draw()
        self._flush()
        self.metrics |= found | {n: v for n, v in run.recorder.last.items() if _tells_of_training(n)}
        self.sink.run(metrics=self.metrics, step=run.step, epoch=run.epoch)
        self._keep_best(found)
        self._watch(found)
        run.log("seconds/evaluation", time.perf_counter() - started)
        return found

    def _draw(self) -> None:
        """Stores what task, procedure, decoder and modules draw: once a step, and seldom enough to look through."""
        if self._drawn == self.run.step:
            return
        drawn = {self.run.recipe["task"]["use"]: self.run.figures()}
        for part in (self.run.procedure, self.run.decoder):
            if part is not None:
                drawn[info(part).id] = part.figures(self.run)
        model = self.run.model
        drawn[info(model).id if is_part(model) else "model"] = {
            f"{path}/{name}" if path else name: figure
            for path, module in named_modules_with(model, "figures")
            for name, figure in module.figures().items()  # type: ignore[operator]
        }
        for id, figures in drawn.items():
            for name, figure in figures.items():
                self.sink.figure(id, name, figure, self.run.step)
        self._drawn = self.run.step

    def measure(self, split: str) -> dict[str, float]:
        """Every metric of a split, for every variant, and what the decoder cost."""
        run = self.run
        before = run.calls, run.asked
        found = {f"{split}/{name}": value for name, value in run.evaluate(split).items()}
        for variant in run.variants():
            found |= {f"{split}@{variant}/{name}": value for name, value in run.evaluate(split, variant).items()}
        calls, asked = run.calls - before[0], run.asked - before[1]
        return found | ({"decoder/calls": calls / asked} if run.decoder is not None and asked else {})

    def _keep_best(self, found: Mapping[str, float]) -> None:
        name, goal = self.run.task.metric
        value = found.get(f"val/{name}")
        if value is None or math.isnan(value):
            return
        signed = value if goal == "max" else -value
        if self.best is None or signed > self.best[0]:
            self.best = (signed, self.run.step)
            if self.folder is not None:
                self._best_state = {n: t.detach().clone() for n, t in self.run.model.state_dict().items()}
                self._best_structure = list(self.run.structure.log)

    def _watch(self, found: Mapping[str, float]) -> None:
        """Counts evaluations without improvement of the series that an early stop watches."""
        training = self.run.recipe["training"]
        name = training["early_stop"]
        if not name:
            return
        if name not in found:
            raise AthanorError(f'early_stop = "{name}" is not measured here. There are {", ".join(found)}.')
        metric, goal = self.run.task.metric
        value = -found[name] if name.endswith(f"/{metric}") and goal == "max" else found[name]
        if self._watched_best is None or value < self._watched_best:
            self._watched_best, self._stale = value, 0
        else:
            self._stale += 1
        if self._stale >= training["patience"]:
            self._ended_early = True
            self.run.note(
                f"{name} has not improved for {self._stale} evaluations: the run ends early.", kind="early-stop"
            )

    def _probes(self, when: str) -> list[Probe]:
        return [probe for probe in self.run.probes if probe.when == when]

    def look(self, probe: Probe) -> dict[str, float]:
        """Runs a probe; its scalars become series, its figures are stored."""
        finding = probe.look(self.run)
        id = info(probe).id
        for name, figure in finding.figures.items():
            self.sink.figure(id, name, figure, self.run.step)
        scalars = {f"probe/{id}/{name}": value for name, value in finding.scalars.items()}
        for name, value in scalars.items():
            self.run.log(name, value)
        return scalars

    # -- the end ---------------------------------------------------------------------------------------------------

    def _finish(self, state: str) -> Outcome:
        run = self.run
        self._flush()
        run.seconds = self._seconds()
        self._clock = time.perf_counter()
        may_go_on = run.course.share < 1
        if may_go_on:
            self._save_at_last()  # what follows belongs to this end, and not to a run that goes on from here
        self._act()
        self._log_counts()
        self._call("on_end")
        if run.finished:
            run.note(run.finished, kind="finished")
        if run.has("val"):
            self.evaluate()
        self._draw()
        test = self.measure("test")
        for name, value in test.items():
            run.log(name, value)
        self.metrics |= test | {f"result/{n}": v for n, v in run.procedure.result(run).items()}
        self.metrics |= {f"{COUNTED}{name}": float(count) for name, count in run.counts.items() if count}
        self.found = run.procedure.found(run)
        if self.found:
            run.note(f"Found, to be written into a recipe: {_as_toml(self.found)}.", kind="found")
        for probe in self._probes("end"):
            self.metrics |= self.look(probe)
        self._transform(save=not may_go_on)
        self._clock = time.perf_counter()
        return self._close(state, "", save=not may_go_on)

    def _transform(self, save: bool) -> None:
        """Does to the trained model what the recipe wants done to it, one after the other; the run stays as it is."""
        uses = enabled(self.run.recipe["transforms"])
        if not uses:
            return
        if save:
            self.save()  # a part's own mistake must not cost the training
        chain = Chain(self.run, self.folder)
        for number, use in enumerate(uses, 1):
            part: Transform = registry.build(use)
            try:
                self.metrics |= chain.apply(part, number)
            except ValueError as error:
                text = f"{info(part).id} could not be applied, and what follows it was left out: {error}"
                self.run.note(text, "warning", "transform")
                return

    def transform(self, part: Transform) -> dict[str, float]:
        """One transform of the model as it is now, beside those that the recipe names. Raises AthanorError."""
        assert self.folder is not None
        try:
            found = Chain(self.run, self.folder).apply(part, next_number(self.folder))
        except ValueError as error:
            raise AthanorError(f"{info(part).id} could not be applied: {error}") from error
        self.sink.run(checkpoints=checkpoint.listing(self.folder, self.best))
        return found

    def _close(self, state: str, message: str, save: bool = True) -> Outcome:
        run = self.run
        if state == "stopped":
            run.seconds = self._seconds()
        self._clock = time.perf_counter()
        if save:
            self._save_at_last()
        elif self.folder is not None:
            self._try_to_save(self._save_best)
        run.recorder.flush()
        weights = checkpoint.fingerprint(self._all_weights())
        outcome = Outcome(state, run.step, run.seconds, self.metrics, weights, message, self.found)
        listing = checkpoint.listing(self.folder, self.best) if self.folder is not None else []
        self.sink.run(
            state=state, message=message, step=run.step, epoch=run.epoch, seconds=run.seconds, metrics=self.metrics,
            weights=weights, ended=time.time(), checkpoints=listing,
        )  # fmt: skip
        if message:
            self.sink.event(message, level="error" if state == "diverged" else "info", kind=state, step=run.step)
        with suppress(LogError):  # what waits is written, or complained of, when the log is closed
            self.sink.flush(wait=True)
        return outcome

    def _all_weights(self) -> dict[str, Any]:
        """The final weights: the model's, and those of whatever other roles hold."""
        found = dict(self.run.model.state_dict())
        for role in self.run.roles.values():
            if role.module is not self.run.model:
                found |= {f"{role.name}.{name}": value for name, value in role.module.state_dict().items()}
        return found

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that affects what comes next."""
        run = self.run
        assert run.stream is not None
        return {
            "step": run.step,
            "seconds": self._seconds() if run.step else 0.0,
            "phase": {
                "index": run.stage.index,
                "begin": run.begin,
                "epochs": run.epochs_before,
                "seconds": self._began,
                "counts": self._counted,
                "drawn": self._drawn,
                "logged": self._logged,
                "finished": run.finished,
                "acted": self._acted,
                "evaluated": self._evaluated,
            },
            "structure": list(run.structure.log),
            "model": run.model.state_dict(),
            "roles": {name: role.state() for name, role in run.roles.items()},
            "masks": run.masks.state(),
            "techniques": [capture(technique) for technique in run.techniques],
            "procedure": capture(run.procedure),
            "loss": capture(run.loss) if run.loss is not None else None,
            "decoder": {info(run.decoder).id: capture(run.decoder)} if run.decoder is not None else {},
            "probes": {f"{i}.{info(probe).id}": capture(probe) for i, probe in enumerate(run.probes)},
            "stream": run.stream.state(),
            "further": {key: {"size": s.batch_size, **s.state()} for key, s in run.further.items()},
            "live": {path: value.tensor for path, value in run.live.items()},
            "streams": run.streams.state(),
            "torch": global_state(run.device),
            "counts": dict(run.counts),
            "metrics": {**self.metrics, **{n: v for n, v in run.recorder.last.items() if n.startswith("layer/")}},
            "best": list(self.best) if self.best else None,
            "early": {"stale": self._stale, "best": self._watched_best},
        }

    def load(self, state: Mapping[str, Any], branch: bool = False) -> None:
        """Goes on from a saved state. A branch keeps the settings of its own recipe."""
        phase = state.get("phase", {"index": 0, "begin": 0, "epochs": 0.0, "seconds": 0.0, "acted": False})
        if phase["index"] != self.run.stage.index:
            self._take(phases.at(self.run, phase["index"], state.get("structure", [])))
        run = self.run
        assert run.stream is not None
        run.course.place(run, phase["begin"], phase["epochs"])
        self._due = run.course.due(run)
        with fitting():
            run.structure.replay(run, state.get("structure", []))
            run.model.load_state_dict(state["model"])
            for name, role in run.roles.items():
                role.load(state["roles"][name], keep_options=branch)
            run.masks.load(state.get("masks", {}))
            for technique, saved in zip(run.techniques, state["techniques"], strict=not branch):
                restore(technique, saved, run.device)
            restore(run.procedure, state["procedure"], run.device)
            if run.loss is not None and state["loss"] is not None:
                restore(run.loss, state["loss"], run.device)
            decoded = state.get("decoder", {}).get(info(run.decoder).id) if run.decoder is not None else None
            if decoded is not None:  # another decoder than the one it was saved with begins anew
                restore(run.decoder, decoded, run.device)
            for i, probe in enumerate(run.probes):  # a saved run may be looked at with others: these begin anew
                restore(probe, state.get("probes", {}).get(f"{i}.{info(probe).id}", {}), run.device)
        run.stream.load(state["stream"])
        for key, saved in state.get("further", {}).items():
            split, _, name = key.partition("/")
            run.stream_of(split, name, saved["size"]).load(saved)
        for path, tensor in state.get("live", {}).items():
            if path in run.live:
                run.live[path].tensor = tensor.to(run.device)
        run.streams.load(state["streams"])
        set_global_state(state["torch"], run.device)
        run.step, run.seconds = state["step"], state["seconds"]
        self._began, self._acted = phase["seconds"], phase["acted"] or run.procedure.trains
        self._evaluated, self._drawn, self._logged = (phase.get(name) for name in ("evaluated", "drawn", "logged"))
        self._counted = dict(phase.get("counts", {}))
        run.finished = "" if branch else phase.get("finished", "")
        if run.step > run.begin:  # layers are as they were in the last step, also for who only looks at the model
            at = run.progress
            run.tick(Progress(at.step - 1, at.steps, (at.step - 1) / run.steps_per_epoch))
        run.counts.update(state.get("counts", {}))
        self._shown = (run.step, run.seconds)
        self.metrics = dict(state["metrics"])
        self.best = (state["best"][0], state["best"][1]) if state["best"] else None
        self._stale, self._watched_best = state["early"]["stale"], state["early"]["best"]
        training = run.recipe["training"]
        self._ended_early = bool(training["early_stop"]) and self._stale >= training["patience"] and not branch

    def save(self) -> bool:
        """Writes a checkpoint, if all is still finite, and removes those that are no longer needed.

        Where the disk or the log cannot be written this says so, and training goes on; returns whether it was written.
        """
        return self.folder is not None and self._try_to_save(self._save)

    def _save(self) -> None:
        assert self.folder is not None
        run = self.run
        self._flush()
        self.sink.flush(wait=True)  # a checkpoint must never be ahead of the points before it
        self._require_finite()
        self._save_best()
        checkpoint.save(checkpoint.step_file(self.folder, run.step), self.state())
        checkpoint.prune(self.folder, run.recipe["training"]["keep"])
        self.sink.run(checkpoints=checkpoint.listing(self.folder, self.best))

    def _try_to_save(self, write: Callable[[], None]) -> bool:
        self._saved_at = time.monotonic()
        try:
            write()
        except (LogError, checkpoint.NotWritten) as error:
            if str(error) != self._unsaved:
                self._unsaved = str(error)
                self.run.note(f"No checkpoint was written: training goes on without. {error}", "warning", "checkpoint")
            return False
        if self._unsaved:
            self._unsaved = ""
            self.run.note("Checkpoints are written again.", kind="checkpoint")
        return True

    def _save_at_last(self) -> None:
        """The last checkpoint of a run: worth some patience, since what it does not hold is lost."""
        if self.folder is None:
            return
        deadline = time.monotonic() + LAST_TRY
        while True:
            try:
                self._save()
                return
            except (LogError, checkpoint.NotWritten) as error:
                if time.monotonic() > deadline:
                    raise CheckpointError(
                        f"The run came to step {self.run.step}, and its last checkpoint is missing. {error} "
                        "Resume goes on from the newest checkpoint."
                    ) from error
            self._waiting.wait(RETRY)

    def _save_best(self) -> None:
        if self._best_state is None or self.folder is None or self.best is None:
            return
        phase = {"index": self.run.stage.index}
        content = {"structure": self._best_structure, "model": self._best_state, "step": self.best[1], "phase": phase}
        checkpoint.save(self.folder / "best.pt", content)
        self._best_state = None


def _tells_of_training(name: str) -> bool:
    """Whether the last value of a series stands among the metrics, beside what an evaluation measures."""
    return name in ("train/loss", "sparsity") or name.startswith("layer/")


def _as_toml(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{path} = {tomlkit.item(value).as_string()}" for path, value in changes.items())


def _split(batch: Batch, parts: int) -> list[Batch]:
    """A batch as micro-batches of nearly equal size."""
    if parts == 1:
        return [batch]
    size = -(-len(batch) // parts)
    return [batch.cut(slice(start, start + size)) for start in range(0, len(batch), size)]


Prepare = Callable[[Trainer], None]


def train(
    document: Mapping[str, Any],
    sink: Sink | None = None,
    folder: Path | None = None,
    prepare: Prepare | None = None,
    workspace: Workspace | None = None,
) -> Outcome:
    """Trains a filled recipe in this process and leaves torch's global state as it was.

    `prepare` is called with the trainer before the first step (to load a checkpoint); `workspace` is where the runs
    are that its sources name.
    """
    device = pick_device(document["training"]["device"])
    threads = torch.get_num_threads()
    sink = sink or Memory()
    with ExitStack() as undo:
        undo.enter_context(refusals())
        undo.enter_context(forked(device))
        here = undo.enter_context(sources.around(workspace=workspace, folder=folder, told=[]))
        undo.enter_context(keeping_replies(workspace, folder))
        endpoints.require_all(document, registry.catalog())
        undo.callback(torch.set_num_threads, threads)
        torch.set_num_threads(document["training"]["threads"] or sensible_threads())
        try:
            run = assemble(document, Recorder(sink), device)
        except sources.SourceStopped:
            return _stopped_before(sink)
        if run.task.input_gradients:  # the residual is differentiated again: a fused attention cannot be
            undo.enter_context(sdpa_kernel(SDPBackend.MATH))
        trainer = Trainer(run, folder)
        sink.run(environment=environment(run) | ({"sources": here.told} if here.told else {}))
        if prepare is not None:
            prepare(trainer)
        return trainer.train()


@contextmanager
def refusals() -> Iterator[None]:
    """A ValueError that a part raises itself, by which it refuses what it meets, is shown as its sentence alone."""
    try:
        yield
    except AthanorError:
        raise
    except ValueError as error:
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        name = where.tb_frame.f_globals.get("__name__", "") if where is not None else ""
        if not name.startswith(("engine.", "own_parts.")):  # a library's: a mistake, which needs its traceback
            raise
        raise PartError(str(error)) from error


@contextmanager
def keeping_replies(workspace: Workspace | None, folder: Path | None) -> Iterator[None]:
    """What language models answer is kept: in the workspace, else in the run's folder, else while it trains."""
    here = endpoints.surroundings()
    if here.replies.path is not None:  # a source is trained within another run
        yield
        return
    path = workspace.replies if workspace is not None else folder / "replies.db" if folder is not None else None
    replies = Replies(path, here.runs[0] if here.runs else "")
    try:
        with endpoints.around(replies=replies):
            yield
    finally:
        replies.close()


def _stopped_before(sink: Sink) -> Outcome:
    """The end of a run that was stopped while a source of it was trained."""
    message = "Stopped before its first step, while a source was trained. What that one has learned is kept."
    sink.answered("stop")
    sink.run(state="stopped", message=message, ended=time.time())
    sink.event(message, kind="stopped")
    sink.flush(wait=True)
    return Outcome("stopped", 0, 0.0, message=message)


def sensible_threads() -> int:
    """All cores but one, which the window and the log need: a pool that waits for a busy core stalls every layer."""
    return torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else max((os.cpu_count() or 2) - 1, 1)


def environment(run: Run) -> dict[str, Any]:
    """What a result depends on beside the recipe."""
    device = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "cpu"
    return {
        "torch": torch.__version__,
        "device": device,
        "threads": torch.get_num_threads(),
        "parameters": parameter_count(run.model),
        "train_samples": run.samples,
        "steps_per_epoch": run.steps_per_epoch,
    }
