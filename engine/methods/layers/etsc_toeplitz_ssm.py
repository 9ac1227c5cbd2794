"""Turns the long convolutions of a trained model into recurrences that compute the same, token by token."""

from __future__ import annotations

import time
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.fields import Whole
from engine.figures import curve, line
from engine.kit.decoding import writes
from engine.kit.toeplitz import Modes, Recurrence, impulse, modes_of
from engine.methods.layers.gated_toeplitz import GatedToeplitz
from engine.parts import Batch, Figure, Transform, Transformed, transform

TOLERANCES = {"complex128": 5e-12, "complex64": 2e-4}
DTYPES = {"complex128": torch.complex128, "complex64": torch.complex64}
PLACES = 64  # of a text, at most, at which writing the next token is timed
REPEATS = 5


class RecurrentToeplitz(nn.Module):
    """A gated Toeplitz unit whose convolution is a recurrence."""

    def __init__(self, unit: GatedToeplitz, recurrence: Recurrence):
        super().__init__()
        self.gate, self.value, self.out = unit.gate, unit.value, unit.out
        self.features, self.recurrence = unit.features, recurrence

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.recurrence(F.silu(self.value(x)))
        return self.out(F.silu(self.gate(x)) * mixed)

    def start(self, rows: int) -> Any:
        return self.recurrence.start(rows)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        mixed, state = self.recurrence.step(F.silu(self.value(x)), state)
        return self.out(F.silu(self.gate(x)) * mixed), state


