"""Wasserstein GAN: a generator that learns from a critic whose weights are kept small."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.fields import Count, ModelPart, OptimizerPart, Positive, Whole
from engine.kit.generation import noise, rng_for, spearman
from engine.parts import Batch, Offer, Procedure, Task, Terms, procedure

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.roles import Role
    from engine.training.run import Run

ID = "wgan"
NOISE = "z"  # what the generator is given
Objective = Literal["wasserstein", "jensen-shannon"]


def critic_terms(real: Tensor, fake: Tensor, objective: Objective) -> Tensor:
    """What the critic descends, from its answers to as many real as made samples: minus its estimate [B]."""
    if objective == "wasserstein":
        return fake - real
    return F.softplus(-real) + F.softplus(fake)


def generator_terms(fake: Tensor, objective: Objective) -> Tensor:
    """What the generator descends, from the critic's answers to what it made [B]."""
    return -fake if objective == "wasserstein" else F.softplus(-fake)


def estimate(real: Tensor, fake: Tensor, objective: Objective) -> Tensor:
    """The critic's estimate of how far the made samples are from the real ones: of a multiple of W1, or of twice the
    Jensen-Shannon divergence."""
    if objective == "wasserstein":
        return real.mean() - fake.mean()
    return 2 * math.log(2) - critic_terms(real, fake, objective).mean()


def critic_steps(step: int, often: int, boost: int, first: int, every: int) -> int:
    """How often the critic learns in a step: more at the beginning, and every so many steps."""
    return boost if step < first or (every and step % every == 0) else often


