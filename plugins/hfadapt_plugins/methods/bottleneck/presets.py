"""Ready bottleneck configs under the names that papers and AdapterHub use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hfadapt import MethodConfig, MethodPreset

from ..invertible import Invertible
from .config import Bottleneck, LayerNorms

__all__ = [
    "DOUBLE_SEQ_BN",
    "DOUBLE_SEQ_BN_INV",
    "HOULSBY",
    "PAR_BN",
    "PFEIFFER",
    "SEQ_BN",
    "SEQ_BN_INV",
    "double_seq_bn_inv",
    "houlsby",
    "par_bn",
    "pfeiffer",
    "seq_bn_inv",
]


def houlsby(**fields: Any) -> Bottleneck:
    """``LN(f + a + U silu(D f))`` after attention and FFN (Houlsby et al. 2019), in AdapterHub's form."""
    return Bottleneck(**{"on": ("attention", "ffn"), "non_linearity": "silu", **fields})


def pfeiffer(**fields: Any) -> Bottleneck:
    """``LN(f + a + U relu(D LN(f + a)))`` after the FFN (Pfeiffer et al. 2021): the base's norm is applied twice."""
    return Bottleneck(**{"norms": LayerNorms(original_ln_before=True), **fields})


def par_bn(**fields: Any) -> Bottleneck:
    """``LN(f + a + 4 U relu(D a))`` beside the FFN (He et al. 2022), in AdapterHub's form."""
    return Bottleneck(
        **{"is_parallel": True, "reduction_factor": 2, "scaling": 4.0, "init": "identity", **fields},
    )


def seq_bn_inv(**fields: Any) -> tuple[MethodConfig, ...]:
    """``pfeiffer`` with an invertible adapter of the embeddings (MAD-X)."""
    config = pfeiffer(**fields)
    return config, Invertible(non_linearity=config.non_linearity)


def double_seq_bn_inv(**fields: Any) -> tuple[MethodConfig, ...]:
    """``houlsby`` with an invertible adapter of the embeddings."""
    config = houlsby(**fields)
    return config, Invertible(non_linearity=config.non_linearity)


def _preset(name: str, build: Callable[..., Any], paper: str, summary: str, export: str = "") -> MethodPreset:
    return MethodPreset(
        name,
        build,
        export=export,
        paper=paper,
        summary=summary,
        family="bottleneck",
        tests="tests/unit/methods/test_bottleneck.py",
    )


_MADX = ("Pfeiffer et al. 2020, arXiv:2005.00052", "serial adapters and an invertible adapter")
_HOULSBY = ("Houlsby et al. 2019, arXiv:1902.00751", "serial adapters after attention and FFN")
_PFEIFFER = ("Pfeiffer et al. 2021, arXiv:2005.00247", "one serial adapter after the FFN")
_PARALLEL = ("He et al. 2022, arXiv:2110.04366", "one scaled adapter beside the FFN")

HOULSBY = _preset("houlsby", houlsby, *_HOULSBY, "Houlsby")
DOUBLE_SEQ_BN = _preset("double_seq_bn", houlsby, *_HOULSBY)
PFEIFFER = _preset("pfeiffer", pfeiffer, *_PFEIFFER, "Pfeiffer")
SEQ_BN = _preset("seq_bn", pfeiffer, *_PFEIFFER)
SEQ_BN_INV = _preset("seq_bn_inv", seq_bn_inv, *_MADX)
DOUBLE_SEQ_BN_INV = _preset("double_seq_bn_inv", double_seq_bn_inv, *_MADX)
PAR_BN = _preset("par_bn", par_bn, *_PARALLEL)
