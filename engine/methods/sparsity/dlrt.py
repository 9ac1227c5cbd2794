"""Training inside the low-rank matrices, with ranks that find themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.fields import Count, Decay, Sites, Whole
from engine.kit.anatomy import Site, role_of
from engine.parts import Batch, Moved, Moves, Procedure, Task, procedure

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

ID = "dlrt"
LOG_EVERY = 10
Factors = tuple[Tensor, Tensor, Tensor]  # U (m x a), S (a x b), V (n x b)


class LowRank(nn.Module):
    """A linear or convolutional layer whose weight is U S V^T, never written out: x -> V^T x -> S -> U.

    U and V have orthonormal columns and no gradient of their own; S and the bias are trained. A kernel is a matrix of
    (outputs) x (inputs times places).
    """

    def __init__(self, module: nn.Linear | nn.Conv2d, rank: int):
        super().__init__()
        self.role = role_of(module)
        weight = module.weight.detach()
        self.shape = tuple(weight.shape)
        self.convolution: Any = None
        if isinstance(module, nn.Conv2d):
            self.convolution = (module.stride, module.padding, module.dilation)
        self.bias = module.bias
        u, sigma, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        # Random weights spread over all ranks: what is kept gets the size of the whole, or signals die out.
        kept = sigma[:rank] * (sigma.norm() / sigma[:rank].norm().clamp_min(1e-12))
        self.U: nn.Parameter
        self.S: nn.Parameter
        self.V: nn.Parameter
        self.put((u[:, :rank].contiguous(), torch.diag(kept), v[:rank].T.contiguous()))
        # K, L, and L as it was, while the bases are trained; the factors that the next rewrite puts in.
        self._bases: tuple[Tensor, Tensor, Tensor] | None = None
        self._next: Factors | None = None

    def put(self, factors: Factors) -> Moves:
        """Exchanges the factors. Nothing that was kept for the old ones entry by entry holds in other bases."""
        old = [getattr(self, name, None) for name in "USV"]
        new = [
            nn.Parameter(each.detach(), requires_grad=name == "S") for name, each in zip("USV", factors, strict=True)
        ]
        self.U, self.S, self.V = new
        return {before: Moved(after) for before, after in zip(old, new, strict=True) if before is not None}

    def forward(self, x: Tensor) -> Tensor:
        if self._bases is None:
            return self._through(x, self.V.T, self.S, self.U, bias=self.bias)
        K, L, before = self._bases
        # The second term is exactly zero; its gradient is that of L, as the first one's is that of K.
        return self._through(x, self.V.T, K, bias=self.bias) + self._through(x, (L - before).T, self.U)

    def _through(self, x: Tensor, first: Tensor, *rest: Tensor, bias: Tensor | None = None) -> Tensor:
        """The product of the matrices, the first one innermost, with x; plus the bias."""
        if self.convolution is None:
            x = F.linear(x, first)
            for matrix in rest[:-1]:
                x = F.linear(x, matrix)
            return F.linear(x, rest[-1], bias)
        x = F.conv2d(x, first.reshape(len(first), *self.shape[1:]), None, *self.convolution)
        for matrix in rest[:-1]:
            x = F.conv2d(x, matrix[:, :, None, None])
        return F.conv2d(x, rest[-1][:, :, None, None], bias)

    def weight(self) -> Tensor:
        """The matrix U S V^T in the shape of the weight that it stands for."""
        return (self.U @ self.S @ self.V.T).view(self.shape)

    def fold(self) -> nn.Module:
        """The plain layer with the same weights."""
        weight = self.weight().detach()
        if self.convolution is None:
            plain: Any = nn.Linear(self.shape[1], self.shape[0], self.bias is not None)
        else:
            stride, padding, dilation = self.convolution
            inputs, outputs, kernel = self.shape[1], self.shape[0], (self.shape[2], self.shape[3])
            plain = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=self.bias is not None)
        plain.weight, plain.bias = nn.Parameter(weight), self.bias
        return plain


def augmented(factors: Factors, K: Tensor, L: Tensor) -> Factors:
    """The same matrix in bases that span the old ones and what K and L moved to."""
    U, S, V = factors
    wide_u = torch.linalg.qr(torch.cat([K, U], dim=1)).Q
    wide_v = torch.linalg.qr(torch.cat([L, V], dim=1)).Q
    return wide_u, (wide_u.T @ U) @ S @ (V.T @ wide_v), wide_v


def turned(factors: Factors, K: Tensor, L: Tensor) -> Factors:
    """The matrix, projected on the bases that K and L moved to; the rank stays."""
    U, S, V = factors
    new_u, new_v = torch.linalg.qr(K).Q, torch.linalg.qr(L).Q
    return new_u, (new_u.T @ U) @ S @ (V.T @ new_v), new_v


def ranks(sigmas: Sequence[Tensor], tau: float, least: int, most: int) -> list[int]:
    """For each list of singular values, falling, the least rank whose rest has at most tau of the whole length."""
    rests = [sigma.square().flip(0).cumsum(0).flip(0).sqrt() for sigma in sigmas]
    counts = torch.stack([(rest > tau * rest[0]).sum() for rest in rests]).tolist()
    return [min(max(n, least), most or len(s), len(s)) for n, s in zip(counts, sigmas, strict=True)]


class Bases(nn.Module):
    """The K and L of every layer, which a step trains first."""

    def __init__(self, layers: Sequence[LowRank]):
        super().__init__()
        self.K = nn.ParameterList(layer.U @ layer.S for layer in layers)
        self.L = nn.ParameterList(layer.V @ layer.S.T for layer in layers)

    @torch.no_grad()
    def put(self, layers: Sequence[LowRank]) -> Moves:
        """Takes K and L from the layers' factors, exchanging the parameters where their shapes have changed."""
        moves: Moves = {}
        for held, values in ((self.K, [x.U @ x.S for x in layers]), (self.L, [x.V @ x.S.T for x in layers])):
            for i, value in enumerate(values):
                old = held[i]
                held[i] = nn.Parameter(value)
                moves[old] = Moved(held[i])
        return moves