@transform(
    id="etsc-toeplitz-ssm",
    name="Toeplitz to state space",
    paper="Accelerating Toeplitz Neural Network with Constant-time Inference Complexity",
    arxiv="2311.08756",
    example={
        "task": {"use": "python-text", "characters": 10000, "length": 12},
        "model": {"use": "tnn", "width": 6, "depth": 1, "rpe_dim": 4},
    },
)
class ETSC(Transform):
    """Turns every long convolution of a trained model into a recurrence with the same answers, exactly and without
    training. The next token then costs the same wherever in the text it is.

        t_n = -sum_(i < n) t_i closes the kernel;  m = n + 1;  lambda_k = exp(-2 pi i k / m);  b = ifft(t_0 .. t_n)
        h_k <- decay lambda_k h_k + b_k u,   y = Re sum_k h_k,   k = 1 .. n (b_0 = 0)

    Of conjugate modes one is kept, at twice its weight.

    Helps: writing text, where the convolution would be computed anew for every token.
    Hurts: reading a whole text at once, which a convolution does faster. Texts longer than n are refused, because the
        kernel would come back.
    Cost: half of n complex numbers for each channel and text, in double precision.
    Choices: the kernel is converted as it is before it decays, and the decay goes into the rates: stable and more
        exact. The rates are of modulus 1 on paper; in single precision they are off by 6e-8, and the error grows with
        the position. The kernel's error is measured by running the recurrence on a single one. Writing is timed on one
        text of n tokens: passing the whole text so far anew, against the recurrence.

    Args:
        n: Tokens for which it is exact; 0 takes the length of the samples.
        use_symmetry: Keep one of two conjugate modes.
        state_dtype: Precision of the states.
        check: Refuse a recurrence whose kernel is off by more than its precision allows.

    Raises:
        ValueError: Where the model has no such convolution, or the check fails.
    """

    samples = 4

    def __init__(
        self,
        n: Whole = 0,
        use_symmetry: bool = True,
        state_dtype: Literal["complex128", "complex64"] = "complex128",
        check: bool = True,
    ):
        self.n, self.use_symmetry, self.state_dtype, self.check = n, use_symmetry, state_dtype, check

    @torch.no_grad()
    def apply(self, model: nn.Module, sample: Batch) -> Transformed:
        units = [(path, unit) for path, unit in model.named_modules() if isinstance(unit, GatedToeplitz)]
        if not units:
            raise ValueError("It converts gated Toeplitz units, and the model has none.")
        length = sample.x.shape[1]
        n = self.n or length
        writer = writes(model)
        text = sample.x[:1].repeat(1, -(-n // length))[:, :n]
        slow = seconds_anew(model, text) if writer else {}
        errors, closings = [], []
        for path, unit in units:
            made, error, closing = self.converted(unit, n)
            errors.append(error)
            closings.append(closing)
            above, _, name = path.rpartition(".")
            setattr(model.get_submodule(above), name, made)
        allowed = TOLERANCES[self.state_dtype]
        if self.check and max(errors) > allowed:
            raise ValueError(
                f"The recurrence is off by {max(errors):.2g} of its kernel, more than {allowed:g}; take complex128 "
                "or a smaller n."
            )
        facts = {"kernel_error": max(errors), "closing_mode": max(closings), "positions": float(n)}
        facts["modes"] = float(n // 2 + n % 2 if self.use_symmetry else n)
        if not writer:
            return Transformed(model, facts)
        fast = seconds_written(model, text)
        facts |= told("recurrent", fast) | told("anew", slow)
        return Transformed(model, facts, figures={"seconds by position": drawn(slow, fast)})

    def converted(self, unit: GatedToeplitz, n: int) -> tuple[RecurrentToeplitz, float, float]:
        """The unit as a recurrence, the error of its kernel as a share of the kernel, and the weight of mode zero."""
        kernel = unit.kernel(n, decayed=False).double()
        modes: Modes = modes_of(kernel, unit.decay, self.use_symmetry, DTYPES[self.state_dtype])
        recurrence = Recurrence(modes, n)
        decay = unit.decay ** torch.arange(n, dtype=torch.float64, device=kernel.device)
        true = kernel * decay.unsqueeze(-1)
        error = (impulse(recurrence, n) - true).norm() / true.norm().clamp_min(1e-300)
        return RecurrentToeplitz(unit, recurrence), float(error), modes.closing


# -- how long the next token takes -----------------------------------------------------------------------------------


def places(length: int) -> list[int]:
    """The positions that are timed, evenly spaced."""
    return sorted({round(i * (length - 1) / (PLACES - 1)) for i in range(PLACES)}) if length > 1 else [0]


def seconds_anew(model: nn.Module, text: Tensor) -> dict[int, float]:
    """For each place the time of the next token when the whole text so far is passed."""
    found = {}
    model(text)
    for place in places(text.shape[1]):
        taken = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            model(text[:, : place + 1])
            _wait(text)
            taken.append(time.perf_counter() - started)
        found[place] = median(taken)
    return found


def seconds_written(model: Any, text: Tensor) -> dict[int, float]:
    """The same where the model goes on from its state. All of the text is written several times over."""
    wanted = set(places(text.shape[1]))
    taken: dict[int, list[float]] = {place: [] for place in sorted(wanted)}
    for turn in range(REPEATS + 1):
        state = model.begin(text[:, :0])
        for place, token in enumerate(text.unbind(1)):
            started = time.perf_counter()
            _, state = model.advance(state, token)
            _wait(text)
            if turn and place in wanted:  # the first time warms up
                taken[place].append(time.perf_counter() - started)
    return {place: median(times) for place, times in taken.items()}


def _wait(on: Tensor) -> None:
    if on.device.type == "cuda":
        torch.cuda.synchronize(on.device)


def told(name: str, seconds: dict[int, float]) -> dict[str, float]:
    """The time of a token in the first and in the last quarter of the text, and by what it grew."""
    times = list(seconds.values())
    quarter = max(len(times) // 4, 1)
    first, last = median(times[:quarter]), median(times[-quarter:])
    return {
        f"seconds_{name}_first_quarter": first,
        f"seconds_{name}_last_quarter": last,
        f"seconds_{name}_growth": last / first,
    }


def drawn(slow: dict[int, float], fast: dict[int, float]) -> Figure:
    """Seconds by position for both."""
    return curve(
        "Time of the next token",
        line("convolution, anew", list(slow), list(slow.values())),
        line("recurrence", list(fast), list(fast.values())),
        x="position",
        y="seconds",
    )