def plain_critic(offer: Offer) -> nn.Module:
    """Two layers of 128 units, where a recipe names no critic."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(offer.features, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1)
    )


@procedure(
    id=ID,
    name="Wasserstein GAN",
    paper="Wasserstein GAN",
    arxiv="1701.07875",
    recommends={
        "optimizer": {"use": "rmsprop", "lr": 5e-5, "alpha": 0.99},
        "training": {"batch_size": 64},
        "model": {"use": "mlp", "hidden": [128, 128]},
    },
    example={
        "task": {"use": "distribution", "held_out": 40, "judged": 16, "epoch_steps": 4},
        "procedure": {"latent": 2, "n_critic": 2, "critic_boost": 3, "boost_first": 1, "boost_every": 5, "clip": 0.1},
        "model": {"use": "mlp", "hidden": [8]},
        "optimizer": {"use": "rmsprop"},
    },
)
class WassersteinGAN(Procedure):
    """Trains a model to turn noise into samples like those of the data. A second network, the critic, learns to tell
    the two apart; because its weights are kept small, the difference that it finds is a distance that can be descended.

        critic, n_critic times:  ascend  mean f(x) - mean f(G(z)),   then  w <- clip(w, -c, c)
        generator, once:         descend  -mean f(G(z))
        sup over 1-Lipschitz f of E f(x) - E f(G(z)) = W1(data, samples);  a clipped f gives K W1, K unknown

    The recipe's model is the generator: it takes `latent` random numbers and answers with a sample.

    Helps: where the data lie on thin shapes: the gradient does not vanish when real and made samples do not overlap,
        and the critic's estimate falls as the samples get better.
    Hurts: speed: the critic must be trained nearly to its best at all times. Momentum in the critic's optimizer makes
        it unstable. A clip that is too small weakens the gradient, one that is too large slows the critic down.
    Cost: n_critic + 1 backward passes a step, and n_critic batches of data.
    Choices: the boost of the critic, 100 updates in each of the first 25 steps and in every 500th, is that of the
        published code. Biases are clipped too. "critic/estimate" is taken on fresh batches before the critic learns
        from them. result/estimate-correlation is the rank correlation between an estimate on a thousand fresh samples
        and the task's own distance, over the evaluations. The Jensen-Shannon objective is the classic GAN with the
        generator's log D trick and nothing clipped: a baseline.

    Args:
        latent: Random numbers that a sample is made from.
        n_critic: Updates of the critic in a step.
        critic_boost: Its updates in each of the first steps, and in every so many.
        boost_first: How many first steps these are.
        boost_every: Every how many steps it is boosted again; 0 never.
        clip: The largest weight of the critic.
        critic: The model that is the critic; without one two layers of 128 units.
        critic_optimizer: Its optimizer; without one the recipe's, made anew.
        objective: What is played for: the Wasserstein distance, or the Jensen-Shannon divergence of the classic GAN.
    """

    brings_objective = True
    outputs = ("samples",)
    makes = ("main", "critic")
    divisible = False  # the critic moves several times in a step

    def __init__(
        self,
        latent: Count = 8,
        n_critic: Count = 5,
        critic_boost: Count = 100,
        boost_first: Whole = 25,
        boost_every: Whole = 500,
        clip: Positive = 0.01,
        critic: ModelPart | None = None,
        critic_optimizer: OptimizerPart | None = None,
        objective: Objective = "wasserstein",
    ):
        self.latent, self.n_critic, self.critic_boost = latent, n_critic, critic_boost
        self.boost_first, self.boost_every, self.clip, self._game = boost_first, boost_every, clip, objective
        self._critic_part, self._critic_optimizer = critic, critic_optimizer
        self._critic: nn.Module
        self.estimates: list[float] = []  # at the evaluations, with what the task measured there
        self.measured: list[float] = []

    def offer(self, task: Task) -> Offer:
        return Offer("vector", (self.latent,), "values", task.offer.features)

    def setup(self, run: Run) -> None:
        offer = Offer(run.task.offer.input, run.task.offer.shape, "values", 1)
        self._critic = (self._critic_part or plain_critic)(offer).to(run.device)
        run.add_role("main", run.model)
        run.add_role("critic", self._critic, optimizer=self._critic_optimizer)
        self.project(run, run.roles["critic"])

    # -- the step --------------------------------------------------------------------------------------------------

    def step(self, run: Run, batch: Batch) -> None:
        times = critic_steps(run.step, self.n_critic, self.critic_boost, self.boost_first, self.boost_every)
        for number in range(times):
            if number:
                batch = run.stream_of("train", ID).next()
                run.count("samples", len(batch))
            self._learn_to_tell(run, batch)
        run.batch = _batch(noise((len(batch), self.latent), run.rng(ID)))
        made = run.forward(run.batch)
        run.update("main", run.terms(made, run.batch), alone=True)

    def _learn_to_tell(self, run: Run, batch: Batch) -> None:
        """One update of the critic; the generator stays as it is."""
        with torch.no_grad():
            made = self.make(run, len(batch))
        real, fake = self.judge(run, batch.x), self.judge(run, made)
        run.log("critic/estimate", estimate(real.detach(), fake.detach(), self._game))
        run.batch = batch
        run.update("critic", {"task": critic_terms(real, fake, self._game)})

    def make(self, run: Run, count: int, rng: torch.Generator | None = None) -> Tensor:
        """Samples of the generator, from fresh noise."""
        z = noise((count, self.latent), rng or run.rng(ID))
        return self._shaped(run, run.forward(_batch(z)))

    def given(self, run: Run, batch: Batch) -> Batch:
        """The noise that a batch's samples are made from."""
        return batch if NOISE in batch.inputs else _batch(noise((len(batch), self.latent), rng_for(batch, run.seed)))

    def objective(self, run: Run, output: Any, batch: Batch) -> Terms:
        """What the generator descends: the critic's answers to what it has made."""
        return {"task": generator_terms(self.judge(run, self._shaped(run, output)), self._game)}

    def judge(self, run: Run, x: Tensor) -> Tensor:
        """What the critic says of samples [B]."""
        answer: Tensor = run.forward(_batch(x), self._critic)
        return answer.float().flatten()

    def _shaped(self, run: Run, made: Tensor) -> Tensor:
        return made.reshape(len(made), *run.task.offer.shape)

    @torch.no_grad()
    def project(self, run: Run, role: Role) -> None:
        """After each step of the critic: no weight is larger than the clip."""
        if role.name == "critic" and self._game == "wasserstein":
            torch._foreach_clamp_max_(role.parameters, self.clip)
            torch._foreach_clamp_min_(role.parameters, -self.clip)

    # -- answers ---------------------------------------------------------------------------------------------------

    def predict(self, run: Run, batch: Batch) -> Tensor:
        """As many samples as the batch has rows, from the same noise at every evaluation."""
        return self._shaped(run, self.given(run, batch).call(run.model))

    def after_evaluation(self, run: Run, metrics: Mapping[str, float]) -> None:
        measured = metrics.get(f"val/{run.task.metric[0]}")
        if measured is None:
            return
        with run.evaluating(), torch.no_grad():
            rng = run.rng(f"{ID}/estimate")
            real = run.stream_of("train", f"{ID}/estimate", 1000).next().x
            found = estimate(self.judge(run, real), self.judge(run, self.make(run, len(real), rng)), self._game)
        self.estimates.append(float(found))
        self.measured.append(measured)
        run.log("critic/estimate-at-evaluation", found)

    def result(self, run: Run) -> dict[str, float]:
        return {"estimate-correlation": spearman(self.estimates, self.measured)}

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if recipe["training"]["precision"] == "fp16":
            return 'Two players with one gradient scale each are not played in fp16; write precision = "bf16".'
        return None


def _batch(x: Tensor) -> Batch:
    """Noise, or samples for the critic, as a batch."""
    return Batch({NOISE: x}, None, torch.arange(len(x), device=x.device))
