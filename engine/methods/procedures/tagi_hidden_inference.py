"""TAGI: a network learns by Gaussian inference, without a gradient; and what its inputs must have been."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine import figures
from engine.fields import Count, NonNegative, OverTime, Positive, Whole
from engine.kit.gaussian import (
    Gaussian,
    Step,
    backward,
    cap_of,
    chain_of,
    derivative,
    forward,
    give_variances,
    infer_input,
    learn,
    observed,
)
from engine.kit.generation import rng_for
from engine.parts import Batch, Finding, Offer, Probe, Procedure, Task, Value, probe, procedure

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

ID = "tagi-hidden-inference"
PAPER = "Analytically Tractable Hidden-States Inference in Bayesian Neural Networks"
ARXIV = "2107.03759"
NINETY = 1.6449  # deviations to either side that hold 90 % of a Gaussian


def codes(target: Tensor, offer: Offer) -> Tensor:
    """What an answer is observed to be: the numbers; of a class 1 at its place and -1 at the others."""
    if offer.output == "classes":
        return 2 * F.one_hot(target, offer.size).float() - 1
    return target.reshape(len(target), offer.size)


def surprise(answer: Gaussian, y: Tensor, noise: float | Tensor) -> Tensor:
    """-log of the density that each sample's answer had been given, summed over its numbers [B]."""
    var = answer.var + noise
    return 0.5 * ((y - answer.mean).square() / var + var.log() + math.log(2 * math.pi)).sum(1)


def exact(x: Tensor) -> Gaussian:
    """Inputs that are known."""
    x = x.flatten(1)
    return Gaussian(x, torch.zeros_like(x))


@procedure(
    id=ID,
    name="TAGI",
    paper=PAPER,
    arxiv=ARXIV,
    precision="fp32",
    recommends={
        "model": {"use": "mlp", "hidden": [100]},
        "training": {"batch_size": 16},
        "budget": {"epochs": 20},
    },
    example={"task": {"use": "digits", "train_limit": 48}, "model": {"use": "mlp", "hidden": [8]}},
)
class TAGI(Procedure):
    """Learns by Bayes' rule instead of by descent: every weight is a Gaussian with a mean and a variance, and each
    batch of answers moves both in closed form. There is no loss, no gradient and no learning rate.

        forward:   m_z = m_W m_a + m_b,   v_z = sum m_W^2 v_a + v_W m_a^2 + v_W v_a + v_b;   a = f(z) as a line at m_z
        observed:  d_m = (y - m_z) / (v_z + sigma_v^2),   d_v = -1 / (v_z + sigma_v^2)
        backward:  whatever has the covariance c with a unit moves by c d_m, its variance by c^2 d_v;
                   W: c = m_a v_W,   b: c = v_b,   the layer below: c = f'(m_z) m_W v_z;   summed over the batch
        cap:       no mean and no variance moves by more than sqrt(v) / cap in a step

    Helps: data that are seen once, or come one by one; where it matters how sure an answer is; nothing to tune but
        sigma_v.
    Hurts: all covariances are dropped, so that how sure it is of itself is only roughly right. Over many passes a tuned
        optimizer does as well or better. Only plain chains of layers are known here. On large batches it learns less
        from each sample.
    Cost: a pass forward and one back with twice the arithmetic of backpropagation; twice the memory of the weights.
    Choices: the parameters of the recipe's model are the means, buffers beside them the variances. Means start from
        N(0, 1 / fan_in), variances at gain^2 / fan_in, weights and biases alike. A class is answered by 1 at its place
        and -1 elsewhere, and the largest mean is the answer. The cap is 0.1 for single samples, 2 below 256 of them and
        3 from there on; a variance that is used up is set to 1e-5. Without the cap both are left alone, and variances
        may become negative: on digits batches of 16 do not mind, and those of 64 diverge. A sample's weight multiplies
        what it teaches. The logged loss is -log of the density that the answers were given before they were learned
        from.

    Args:
        sigma_v: Deviation of the noise on what is observed.
        prior_gain: What the deviations of the prior are multiplied with.
        capped: Whether a step's changes are bounded.
        cap_factor: Another bound than the one for the batch's size: sqrt(variance) over this.
    """

    uses = ("model",)
    outputs = ("classes", "values")
    inputs = ("vector", "image")
    brings_objective = True
    offers = ("moments",)
    makes = ()
    divisible = False  # a batch is learned from at once, with the beliefs from before it

    def __init__(
        self,
        sigma_v: OverTime = 0.3,
        prior_gain: Positive = 0.5,
        capped: bool = True,
        cap_factor: Positive | None = None,
    ):
        self.sigma_v = Value.of(sigma_v)
        if self.sigma_v.value <= 0:
            raise ValueError(f"sigma_v = {self.sigma_v.value:g} must be above 0: nothing is observed without noise.")
        self.prior_gain, self.capped, self.cap_factor = prior_gain, capped, cap_factor
        self._chain: list[Step] = []

    def prepare_model(self, run: Run, model: nn.Module) -> nn.Module:
        give_variances(model, self.prior_gain)
        return model

    def setup(self, run: Run) -> None:
        self._chain = chain_of(run.model)
        run.add_role("main", run.model, optimizer=False)

    @torch.no_grad()
    def step(self, run: Run, batch: Batch) -> Tensor:
        noise = self.sigma_v.at(run.progress) ** 2
        seen = forward(self._chain, exact(batch.x))
        y = codes(batch.target, run.offer)
        delta = observed(seen.answer, y, noise)
        if batch.weight is not None:
            delta = Gaussian(*(batch.weight.unsqueeze(1) * each for each in delta))
        deltas, _ = backward(self._chain, seen, delta)
        cap = (self.cap_factor or cap_of(len(batch))) if self.capped else None
        learn(self._chain, deltas, cap)
        run.tell(surprise(seen.answer, y, noise).mean())
        return seen.answer.mean

    def predict(self, run: Run, batch: Batch) -> Tensor:
        """The means of the answers."""
        return self.moments(run, batch).mean

    def moments(self, run: Run, batch: Batch) -> Gaussian:
        """Means and variances of the answers [B, size], without the noise of what is observed."""
        return forward(chain_of(run.model), exact(batch.x)).answer

    def noise(self, run: Run) -> float:
        """The variance of what is observed around an answer, at this moment."""
        return self.sigma_v.at(run.progress) ** 2

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        try:
            chain_of(anatomy.module)
        except ValueError as error:
            return f"It infers the weights of plain chains of layers: {str(error).rstrip('.')}."
        return None