@procedure(
    id=ID,
    name="Dynamical low-rank training (DLRT)",
    paper="Low-rank lottery tickets: finding efficient low-rank neural networks via matrix differential equations",
    arxiv="2205.13571",
    graph="never",
    recommends={"optimizer": {"use": "sgd", "lr": 0.05, "momentum": 0.0}},
    example={
        "model": {"use": "mlp", "hidden": [12, 12], "norm": "batch"},
        "optimizer": {"use": "sgd", "lr": 0.05, "momentum": 0.0},
        "techniques": [{"use": "switch-ema", "decay": 0.9}],
    },
)
class DLRT(Procedure):
    """Keeps every selected weight as a product of thin matrices from the first step to the last and never forms it.
    The rank of each layer follows what its training needs.

        W = U S V^T,   U^T U = V^T V = 1;   one step on one batch:
        1  K = U S,  L = V S^T;   K <- K - lr dLoss/dK (V held);   L <- L - lr dLoss/dL (U held)
        2  U' = basis of [K, U],   V' = basis of [L, V],   S' = (U'^T U) S (V^T V')     (the same W, twice the rank)
        3  S' <- S' - lr dLoss/dS',  with the biases and whole weights
        4  S' = P diag(sigma) Q^T;  keep the least r with |sigma_(r+1), ...| <= tau |sigma|;  U = U' P_r,  V = V' Q_r

    Helps: Layers that are larger than their task: memory and time fall while it trains, without a dense start, and the
        product trains well from factors of any scale, where W = A B^T stalls.
    Hurts: Small layers, whose full rank costs less; losses with a memory of samples, which see each batch twice.
    Cost: Two passes forward and back, two QRs and one small SVD a layer each step; r (m + n) + r^2 numbers a layer.
        The ranks are fetched from the device once a step, so steps cannot be captured or compiled.

    Choices: U and V start from the singular vectors of the weights that the model was built with, S from their singular
        values, scaled to the size of the whole weight. Whatever an
        optimizer remembers of a factor is dropped in every step, so factors take plain steps whatever the momentum;
        biases and whole weights keep theirs. The first pass leaves running statistics alone. In fixed mode the bases
        are those of K and L alone, which changes W by a projection. The last `finetune_epochs` train S, biases and
        whole weights in the bases that were found. Other parts see the role main (S and all else) and the role bases
        (K and L).

    Args:
        tau: Share of a layer's singular values, as a length, that a step may cut off.
        init_rank: Rank of every selected layer at the start, where its size allows.
        r_max: The highest rank; 0 sets no limit.
        r_min: The lowest rank.
        adaptive: Let the ranks change; off keeps init_rank.
        finetune_epochs: Epochs at the end with bases and ranks held.
        layers: The layers to keep as factors; those left out stay whole.

    Raises:
        ValueError: Where r_min is above r_max.
    """

    rewrites = True
    divisible = False  # its two passes are over one and the same batch

    def __init__(
        self,
        tau: Decay = 0.1,
        init_rank: Count = 32,
        r_max: Whole = 64,
        r_min: Count = 2,
        adaptive: bool = True,
        finetune_epochs: Whole = 0,
        layers: Sites = "weight, not last",
    ):
        if r_max and r_min > r_max:
            raise ValueError(f"r_min = {r_min} is above r_max = {r_max}; the lowest rank must not exceed the highest.")
        self.tau, self.init_rank, self.r_max, self.r_min = tau, init_rank, r_max, r_min
        self.adaptive, self.finetune_epochs, self.layers = adaptive, finetune_epochs, layers
        self._paths: list[str] = []
        self._bases: Bases

    def setup(self, run: Run) -> None:
        if self.finetune_epochs and run.steps is None:
            raise ValueError("finetune_epochs counts from the end of the run; set budget.epochs or budget.steps.")
        sites = run.anatomy.select(self.layers)
        for site in sites:
            _check(site)
        self._paths = [site.path for site in sites]
        rank = min(self.init_rank, self.r_max or self.init_rank)
        if any(not isinstance(site.module, LowRank) for site in sites):  # they are where a phase or source had them
            run.rewrite(ID, "factor", {"paths": self._paths, "rank": rank})
        run.add_role("main", run.model)
        self._bases = Bases(self._factored(run))
        bases = run.add_role("bases", self._bases)
        if bases.oracle is not None:
            raise ValueError(
                "It steps along plain gradients of its factors, and this optimizer asks for more than gradients. "
                'Write use = "sgd", for example.'
            )

    def step(self, run: Run, batch: Batch) -> Any:
        finetunes = self.finetune_epochs * run.steps_per_epoch
        if finetunes and run.steps is not None and run.step >= run.steps - finetunes:
            return self._train(run, batch)
        layers = self._factored(run)
        self._train_bases(run, batch, layers)
        grow = augmented if self.adaptive else turned
        with torch.no_grad():
            pairs = zip(layers, self._bases.K, self._bases.L, strict=True)
            wide = [grow((layer.U, layer.S, layer.V), K, L) for layer, K, L in pairs]
        self._exchange(run, layers, wide)
        output = self._train(run, batch)
        self._exchange(run, layers, self._truncated(layers) if self.adaptive else None)
        if run.step % LOG_EVERY == 0:
            for path, layer in zip(self._paths, layers, strict=True):
                run.log(f"rank/{path}", float(len(layer.S)))
        return output

    def _train(self, run: Run, batch: Batch) -> Any:
        output = run.forward(batch)
        run.update("main", run.terms(output, batch))
        return output

    def _train_bases(self, run: Run, batch: Batch, layers: Sequence[LowRank]) -> None:
        """One step of K and L, all from the same old factors; of the rest of the model neither a step nor a trace."""
        buffers = list(run.model.buffers())
        before = [buffer.clone() for buffer in buffers]
        with _training(layers, self._bases):
            run.update("bases", run.terms(run.forward(batch), batch), alone=True)
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)

    @torch.no_grad()
    def _truncated(self, layers: Sequence[LowRank]) -> list[Factors]:
        parts = [torch.linalg.svd(layer.S, full_matrices=False) for layer in layers]
        found = ranks([sigma for _, sigma, _ in parts], self.tau, self.r_min, self.r_max)
        return [
            (layer.U @ p[:, :r], torch.diag(sigma[:r]), layer.V @ q[:r].T)
            for layer, (p, sigma, q), r in zip(layers, parts, found, strict=True)
        ]

    def _exchange(self, run: Run, layers: Sequence[LowRank], factors: Sequence[Factors] | None) -> None:
        """New factors for all layers; None keeps them and starts K and L anew."""
        if factors is None:
            factors = [(layer.U, layer.S, layer.V) for layer in layers]
        for layer, each in zip(layers, factors, strict=True):
            layer._next = each
        sizes = {path: list(S.shape) for path, (_, S, _) in zip(self._paths, factors, strict=True)}
        run.rewrite(ID, "resize", {"sizes": sizes}, replaces=True)

    @classmethod
    def rewrite(cls, run: Run, operation: str, arguments: Mapping[str, Any]) -> Moves:
        if operation == "factor":
            return _factor(run.model, arguments["paths"], arguments["rank"])
        layers: list[Any] = [run.model.get_submodule(path) for path in arguments["sizes"]]
        moves: Moves = {}
        for layer, (rows, columns) in zip(layers, arguments["sizes"].values(), strict=True):
            moves |= layer.put(_factors(layer, rows, columns))
        bases = run.roles["bases"].module if "bases" in run.roles else None
        if isinstance(bases, Bases) and all(rows == columns for rows, columns in arguments["sizes"].values()):
            moves |= bases.put(layers)
        return moves

    def _factored(self, run: Run) -> list[LowRank]:
        return [run.model.get_submodule(path) for path in self._paths]  # type: ignore[misc]

    def result(self, run: Run) -> dict[str, float]:
        layers = self._factored(run)
        found = {f"rank/{path}": float(len(layer.S)) for path, layer in zip(self._paths, layers, strict=True)}
        return {"parameters": float(sum(p.numel() for p in run.model.parameters())), **found}

    @classmethod
    def claims(cls, settings: Mapping[str, Any], anatomy: Anatomy) -> dict[str, str]:
        return {f"{site.path}.weight": "factors" for site in anatomy.select(settings["layers"])}

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        try:
            sites = anatomy.select(settings["layers"])
            for site in sites:
                _check(site)
        except ValueError as error:
            return str(error)
        if not sites:
            return f"No layer is at {settings['layers']!r}; select linear or convolution layers."
        return None


