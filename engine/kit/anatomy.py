"""What a model is made of: its stem, blocks and head, where its norms and weights sit, and what comes before them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils import parametrize

from engine.kit.tied import Group, find_groups, like
from engine.parts import Model, Offer

_ACTIVATIONS = tuple(
    getattr(nn.modules.activation, name) for name in nn.modules.activation.__all__ if name != "MultiheadAttention"
)
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)
_TYPES: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("norm", _NORMS),
    ("activation", _ACTIVATIONS),
    ("conv", (nn.modules.conv._ConvNd,)),
    ("linear", (nn.Linear,)),
    ("attention", (nn.MultiheadAttention,)),
    ("embedding", (nn.Embedding, nn.EmbeddingBag)),
    ("dropout", (nn.modules.dropout._DropoutNd,)),
)
ROLES = ("norm", "activation", "conv", "linear", "weight", "attention", "embedding", "dropout")
_PARAMETRIZED = re.compile(r"parametrizations\.([^.]+)\..*$")
_SIZES = ("out_features", "out_channels", "num_features", "num_channels", "embedding_dim", "embed_dim", "features")


@dataclass(frozen=True)
class Site:
    """One module's place in a model: what sits there, in which parent, and what comes before and after it."""

    path: str
    module: nn.Module
    parent: nn.Module
    name: str
    role: str
    features: int  # channels of its output, as it or what runs before it says
    previous: str = ""  # the path of the leaf module that runs before it
    following: str = ""
    shapes: Callable[[], dict[str, tuple[int, ...]]] = field(default=dict, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of one sample's output, where it is known. The first question costs a pass through the model."""
        return self.shapes().get(self.path)

    def put(self, module: nn.Module) -> None:
        """Puts another module in this place."""
        if isinstance(self.parent, (nn.Sequential, nn.ModuleList)):
            self.parent[int(self.name) if self.name.isdigit() else list(self.parent._modules).index(self.name)] = module
        else:
            setattr(self.parent, self.name, module)


class Anatomy:
    """A model's parts. `order` lists the leaf modules as they run; without it they run as they were registered.

    `stem` takes the input in, `blocks` follow each other, `features` is the module whose output the head takes, `head`
    answers. `example` is an input on the meta device; with it the sites know their shapes.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        stem: nn.Module | None,
        blocks: Sequence[nn.Module],
        features: nn.Module | None,
        head: nn.Module,
        example: Tensor | None = None,
        order: Sequence[str] | None = None,
    ):
        self.module, self.stem, self.blocks = module, stem, list(blocks)
        self.features, self.head, self.example = features, head, example
        self._order = order
        self._sites: list[Site] | None = None
        self._shapes: dict[str, tuple[int, ...]] | None = None

    def path(self, module: nn.Module) -> str:
        """Where a module is in the model."""
        for path, each in self.module.named_modules():
            if each is module:
                return path
        raise ValueError(f"The module {type(module).__name__} is not in the model.")

    def all_sites(self) -> list[Site]:
        """Every leaf module that has a role, and those without one, in the order in which they run."""
        if self._sites is None:
            self._sites = self._find()
        return self._sites

    def sites(self, role: str) -> list[Site]:
        """The sites of a role, in the order in which they run; "weight" is linear and conv."""
        if role not in ROLES:
            raise ValueError(f"There is no role {role!r}. There are {', '.join(ROLES)}.")
        return [site for site in self.all_sites() if _has_role(site, role)]

    def select(self, selector: str) -> list[Site]:
        """The sites that a selector means.

        Its terms are joined by commas: roles ("norm", "conv"), paths with wildcards ("blocks.*.linear"; a container
        stands for all in it), the places "stem", "blocks", "head", and "all". Roles add up, paths add up, and a site
        must be in both. "not TERM" takes away; "first", "last", "not first", "not last" then count what is left.
        """
        terms = [term.strip() for term in selector.split(",") if term.strip()]
        wanted = [term for term in terms if not term.startswith("not ") and term not in ("first", "last", "all")]
        away = [term.removeprefix("not ").strip() for term in terms if term.startswith("not ")]
        roles = [term for term in wanted if term in ROLES]
        paths = [term for term in wanted if term not in ROLES]
        if not wanted and "all" not in terms and not away:
            raise ValueError(f"The selection {selector!r} names nothing. Name a role ({', '.join(ROLES)}) or a path.")
        for term in [*paths, *away]:
            self._check_term(term, selector)
        found = [site for site in self.all_sites() if site.role or paths]
        found = [site for site in found if not roles or any(_has_role(site, role) for role in roles)]
        found = [site for site in found if not paths or any(self._under(site, path) for path in paths)]
        found = [site for site in found if not any(self._meant(site, term) for term in away)]
        return _positions(found, terms)

    def width_role(self, name: str) -> str:
        """What widening the model does to a parameter: "input" (grows in its outputs), "hidden" (in both), "output"
        (in its inputs) or "vector" (biases, gains)."""
        parameter = dict(self.module.named_parameters())[name]
        owner = _PARAMETRIZED.sub(r"\1", name).rpartition(".")[0]
        weights = [site.path for site in self.all_sites() if site.role in ("linear", "conv", "attention")]
        if parameter.dim() < 2 or (_PARAMETRIZED.search(name) and not name.endswith(("original", "original1"))):
            return "vector"
        if any(m is self.module.get_submodule(owner) for m in self.head.modules()):
            return "output"
        if self._in_stem(owner) or (weights and owner == weights[0] and not self._stem_has_weights()):
            return "input"
        return "input" if isinstance(self.module.get_submodule(owner), nn.Embedding) else "hidden"

    @contextmanager
    def taps(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Within the context, a forward pass leaves the outputs of the named modules in the dictionary."""
        taken: dict[str, Any] = {}
        handles = []
        try:
            for name in names:
                module = self._named(name)
                handles.append(
                    module.register_forward_hook(lambda _m, _i, out, name=name: taken.__setitem__(name, out))
                )
            yield taken
        finally:
            for handle in handles:
                handle.remove()

    def tied(self) -> list[Group]:
        """The groups of channels that must vanish or permute together. Raises ValueError where they cannot be found."""
        if self.example is None:
            raise ValueError(f"{type(self.module).__name__} says no example of its input, which its channels need.")
        return find_groups(self.module, self.example)

    # -- finding -------------------------------------------------------------------------------------------------------

    def _find(self) -> list[Site]:
        modules = dict(self.module.named_modules())
        leaves = [path for path, module in modules.items() if path and _stands(path, modules)]
        if self._order is not None:
            ran = [path for path in self._order if path in leaves]
            leaves = ran + [path for path in leaves if path not in set(ran)]
        sites: list[Site] = []
        for i, path in enumerate(leaves):
            module, (above, _, name) = modules[path], path.rpartition(".")
            before, after = leaves[i - 1] if i else "", leaves[i + 1] if i + 1 < len(leaves) else ""
            features = _features(module) or (sites[-1].features if sites else 0)
            role = role_of(module)
            sites.append(Site(path, module, modules[above], name, role, features, before, after, self._output_shapes))
        return sites

    def _output_shapes(self) -> dict[str, tuple[int, ...]]:
        if self._shapes is None:
            self._shapes = output_shapes(self.module, self.example) if self.example is not None else {}
        return self._shapes

    def _named(self, name: str) -> nn.Module:
        try:
            return self.module.get_submodule(name)
        except AttributeError:
            known = ", ".join(path for path, _ in self.module.named_modules() if path)
            raise ValueError(f"The model has no module {name!r}. It has {known}.") from None

    def _check_term(self, term: str, selector: str) -> None:
        if term in ROLES or term in ("first", "last") or any(self._under(site, term) for site in self.all_sites()):
            return
        known = ", ".join(site.path for site in self.all_sites())
        raise ValueError(
            f"In the selection {selector!r}, {term!r} is neither a role ({', '.join(ROLES)}) nor a module. "
            f"The model has {known}."
        )

    def _meant(self, site: Site, term: str) -> bool:
        return _has_role(site, term) if term in ROLES else term not in ("first", "last") and self._under(site, term)

    def _under(self, site: Site, pattern: str) -> bool:
        """Whether a site is at a path pattern, below it, or in the place ("stem", "blocks", "head") of that name."""
        if fnmatchcase(site.path, pattern) or fnmatchcase(site.path, pattern + ".*"):
            return True
        named: dict[str, Sequence[nn.Module | None]] = {"stem": [self.stem], "blocks": self.blocks, "head": [self.head]}
        places = named.get(pattern, [])
        return any(module is site.module for place in places if place is not None for module in place.modules())

    def _in_stem(self, path: str) -> bool:
        module = self.module.get_submodule(path)
        return self.stem is not None and any(m is module for m in self.stem.modules())

    def _stem_has_weights(self) -> bool:
        return self.stem is not None and any(p.dim() > 1 for p in self.stem.parameters())


class LeafTracer(torch.fx.Tracer):
    """Traces a model down to its places: norms, activations, weights, and what else is said to be one."""

    def __init__(self, leaf: Callable[[nn.Module], bool]):
        super().__init__()
        self.leaf = leaf

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (is_leaf(m) and type(m).__module__.startswith("torch.")) or self.leaf(m)


def trace(module: nn.Module, leaf: Callable[[nn.Module], bool] | None = None) -> torch.fx.Graph:
    """The graph of a model's forward pass. Raises ValueError with the reason where it cannot be traced."""
    try:
        return LeafTracer(leaf or is_leaf).trace(module)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{type(module).__name__} cannot be traced: {reason}. Avoid branches on values in its forward, or give it "
            "a method anatomy() that says what its stem, blocks and head are."
        ) from error