@probe(
    id="predictive-variance",
    name="Predictive variance",
    paper=PAPER,
    arxiv=ARXIV,
    example={
        "task": {"use": "digits", "train_limit": 48},
        "model": {"use": "mlp", "hidden": [8]},
        "procedure": {"use": ID},
        "probes": [{"use": "predictive-variance"}],
    },
)
class PredictiveVariance(Probe):
    """Looks at how sure a Bayesian model's answers are, and whether it may be: whether the truth lies as often within
    its intervals as they say, and whether it is less sure where it errs.

        sd = mean sqrt(v),   coverage = share of targets within m -+ 1.645 sqrt(v + noise)      (it should be 0.9)
        log_density = mean log N(y; m, v + noise)
        of classes: sd of the winning answer, where it is right and where it is wrong

    Helps: choosing the noise and the prior; seeing where the data end, for one input in a curve with its band.
    Hurts: coverage over few samples is a rough number.
    Cost: a pass over the test split.
    Choices: for one input the curve goes half the data's range beyond them at both ends, and sd is told inside and
        outside of the training data.

    Args:
        points: Places of the curve.
    """

    reads = ("moments",)

    def __init__(self, points: Count = 200):
        self.points = points

    def look(self, run: Run) -> Finding:
        procedure: Any = run.procedure
        noise = procedure.noise(run)
        with run.evaluating(), torch.no_grad():
            batches = list(run.batches("test"))
            answers = [procedure.moments(run, batch) for batch in batches]
            answer = Gaussian(torch.cat([a.mean for a in answers]), torch.cat([a.var for a in answers]))
            target = torch.cat([batch.target for batch in batches])
            y = codes(target, run.offer)
            found = {
                "sd": float(answer.var.sqrt().mean()),
                "log_density": -float(surprise(answer, y, noise).mean()),
                "coverage": float(((y - answer.mean).abs() <= NINETY * (answer.var + noise).sqrt()).float().mean()),
            }
            if run.offer.output == "classes":
                more, figure = self._of_classes(answer, target)
                return Finding(found | more, {"sureness": figure})
            if run.offer.features == 1:
                more, figure = self._of_one_input(run, noise)
                return Finding(found | more, {"band": figure})
        series = figures.counts("test samples", answer.var.sqrt().flatten())
        return Finding(found, {"deviations": figures.histogram("Deviation of the answers", series, x="deviation")})

    @staticmethod
    def _of_classes(answer: Gaussian, target: Tensor) -> tuple[dict[str, float], dict[str, Any]]:
        best = answer.mean.argmax(1, keepdim=True)
        sd = answer.var.gather(1, best)[:, 0].sqrt()
        right = best[:, 0] == target
        groups = {name: sd[rows] for name, rows in (("right", right), ("wrong", ~right)) if bool(rows.any())}
        edges = torch.linspace(float(sd.min()), float(sd.max()) + 1e-6, 31)
        series = [figures.counts(name, values, edges) for name, values in groups.items()]
        drawn = figures.histogram("How sure it is of its answers", *series, x="deviation of the winning answer")
        return {f"sd_{name}": float(values.mean()) for name, values in groups.items()}, drawn

    def _of_one_input(self, run: Run, noise: float) -> tuple[dict[str, float], dict[str, Any]]:
        sample = run.training_sample(1000)
        data = sample.x.flatten()
        low, high = float(data.min()), float(data.max())
        reach = (high - low) / 2
        x = torch.linspace(low - reach, high + reach, self.points, device=run.device).unsqueeze(1)
        blank = Batch({"x": x}, None, torch.arange(len(x), device=run.device))
        answer = run.procedure.moments(run, blank)  # type: ignore[attr-defined]
        mean, sd = answer.mean[:, 0], (answer.var[:, 0] + noise).sqrt()
        inside = (x[:, 0] >= low) & (x[:, 0] <= high)
        own = answer.var[:, 0].sqrt()
        series = [
            figures.line("mean and 90 %", x[:, 0], mean, mean - NINETY * sd, mean + NINETY * sd),
            figures.line("target", *_sorted(data, sample.target.flatten())),
        ]
        drawn = figures.curve("Answers and how sure they are", *series, x="input", y="answer")
        return {"sd_inside": float(own[inside].mean()), "sd_outside": float(own[~inside].mean())}, drawn


