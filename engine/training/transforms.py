"""What transforms make of a trained model: applied to copies, measured the same way for all, saved as files."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.parts import Batch, Transform, Transformed, give_side, info, with_side
from engine.training import checkpoint
from engine.training.data import some
from engine.training.measure import byte_count, parameter_count
from engine.training.random import derive_seed, forked
from engine.training.run import Run

SPLITS = ("val", "test")
WARM_UP = 3
TIMED_SECONDS = 0.15  # for one batch size
TIMED_PASSES = (5, 200)


def copy_of(model: nn.Module) -> nn.Module:
    """A model's twin, which shares nothing with it. What layers keep of a forward pass comes without its graph."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
            elif isinstance(value, torch.Generator):
                memo[id(value)] = value.clone_state()
    return copy.deepcopy(model, memo)


class Chain:
    """Transforms that follow each other, from the model of a run on, which stays as it is."""

    def __init__(self, run: Run, folder: Path | None = None):
        self.run = run
        self.folder = folder
        self.model = copy_of(run.model).eval()
        self._names: dict[str, int] = {}

    def apply(self, part: Transform, number: int) -> dict[str, float]:
        """One transform: what was measured, as metrics. Raises ValueError where the model cannot be transformed."""
        run = self.run
        id = info(part).id
        self._names[id] = self._names.get(id, 0) + 1
        name = id if self._names[id] == 1 else f"{id}-{self._names[id]}"
        with forked(run.device, derive_seed(run.seed, f"transform/{name}")):
            made = part.apply(copy_of(self.model).eval(), sample_of(run, part.samples))
            found = dict(made.facts)
            found["bytes_before"], found["bytes_after"] = byte_count(self.model), _bytes_of(made)
            if made.model is not None:
                found |= self._compare(made.model.eval())
        for title, figure in made.figures.items():
            run.recorder.sink.figure(id, title, figure, run.step)
        if self.folder is not None:
            write(self.folder, number, id, made, run.step)
        run.note(sentence(name, found), kind="transform")
        if made.model is not None:
            self.model = made.model
        metrics = {f"transform/{name}/{key}": value for key, value in found.items()}
        for series, value in metrics.items():
            run.log(series, value)
        return metrics

    def _compare(self, after: nn.Module) -> dict[str, float]:
        run, before = self.run, self.model
        split = next((s for s in (*SPLITS, "train") if run.columns_of(s).size), "")
        batches = [run.procedure.given(run, batch) for batch in run.batches(split)] if split else []
        batches = batches or [sample_of(run, run.evaluation_batch)]
        found: dict[str, float] = {}
        found["error"], scale = difference(before, after, batches)
        found["error_relative"] = found["error"] / scale if scale else found["error"]
        found["parameters_before"], found["parameters_after"] = parameter_count(before), parameter_count(after)
        for each in SPLITS:
            for when, model in (("before", before), ("after", after)):
                with run.serving(model):
                    measured = run.evaluate(each)
                found |= {f"{each}/{name}_{when}": value for name, value in measured.items()}
        batch = batches[0]
        one = batch if run.task.stream in ("whole", "none") else batch.cut(slice(0, 1))
        for size, inputs in (("one", one), ("batch", batch)):
            slow, fast = seconds(before, after, inputs)
            found[f"seconds_{size}_before"], found[f"seconds_{size}_after"] = slow, fast
            found[f"speedup_{size}"] = slow / fast
        return found


def sample_of(run: Run, rows: int) -> Batch:
    """Some training samples as the model is given them, the same for each transform of a run."""
    rng = torch.Generator().manual_seed(derive_seed(run.seed, "transform sample"))
    return run.procedure.given(run, some(run.task, run.columns_of("train"), rows, rng))


@torch.no_grad()
def difference(before: nn.Module, after: nn.Module, batches: list[Batch]) -> tuple[float, float]:
    """The largest difference between two models' outputs, and the largest output of the first."""
    worst: list[Tensor] = []
    sides = with_side(before), with_side(after)
    for batch in batches:
        outputs = []
        for model, side in zip((before, after), sides, strict=True):
            give_side(side, batch)
            outputs.append(leaves(batch.call(model)))
        if [t.shape for t in outputs[0]] != [t.shape for t in outputs[1]]:
            raise ValueError("What came out of it answers in another shape than the model.")
        for one, other in zip(*outputs, strict=True):
            worst.append(torch.stack([(one.double() - other.double()).abs().max(), one.double().abs().max()]))
    error, scale = torch.stack(worst).amax(0).tolist()
    return error, scale


def leaves(output: Any) -> list[Tensor]:
    """The tensors of an output, whatever holds them."""
    if isinstance(output, Tensor):
        return [output]
    inside = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return [leaf for each in inside for leaf in leaves(each)]


@torch.no_grad()
def seconds(before: nn.Module, after: nn.Module, batch: Batch) -> tuple[float, float]:
    """The median time of a warm forward pass of each; they take turns, so that a busy machine slows both."""
    passes = [_passing(model, batch) for model in (before, after)]
    for _ in range(WARM_UP):
        for once in passes:
            once()
    taken: tuple[list[float], list[float]] = ([], [])
    least, most = TIMED_PASSES
    while len(taken[0]) < least or (len(taken[0]) < most and sum(map(sum, taken)) < TIMED_SECONDS):
        for once, times in zip(passes, taken, strict=True):
            start = time.perf_counter()
            once()
            times.append(time.perf_counter() - start)
    return statistics.median(taken[0]), statistics.median(taken[1])


def _passing(model: nn.Module, batch: Batch) -> Callable[[], None]:
    give_side(with_side(model), batch)
    on_gpu = batch.x.device.type == "cuda"

    def once() -> None:
        batch.call(model)
        if on_gpu:
            torch.cuda.synchronize(batch.x.device)

    return once


# -- what is kept ------------------------------------------------------------------------------------------------------


def write(folder: Path, number: int, id: str, made: Transformed, step: int) -> None:
    """The transformed weights and files, in the run's folder."""
    if made.model is not None:
        content = {"transform": id, "step": step, "model": made.model.state_dict()}
        checkpoint.save(folder / f"transform-{number}-{id}.pt", content)
    for name, data in made.files.items():
        (folder / f"transform-{number}-{id}-{Path(name).name}").write_bytes(data)


def next_number(folder: Path) -> int:
    """The number of the transform that comes, after those that are in a folder."""
    found = [path.name.split("-")[1] for path in folder.glob("transform-*-*")]
    return max((int(number) for number in found if number.isdigit()), default=0) + 1


def _bytes_of(made: Transformed) -> int:
    return sum(map(len, made.files.values())) if made.files else byte_count(made.model) if made.model else 0


def sentence(name: str, found: Mapping[str, float]) -> str:
    """What happened, for a person."""
    said = [f"{name}: {found['bytes_before']:,} -> {found['bytes_after']:,} bytes"]
    if "error" in found:
        said.append(f"{found['parameters_before']:,} -> {found['parameters_after']:,} parameters")
        said.append(f"outputs differ by {found['error']:.2g} at most")
        said.append(f"{found['speedup_one']:.2f} times the speed at batch 1")
    return "; ".join(said) + "."
