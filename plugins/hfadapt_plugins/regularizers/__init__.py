"""The regularizers that ship with hfadapt, each registered through the same hook as a third party's."""

from __future__ import annotations

from hfadapt.plugins import Registry, hookimpl

__all__ = ["register_regularizers"]


@hookimpl
def register_regularizers(registry: Registry) -> None:
    """Register all regularizers of this package."""
    from .freeat import FreeAT
    from .freelb import FreeLB
    from .pgd import PGD
    from .r3f import R3F
    from .r4f import R4F
    from .r_drop import RDrop
    from .sam import SAM
    from .smart import SMART
    from .vat import VAT
    from .yopo import YOPO

    for regularizer in (SMART, FreeLB, FreeAT, PGD, YOPO, VAT, R3F, R4F, RDrop, SAM):
        registry.add(regularizer.name, regularizer)