class Untold(Anatomy):
    """The anatomy of a model that does not tell it: such a model trains, with parts that need not know."""

    def __init__(self, reason: str):
        self.reason = reason

    def __getattr__(self, name: str) -> Any:
        raise ValueError(self.reason)


def anatomy_of(model: nn.Module) -> Anatomy:
    """What a model is made of, derived where it is a foreign module. Where neither tells, the reason is raised as
    ValueError when somebody asks."""
    try:
        return model.anatomy() if isinstance(model, Model) else derive(model)
    except ValueError as error:
        return Untold(str(error))


def derive(module: nn.Module, example: Tensor | None = None) -> Anatomy:
    """The anatomy of a module that does not tell it, from the order in which its modules run.

    The head is the last weight; the blocks are the longest list of modules that hold weights (else the children before
    the head); the stem is what is before them. Raises ValueError where the order cannot be found.
    """
    order = list(dict.fromkeys(str(node.target) for node in trace(module).nodes if node.op == "call_module"))
    modules = dict(module.named_modules())
    weights = [path for path in order if role_of(modules[path]) in ("linear", "conv")]
    if not weights:
        raise ValueError(f"{type(module).__name__} has no linear or convolution module: it has no head to speak of.")
    head = weights[-1]
    blocks = _find_blocks(module, head)
    first = next((i for i, path in enumerate(order) if blocks and _inside(modules[path], blocks[0])), 0)
    stem = next((modules[path] for path in order[:first] if path in weights), None)
    stem = stem if stem is not None else (modules[order[first - 1]] if first else None)
    before = order[: order.index(head)]
    features = modules[before[-1]] if before else None
    return Anatomy(
        module, stem=stem, blocks=blocks, features=features, head=modules[head], example=example, order=order
    )


