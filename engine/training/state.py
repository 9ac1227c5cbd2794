"""The one mechanism by which a part's state reaches a checkpoint and comes back.

Whatever a part keeps in attributes is state, except its settings (they come from the recipe) and names that start with
an underscore (scratch). An object with `state()`, plain data and tensors, and `load(state)` is kept by these (an
environment, a buffer). What cannot be saved is refused by name, so that nothing is lost silently.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.errors import CheckpointError
from engine.parts import Value, is_part

PLAIN = (str, int, float, bool, type(None), complex, bytes)


def settings_names(part: Any) -> frozenset[str]:
    """The constructor's parameters: attributes of these names are settings."""
    return frozenset(inspect.signature(type(part)).parameters)


def capture(part: Any) -> dict[str, Any]:
    """A part's state as tensors and plain data."""
    settings = settings_names(part)
    state = {}
    for name, value in vars(part).items():
        if name.startswith("_") or (name in settings and not _nested(value)):
            continue
        where = f"{type(part).__name__}.{name}"
        state[name] = _encode(value, where)
    return state


def restore(part: Any, state: dict[str, Any], device: torch.device) -> None:
    """Puts a captured state back; objects that hold state (modules, optimizers, generators) are filled in place."""
    for name, value in state.items():
        setattr(part, name, _decode(value, getattr(part, name, None), device))


def pack(value: Any, where: str) -> Any:
    """Plain data and tensors in the form that a checkpoint holds."""
    return _encode(value, where)


def unpack(value: Any, device: torch.device) -> Any:
    """What `pack` was given."""
    return _decode(value, None, device)


def _nested(value: Any) -> bool:
    """Whether a setting is an object with state of its own."""
    return is_part(value) or isinstance(value, Value)


def _stateful(value: Any) -> bool:
    """Whether an object says its state by itself, and takes it back."""
    return all(callable(getattr(value, name, None)) for name in ("state", "load"))


def _encode(value: Any, where: str) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {"$array": torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, torch.Generator):
        return {"$generator": value.get_state()}
    if isinstance(value, nn.Module):
        return {"$module": value.state_dict()}
    if isinstance(value, torch.optim.Optimizer):
        return {"$optimizer": value.state_dict()}
    if _nested(value):
        settings = settings_names(value)
        kept = {k: v for k, v in vars(value).items() if not k.startswith("_") and (k not in settings or _nested(v))}
        return {"$part": {k: _encode(v, f"{where}.{k}") for k, v in kept.items()}}
    if isinstance(value, dict):
        return {"$dict": [(k, _encode(v, f"{where}[{k!r}]")) for k, v in value.items()]}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return {f"${type(value).__name__}": [_encode(v, f"{where}[{i}]") for i, v in enumerate(items)]}
    if _stateful(value):
        return {"$state": _encode(value.state(), where)}
    raise CheckpointError(
        f"{where} is a {type(value).__name__}, which a checkpoint cannot hold. Keep tensors, modules, generators, "
        "objects with state() and load(), or plain data in attributes, or start the name with an underscore and make "
        "it again in setup()."
    )


def _decode(value: Any, old: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(old.device if isinstance(old, Tensor) else device)
    if not isinstance(value, dict):
        return value
    ((mark, content),) = value.items()
    if mark == "$array":
        return content.cpu().numpy()
    if mark == "$generator":
        generator = old if isinstance(old, torch.Generator) else torch.Generator(device)
        generator.set_state(content.cpu())
        return generator
    if mark in ("$module", "$optimizer"):
        old.load_state_dict(content)
        return old
    if mark == "$state":
        old.load(_decode(content, None, device))
        return old
    if mark == "$part":
        for name, inner in content.items():
            setattr(old, name, _decode(inner, getattr(old, name, None), device))
        return old
    if mark == "$dict":
        before = old if isinstance(old, dict) else {}
        return {k: _decode(v, before.get(k), device) for k, v in content}
    items = list(old) if isinstance(old, list | tuple) else []
    items += [None] * (len(content) - len(items))
    decoded = [_decode(v, items[i], device) for i, v in enumerate(content)]
    return {"$list": list, "$tuple": tuple, "$set": set, "$frozenset": frozenset}[mark](decoded)
