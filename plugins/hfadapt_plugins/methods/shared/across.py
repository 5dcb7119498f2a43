"""One set of down-up parameters for all layers of a stack."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from hfadapt import Site

from .updown import HasUpDown, UpDownWeights

__all__ = ["SharedUpDown"]


class SharedUpDown(nn.Module):
    """The parameters that the layers of one adapter share (Rücklé et al. 2021, cross-layer sharing).

    Args:
        config: Says the form at a site.
        places: Every site of the adapter; sites of one slot in one stack share a set.
    """

    def __init__(self, config: HasUpDown, places: Iterable[Site]) -> None:
        super().__init__()
        self.sets = nn.ModuleDict()
        for site in places:
            key = _key(site)
            if key not in self.sets:
                self.sets[key] = UpDownWeights(config.updown(site), site.read_width, site.width)

    def weights_of(self, site: Site) -> nn.Module:
        """Return the set that serves ``site``."""
        return self.sets[_key(site)]


def _key(site: Site) -> str:
    return f"{site.stack}__{site.slot}".replace(".", "_")