def _sorted(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    order = x.argsort()
    return x[order], y[order]


@probe(
    id="imposed-label",
    name="Imposed label",
    paper=PAPER,
    arxiv=ARXIV,
    example={
        "task": {"use": "digits", "train_limit": 48},
        "model": {"use": "mlp", "hidden": [8]},
        "procedure": {"use": ID},
        "probes": [{"use": "imposed-label", "samples": 12, "iterations": 3}],
    },
)
class ImposedLabel(Probe):
    """Infers what an input would have had to be for the network to have seen another class in it. The weights stay as
    they are; the input is a Gaussian around the true one, and the wrong label is imposed as if it had been observed.

        x ~ N(x, input_var);   observe y = the code of (class + shift), with noise sigma^2;   x <- its posterior mean
        again and again, each time with input_var as the variance

    Helps: seeing how little separates two classes; adversarial examples without a gradient.
    Hurts: where inputs have a range that must be kept: it knows none.
    Cost: a pass forward and back for each iteration.
    Choices: told are the share of the samples that now count as the imposed class ("turned"), the share that are no
        longer what they were ("changed"), and the length of the change. With a random direction the same length is gone
        in one that knows nothing: a control.

    Args:
        shift: By how many classes the imposed label is off.
        input_var: Variance of each input around what is known of it.
        sigma: Deviation of the noise on the imposed label.
        iterations: How often the input is inferred.
        samples: Test samples that are changed.
        direction: Whether the inputs become what was inferred, or go as far in a random direction.
    """

    reads = ("moments",)

    def __init__(
        self,
        shift: Count = 1,
        input_var: Positive = 0.01,
        sigma: Positive = 0.3,
        iterations: Count = 50,
        samples: Count = 360,
        direction: Literal["inferred", "random"] = "inferred",
    ):
        self.shift, self.input_var, self.sigma = shift, input_var, sigma
        self.iterations, self.samples, self.direction = iterations, samples, direction

    def look(self, run: Run) -> Finding:
        batch = next(run.batches("test", self.samples, self.samples))
        wrong = (batch.target + self.shift) % run.offer.size
        chain, start = chain_of(run.model), batch.x.flatten(1)
        with run.evaluating(), torch.no_grad():
            x = impose(chain, start, codes(wrong, run.offer), self.input_var, self.sigma, self.iterations)
            length = torch.linalg.vector_norm(x - start, dim=1, keepdim=True)
            if self.direction == "random":
                aside = torch.randn(x.shape, generator=rng_for(batch, run.seed), device=run.device)
                x = start + aside * length / torch.linalg.vector_norm(aside, dim=1, keepdim=True)
            before, after = (forward(chain, exact(each)).answer.mean.argmax(1) for each in (start, x))
        scalars = {
            "turned": float((after == wrong).float().mean()),
            "changed": float((after != before).float().mean()),
            "length": float(length.mean()),
        }
        return Finding(scalars, self._figures(run, start, x, before, after))

    @staticmethod
    def _figures(run: Run, start: Tensor, x: Tensor, before: Tensor, after: Tensor) -> dict[str, Any]:
        if run.offer.input != "image":
            return {}
        shape = run.offer.shape
        pairs = torch.stack([start[:12], x[:12]], 1).reshape(-1, *shape)[:, 0]
        captions = [str(c) for c in torch.stack([before[:12], after[:12]], 1).flatten().tolist()]
        return {"changed": figures.image_grid("As it was, and as it must have been", pairs, captions)}

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if task.offer.output != "classes":
            return f"It imposes a class, and the task offers {task.offer.output}."
        return None


def impose(chain: list[Step], x: Tensor, y: Tensor, input_var: float, sigma: float, iterations: int) -> Tensor:
    """The inputs that make the answers y likely, inferred again and again with the same variance around the last."""
    for _ in range(iterations):
        x = infer_input(chain, Gaussian(x, torch.full_like(x, input_var)), y, sigma**2).mean
    return x


@probe(
    id="zero-derivative",
    name="Zero derivative",
    paper=PAPER,
    arxiv=ARXIV,
    example={
        "task": {"use": "one-input", "samples": 32},
        "model": {"use": "mlp", "hidden": [8], "activation": "tanh"},
        "procedure": {"use": ID},
        "probes": [{"use": "zero-derivative", "starts": 5, "iterations": 3}],
    },
)
class ZeroDerivative(Probe):
    """Finds inputs at which the learned function neither rises nor falls, by observing that its derivative is zero and
    inferring where. An optimizer of what the network has learned, without a gradient.

        D = dz/dx, a product of slopes f'(z) and weights W: its mean m_D, variance v_D and covariance c with x
        x <- x + c (0 - m_D) / (v_D + sigma^2),   c = cov(D, x);   again and again, x ~ N(x, input_var)

    Helps: looking for the best input of a function that was learned from examples.
    Hurts: a minimum, a maximum and a saddle are the same to it. Activations without a bend (ReLU) tell it nothing.
    Cost: a pass for each iteration, with a derivative for every input.
    Choices: it starts from training inputs; each input moves by its own derivative. Slopes are lines at the mean, as
        the activations are, so that c is the curvature times input_var. Since all units move with x, v_D is at least
        c^2 over input_var: a step is Newton's, or shorter where the weights are uncertain. The best of the ends, by the
        mean answer, is told, with the mean |m_D| before and after.

    Args:
        answer: Which of the answers is looked at.
        highest: Whether the best end is the highest, or the lowest.
        input_var: Variance of each input around what is known of it.
        sigma: Deviation of the noise on the observed derivative.
        iterations: How often the inputs are inferred.
        starts: Training inputs to start from.
    """

    reads = ("moments",)

    def __init__(
        self,
        answer: Whole = 0,
        highest: bool = True,
        input_var: Positive = 0.01,
        sigma: NonNegative = 0.0,
        iterations: Count = 50,
        starts: Count = 20,
    ):
        self.answer, self.highest, self.input_var = answer, highest, input_var
        self.sigma, self.iterations, self.starts = sigma, iterations, starts

    def look(self, run: Run) -> Finding:
        chain = chain_of(run.model)
        batch = run.training_sample(self.starts)
        with run.evaluating(), torch.no_grad():
            start = batch.x.flatten(1)
            x = flatten_out(chain, start, self.input_var, self.sigma, self.iterations, self.answer)
            slopes = [derivative(chain, exact(each), self.answer).mean.abs().mean() for each in (start, x)]
            value = forward(chain, exact(x)).answer.mean[:, self.answer]
            best = int((value if self.highest else -value).argmax())
        found = {"slope_before": float(slopes[0]), "slope_after": float(slopes[1]), "best": float(value[best])}
        found |= {f"best_input.{j}": float(v) for j, v in enumerate(x[best][:8])}
        rows = [[i, *x[i][:8].tolist(), float(value[i])] for i in range(len(x))]
        names = ["start", *(f"input {j}" for j in range(min(x.shape[1], 8))), "answer"]
        return Finding(found, {"ends": figures.table("Where the derivative is zero", names, rows)})

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if any(isinstance(m, nn.ReLU) for m in anatomy.module.modules()):
            return "A ReLU has no bend, so a derivative tells nothing of the place; choose another activation (tanh)."
        if settings["answer"] >= task.offer.size:
            return f"The task has {task.offer.size} answers, counted from 0; there is no answer {settings['answer']}."
        return None


def flatten_out(
    chain: list[Step], x: Tensor, input_var: float, sigma: float, iterations: int, answer: int = 0
) -> Tensor:
    """Inputs at which the derivative of an answer is inferred to be zero, input by input."""
    for _ in range(iterations):
        d = derivative(chain, Gaussian(x, torch.full_like(x, input_var)), answer)
        x = x - d.covariance * d.mean / (d.var + sigma**2 + torch.finfo(x.dtype).tiny)
    return x
