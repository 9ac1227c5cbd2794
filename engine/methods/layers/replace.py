"""The technique that puts a layer in the place of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from engine.fields import LayerPart, Sites
from engine.kit.anatomy import Anatomy, Site, anatomy_of
from engine.parts import Task, Technique, technique

if TYPE_CHECKING:
    from engine.training.run import Run


@technique(
    name="Replace layers",
    example={"techniques": [{"use": "replace", "layer": {"use": "weight-norm"}}]},
)
class Replace(Technique):
    """Puts a layer in the place of other modules. This is how any layer of the library gets into any model.

        model[site] <- layer(site)   for every selected site, before the optimizer exists

    Helps: Trying another norm, activation or weight parametrization without writing a model.
    Hurts: A model tuned for the modules that it had may need another learning rate.
    Cost: That of the layer.

    Args:
        layer: The layer to put in.
        sites: Where: a role, paths with wildcards, "not first", "not last", joined by commas. Empty: wherever the
            layer's role fits.
    """

    def __init__(self, layer: LayerPart, sites: Sites = ""):
        self._layer = layer
        self.sites = sites
        self.replaced: list[str] = []

    def prepare_model(self, run: Run, model: nn.Module) -> nn.Module:
        anatomy = anatomy_of(model)
        sites = selected(anatomy, self._layer, self.sites)
        for site in sites:
            site.put(_made(self._layer, site))
        self.replaced = [site.path for site in sites]
        run.note(f"Replaced {len(sites)} modules: {', '.join(self.replaced)}.")
        return model

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        layer, sites = settings["layer"], settings["sites"]
        if not sites and not callable(layer):
            return None  # a layer that is not built yet has no role; prepare_model will say
        try:
            for site in selected(anatomy, layer, sites):
                if callable(layer):
                    _made(layer, site)
        except ValueError as error:
            return str(error)
        return None


def selected(anatomy: Anatomy, layer: Any, sites: str) -> list[Site]:
    """The sites to replace. Raises ValueError where there are none."""
    where = sites or getattr(getattr(layer, "cls", layer), "role", "") or "all"
    found = anatomy.select(where)
    if not found:
        roles = sorted({site.role for site in anatomy.all_sites() if site.role})
        raise ValueError(
            f'The model has no module that "{where}" selects, so nothing can be replaced. It has {", ".join(roles)}: '
            "name one of these as the sites, or give the model what you selected."
        )
    return found


def _made(layer: Any, site: Site) -> nn.Module:
    try:
        return layer(site)
    except ValueError as error:
        raise ValueError(f"At {site.path}: {error}") from error