@contextmanager
def _training(layers: Sequence[LowRank], bases: Bases) -> Iterator[None]:
    for layer, K, L in zip(layers, bases.K, bases.L, strict=True):
        layer._bases = (K, L, L.detach().clone())
    try:
        yield
    finally:
        for layer in layers:
            layer._bases = None


def _check(site: Site) -> None:
    module = site.module
    plain = isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros"
    )
    mapped = nn.utils.parametrize.is_parametrized(module)
    if isinstance(module, LowRank) or (plain and not mapped):
        return
    what = "whose weight is mapped" if plain else "not a linear layer or a plain two-dimensional convolution"
    raise ValueError(f"{site.path} is a {type(module).__name__}, {what}; leave it out of `layers`.")


def _factor(model: nn.Module, paths: Sequence[str], rank: int) -> Moves:
    """Puts factors in the place of weights; layers that have them keep theirs."""
    moves: Moves = {}
    for path in paths:
        module: Any = model.get_submodule(path)
        if isinstance(module, LowRank):
            continue
        above, _, name = path.rpartition(".")
        weight = module.weight
        model.get_submodule(above)._modules[name] = LowRank(module, min(rank, len(weight), weight[0].numel()))
        moves[weight] = Moved(None)
    return moves


def _factors(layer: LowRank, rows: int, columns: int) -> Factors:
    """What the step has worked out; where a saved run is built again, matrices of the sizes, to be loaded into."""
    found: Factors | None = layer._next
    if found is not None:
        layer._next = None
        return found
    m, n = layer.shape[0], layer.V.shape[0]
    return layer.U.new_zeros(m, rows), layer.S.new_zeros(rows, columns), layer.V.new_zeros(n, columns)
