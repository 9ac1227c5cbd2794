"""Score matching by guessing the clean sample, and the way from noise to samples that a guess opens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from engine import figures
from engine.fields import Count, Positive, Whole
from engine.kit.diffusion import Process
from engine.kit.generation import noise, rng_for
from engine.parts import (
    Batch,
    Decoder,
    Finding,
    Offer,
    Probe,
    Procedure,
    Task,
    Terms,
    decoder,
    probe,
    procedure,
)

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

ID = "score-matching-x0"
HOLDOUT_DRAWS = 8  # noise draws of each held-out sample
TIME = "t"  # the input that tells a denoiser how noisy the other one is

EXAMPLE = {
    "task": {"use": "distribution", "samples": 24, "held_out": 48, "judged": 8},
    "procedure": {"use": ID, "sample_steps": 3, "check_every": 2},
    "model": {"use": "two-layer-relu", "width": 8},
    "optimizer": {"use": "sgd", "lr": 0.1, "momentum": 0.0},
    "training": {"batch_size": 12},
}


def squared_error(guess: Tensor, clean: Tensor) -> Tensor:
    """Of each sample, summed over its numbers [B]."""
    return (guess - clean).square().flatten(1).sum(1)


def posterior_mean(process: Process, centres: Tensor, deviation: float, x: Tensor, t: Tensor) -> Tensor:
    """E[X_0 | X_t = x] exactly, for an even mixture of Gaussians of one deviation around the centres [M, d].

    At time t each of them is N(a centre, a^2 deviation^2 + h); given x it is that one with some probability, and then
    X_0 is the centre, pulled towards what x says.
    """
    a, h = process.kept(t)[:, None], process.spread(t)[:, None]
    spread = a.square() * deviation**2 + h
    apart = x[:, None, :] - a[..., None] * centres
    which = (-apart.square().sum(-1) / (2 * spread)).softmax(-1)
    pulled = centres + (a * deviation**2 / spread)[..., None] * apart
    return (which[..., None] * pulled).sum(1)


@procedure(
    id=ID,
    name="Denoising score matching (x0 regression)",
    paper="Neural Network-Based Score Estimation in Diffusion Models: Optimization and Generalization",
    arxiv="2401.15604",
    precision="fp32",
    recommends={
        "model": {"use": "two-layer-relu", "width": 2048},
        "optimizer": {"use": "sgd", "lr": 0.3, "momentum": 0.0},
        "budget": {"steps": 3000},
    },
    example=EXAMPLE,
)
class ScoreMatchingX0(Procedure):
    """Trains a model to guess the clean sample from a noisy one and the time, which says how noisy it is. The guess is
    the score of the noisy distribution in another form; with it, noise can be turned back into samples step by step.

        X_t = a X_0 + sqrt(h) Z,   a = exp(-1/2 int_0^t g),   h = 1 - a^2,   g(t) = low + (high - low) t
        loss = |f(X_t, t) - X_0|^2                        (unit)
               a^2 / h^2 |f(X_t, t) - X_0|^2              (score: the squared error of s = (a f - x) / h)
        samples: dY = (g/2 Y + g s) dt + sqrt(g) dB, backwards from N(0, 1) at t = last_time to t = first_time, then f

    The model takes (x, t - first_time) as one vector and answers with a sample.

    Helps: generating; a regression is as steady to train as any. Stopping early is what keeps it from learning the
        noise where there are few samples, each with one draw of noise.
    Hurts: speed of sampling: a pass through the model for each step. With weight `score` and a first_time near 0 the
        loss is all about the least noisy samples, and says little of the others.
    Cost: one pass forward and one back a step; sampling takes sample_steps + 1 passes.
    Choices: times are drawn evenly. "fixed" draws one time and noise for each training sample, once, as the theory has
        it; "fresh" draws both at every step, as practice does. The holdout is the validation split, each sample with 8
        draws of time and noise of its own that never change; its error counts all times alike, whatever the loss.
        Guesses are kept to the data's range when it answers, not while it learns. Outside of `radius` they are 0.

    Args:
        weight: What a squared error of the guess counts: the same at all times, or as an error of the score.
        noise: One draw for each sample, or new ones at every step.
        first_time: The least noisy time (T0).
        last_time: The noisiest time (T), where hardly anything is left of the sample.
        rates: The rate g at time 0 and at time 1; it grows evenly.
        early_stop: Whether the weights with the least error on the holdout are kept, and the run ends when it grows.
        check_every: Steps between looks at the holdout.
        patience: Looks without a better one after which the run ends; 0 never ends it.
        clip_x0: Whether guesses are kept to the data's range when it answers.
        radius: Length of a noisy sample beyond which the guess is 0; nothing sets no limit.
        sample_steps: Steps from noise to a sample, where no decoder is named.

    Raises:
        ValueError: For a first time that is not before the last.
    """

    brings_objective = True
    outputs = ("samples",)
    offers = ("gradients", "output", "terms", "features", "denoised")
    keeps_parameters = True  # the best weights until now

    def __init__(
        self,
        weight: Literal["unit", "score"] = "unit",
        noise: Literal["fixed", "fresh"] = "fixed",
        first_time: Positive = 0.01,
        last_time: Positive = 1.0,
        rates: tuple[Positive, Positive] = (0.1, 20.0),
        early_stop: bool = True,
        check_every: Count = 10,
        patience: Whole = 30,
        clip_x0: bool = True,
        radius: Positive | None = None,
        sample_steps: Count = 200,
    ):
        if first_time >= last_time:
            raise ValueError(f"first_time = {first_time:g} must be before last_time = {last_time:g}.")
        self.weight, self.noise, self.first_time, self.last_time = weight, noise, first_time, last_time
        self.rates, self.early_stop, self.check_every, self.patience = rates, early_stop, check_every, patience
        self.clip_x0, self.radius, self.sample_steps = clip_x0, radius, sample_steps
        self.best: dict[str, Tensor] = {}
        self.least = float("inf")
        self.best_step = 0
        self.stale = 0
        self.looked = -1

    @property
    def process(self) -> Process:
        return Process(*self.rates, self.first_time, self.last_time)

    def offer(self, task: Task) -> Offer:
        return Offer("vector", (task.offer.features + 1,), "values", task.offer.features)

    def setup(self, run: Run) -> None:
        self._times = self._noise = None
        if self.noise == "fixed":
            shape = run.columns("train")["x"].shape
            self._times, self._noise = self.draw(shape, run.rng(f"{ID}/fixed"))
        if self.early_stop:
            clean = run.columns("val")["x"].repeat_interleave(HOLDOUT_DRAWS, 0)
            t, draw = self.draw(clean.shape, run.rng(f"{ID}/holdout"))
            self._holdout = clean, t, self.process.noised(clean, t, draw)

    def draw(self, shape: tuple[int, ...], rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """A time and noise for each sample."""
        t = self.process.times((shape[0],), rng)
        return t, noise(shape, rng)

    # -- the step --------------------------------------------------------------------------------------------------

    def step(self, run: Run, batch: Batch) -> Any:
        if self.early_stop and run.step % self.check_every == 0 and run.step != self.looked:
            self._look(run)  # once, also where a step is split
            if self.patience and self.stale >= self.patience:
                looks, step = self.stale, self.best_step
                run.finish(f"The error on the holdout has not fallen for {looks} looks; it was least at step {step}.")
        run.batch = seen = self._noised(batch, run.rng(ID))
        answer = run.forward(seen)
        run.update("main", run.terms(answer, seen))
        return answer

    def given(self, run: Run, batch: Batch) -> Batch:
        """A batch of samples as the model sees them: noisy, with their times; in `target` they are clean."""
        return batch if TIME in batch.meta else self._noised(batch, rng_for(batch, run.seed))

    def _noised(self, batch: Batch, rng: torch.Generator) -> Batch:
        """With the noise that belongs to a training sample where it is fixed, else with what the generator draws."""
        if self._times is None or self._noise is None or batch.split != "train":
            t, draw = self.draw(batch.x.shape, rng)
        else:
            t, draw = self._times[batch.index], self._noise[batch.index]
        return self.seen(self.process.noised(batch.x, t, draw), t, batch)

    def objective(self, run: Run, output: Any, batch: Batch) -> Terms:
        noisy = batch.x[:, :-1].reshape(batch.target.shape)
        return {"task": self.loss(self.shaped(output, noisy), batch.target, batch.meta[TIME])}

    def loss(self, guess: Tensor, clean: Tensor, t: Tensor) -> Tensor:
        """Of each sample [B]."""
        error = squared_error(guess, clean)
        return error if self.weight == "unit" else self.process.weight(t) * error

    def seen(self, x: Tensor, t: Tensor, batch: Batch) -> Batch:
        """What the model sees: the noisy sample and its time, as one vector."""
        both = torch.cat([x.flatten(1), (t - self.first_time).unsqueeze(1)], 1)
        clean = batch.x if batch.inputs else None
        return Batch({"x": both}, clean, batch.index, batch.split, batch.weight, None, {**batch.meta, TIME: t})

    def shaped(self, guess: Tensor, x: Tensor) -> Tensor:
        """The model's numbers as samples, and 0 for those that are too far out."""
        guess = guess.reshape(x.shape)
        if self.radius is None:
            return guess
        far = torch.linalg.vector_norm(x.flatten(1), dim=1) > self.radius
        return guess.masked_fill(far.view(-1, *[1] * (x.dim() - 1)), 0.0)

    # -- stopping --------------------------------------------------------------------------------------------------

    def _look(self, run: Run) -> None:
        """Measures the holdout, and keeps the weights where they are the best until now."""
        self.looked = run.step
        clean, t, noisy = self._holdout
        blank = Batch({}, None, torch.arange(len(clean), device=clean.device))
        with run.evaluating(), torch.no_grad():
            guess = self.shaped(run.forward(self.seen(noisy, t, blank)), noisy)
            error = float(squared_error(guess, clean).mean())
        run.log("holdout/error", error)
        if error < self.least:
            self.least, self.best_step, self.stale = error, run.step, 0
            self.best = {name: tensor.detach().clone() for name, tensor in run.model.state_dict().items()}
        else:
            self.stale += 1

    def on_end(self, run: Run) -> None:
        """Puts the best weights back, before they are measured."""
        if self.early_stop:
            self._look(run)
            run.model.load_state_dict(self.best)

    # -- answers ---------------------------------------------------------------------------------------------------

    def predict(self, run: Run, batch: Batch) -> Tensor:
        """The guess, where a batch holds noisy samples and times; else as many samples as it has rows."""
        if TIME in batch.inputs:
            return self.denoised(run, batch.x, batch.inputs[TIME], batch)
        rng = rng_for(batch, run.seed)
        start = noise((len(batch), *run.task.offer.shape), rng)
        return self.process.back(lambda x, t: self.denoised(run, x, t, batch), start, self.sample_steps, rng)

    def denoised(self, run: Run, x: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """What it takes noisy samples for."""
        guess = self.shaped(self.seen(x, t, batch).call(run.model), x)
        span = run.task.offer.span
        return guess.clamp(*span) if self.clip_x0 and span else guess

    def result(self, run: Run) -> dict[str, float]:
        return {"holdout-error": self.least, "best-step": float(self.best_step)} if self.best else {}

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if settings["noise"] == "fixed" and task.stream == "drawn":
            return 'It draws noise once for each stored sample, and the task draws them anew; write noise = "fresh".'
        if settings["early_stop"] and not task.size("val"):
            return "It stops by the error on the validation split, which the task has not; write early_stop = false."
        return None


@decoder(
    id="reverse-sde",
    name="Reverse SDE",
    paper="Neural Network-Based Score Estimation in Diffusion Models: Optimization and Generalization",
    arxiv="2401.15604",
    example={**EXAMPLE, "decoder": {"use": "reverse-sde", "steps": 4}},
)
class ReverseSDE(Decoder):
    """Turns noise into samples with a trained denoiser, by running the process that made noise of data backwards.

        dY = (g/2 Y + g s(Y, t)) dt + sqrt(g) dB     (or, without noise, dY = (g/2 Y + g/2 s(Y, t)) dt)
        s(x, t) = (a f(x, t) - x) / h,   Y ~ N(0, 1) at the noisiest time;   the answer is f at the least noisy one

    Helps: trying other numbers of steps, and the flow without noise, on a saved run.
    Hurts: nothing but time; with few steps the samples are spread too wide.
    Cost: a pass through the model for each step, and one more.
    Choices: Euler's steps. A `power` of 1 makes them equally long; above 1 they are shorter towards the data, where the
        score changes fastest.

    Args:
        steps: Steps from noise to a sample.
        noisy: Whether noise is added on the way; without it the same start gives the same sample.
        power: How the steps shorten towards the data.
    """

    reads = ("denoised",)
    outputs = ("samples",)

    def __init__(self, steps: Count = 200, noisy: bool = True, power: Annotated[float, Field(ge=1, le=10)] = 1.0):
        self.steps, self.noisy, self.power = steps, noisy, power

    @property
    def cost(self) -> float:
        return self.steps + 1.0

    def predict(self, run: Run, batch: Batch, rng: torch.Generator) -> Tensor:
        def denoise(x: Tensor, t: Tensor) -> Tensor:
            guess: Tensor = run.answer(Batch({"x": x, TIME: t}, None, batch.index, batch.split))
            return guess

        process: Process = run.procedure.process  # type: ignore[attr-defined]
        start = noise((len(batch), *run.task.offer.shape), rng)
        return process.back(denoise, start, self.steps, rng, self.noisy, self.power)


@probe(
    id="denoising-error",
    name="Denoising error",
    paper="Neural Network-Based Score Estimation in Diffusion Models: Optimization and Generalization",
    arxiv="2401.15604",
    example={**EXAMPLE, "probes": [{"use": "denoising-error", "samples": 32}]},
)
class DenoisingError(Probe):
    """Measures how well a denoiser guesses held-out samples, over all times and at each; where the data are a mixture
    of Gaussians, how far the guesses are from the best ones there are.

        error = mean |f(X_t, t) - X_0|^2,    truth = mean |f(X_t, t) - E[X_0 | X_t]|^2

    Helps: seeing overfitting in a generator: the error falls on and on in training, and rises here.
    Hurts: the error has a floor that no denoiser gets below, since X_0 cannot be known from X_t.
    Cost: a pass of the samples through the model.
    Choices: the test split, its samples repeated as often as it takes, each with a time and noise of its own that are
        the same at every evaluation.

    Args:
        samples: Noisy samples to guess.
        bins: Stretches of time to tell the error for, in the figure.
    """

    when = "evaluation"
    reads = ("denoised",)

    def __init__(self, samples: Count = 4000, bins: Count = 20):
        self.samples, self.bins = samples, bins

    def look(self, run: Run) -> Finding:
        procedure: Any = run.procedure
        process: Process = procedure.process
        rng = torch.Generator(run.device).manual_seed(run.seed)
        rows = run.columns("test")["x"]
        clean = rows[torch.arange(self.samples, device=run.device) % len(rows)]
        t, draw = procedure.draw(clean.shape, rng)
        noisy = process.noised(clean, t, draw)
        with run.evaluating(), torch.no_grad():
            guess = procedure.denoised(run, noisy, t, Batch({}, None, torch.arange(len(clean), device=run.device)))
        errors = {"error": squared_error(guess, clean)}
        mixture = getattr(run.task, "mixture", lambda: None)()
        if mixture is not None:
            best = posterior_mean(process, mixture[0].to(clean), mixture[1], noisy, t)
            errors["truth"] = squared_error(guess, best)
        scalars = {name: float(each.mean()) for name, each in errors.items()}
        return Finding(scalars, {"by-time": self._figure(process, t, errors)})

    def _figure(self, process: Process, t: Tensor, errors: dict[str, Tensor]) -> dict[str, Any]:
        """The mean error in each stretch of time."""
        edges = torch.linspace(process.first, process.last, self.bins + 1, device=t.device)
        place = torch.bucketize(t, edges[1:-1])
        count = torch.bincount(place, minlength=self.bins)
        middles = (edges[1:] + edges[:-1]) / 2
        names = {"error": "from the sample", "truth": "from the best guess"}
        series = [
            figures.line(names[name], middles, torch.bincount(place, each, self.bins) / count)
            for name, each in errors.items()
        ]
        return figures.curve("Squared error of the guess", *series, x="time", y=figures.axis("error", log=True))