def _find_blocks(module: nn.Module, head: str) -> list[nn.Module]:
    """The children of the container with the most weighted children, the head and what is around it left out."""
    best: list[nn.Module] = []
    for container in module.modules():
        if container is module or isinstance(container, (nn.Sequential, nn.ModuleList)):
            kept = [child for child in container.children() if any(p.dim() > 1 for p in child.parameters())]
            kept = [child for child in kept if not _inside(module.get_submodule(head), child)]
            inside = bool(best) and best[0] is container  # a list that was the only weighted child of its parent
            if len(kept) > len(best) or (len(kept) == len(best) and inside):
                best = kept
    return best


def _inside(module: nn.Module, outer: nn.Module) -> bool:
    return any(m is module for m in outer.modules())


def role_of(module: nn.Module) -> str:
    """The role of a module: what it says of itself, else what its type says, else nothing."""
    own = getattr(module, "role", "")
    if isinstance(own, str) and own and not any(True for _ in _children(module)):
        return own
    return next((role for role, types in _TYPES if isinstance(module, types)), own if isinstance(own, str) else "")


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one place: it has no modules inside but its weight maps, or its role makes it one."""
    inner = any(True for _ in _children(module))
    return not inner or role_of(module) in ("norm", "activation") or isinstance(module, nn.MultiheadAttention)


def example_input(offer: Offer, batch: int = 2, device: str = "meta") -> Tensor:
    """An input of the shape that a task offers, on a device without memory."""
    if offer.input == "tokens":
        return torch.zeros((batch, *offer.shape), dtype=torch.long, device=device)
    if offer.input == "nodes":  # a batch is all of them
        batch = offer.about["graph"].nodes
    return torch.zeros((batch, *offer.shape), dtype=torch.get_default_dtype(), device=device)


def staged(model: Any, offer: Offer) -> Anatomy:
    """The anatomy of a model that keeps its stages as `stem`, `blocks`, `pool` (the features) and `head`."""
    return Anatomy(
        model,
        stem=model.stem,
        blocks=list(model.blocks),
        features=model.pool,
        head=model.head,
        example=example_input(offer),
    )


def output_shapes(module: nn.Module, example: Tensor) -> dict[str, tuple[int, ...]]:
    """The shape of one sample's output of every module, from a pass in evaluation mode that leaves no trace.

    It runs where the module is: the first arithmetic on the meta device loads PyTorch's compiler, which takes seconds.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    modes = {m: m.training for m in module.modules()}

    def note(path: str, out: Any) -> None:
        if isinstance(out, Tensor):
            shapes[path] = tuple(out.shape[1:])

    handles = [
        m.register_forward_hook(lambda _m, _i, out, path=path: note(path, out)) for path, m in module.named_modules()
    ]
    try:
        module.eval()
        _pass(module, like(module, example))
    finally:
        for handle in handles:
            handle.remove()
        for m, mode in modes.items():
            m.training = mode
    return shapes


def _pass(module: nn.Module, example: Tensor) -> None:
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        module(torch.zeros_like(example, device=device))


def _stands(path: str, modules: dict[str, nn.Module]) -> bool:
    """Whether a module is a site: a place that is inside no other place, or attention, whose weights are sites too."""
    above = path
    while above := above.rpartition(".")[0]:
        if is_leaf(modules[above]):
            return False
    return is_leaf(modules[path]) or role_of(modules[path]) == "attention"


def _children(module: nn.Module) -> Iterator[nn.Module]:
    for name, child in module.named_children():
        if not (name == "parametrizations" and parametrize.is_parametrized(module)):
            yield child


def _has_role(site: Site, role: str) -> bool:
    return site.role == role or (role == "weight" and site.role in ("linear", "conv"))


def _features(module: nn.Module) -> int:
    size = next((getattr(module, name) for name in _SIZES if isinstance(getattr(module, name, None), int)), 0)
    normalized = getattr(module, "normalized_shape", None)
    return int(normalized[-1]) if normalized else size


def _positions(found: list[Site], terms: Sequence[str]) -> list[Site]:
    ends = [found[0]] * ("first" in terms) + [found[-1]] * ("last" in terms) if found else []
    if ends:
        found = [site for site in found if site in ends]
    start = 1 if "not first" in terms else 0
    stop = len(found) - 1 if "not last" in terms else len(found)
    return found[start:stop]
