"""Ready bottleneck configs under the names that papers and AdapterHub use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hfadapt import MethodConfig, MethodPreset

from ..invertible import Invertible
from .config import Bottleneck, LayerNorms

__all__ = ["PRESETS", "double_seq_bn_inv", "houlsby", "par_bn", "pfeiffer", "seq_bn_inv"]


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


_MADX = {"paper": "Pfeiffer et al. 2020, arXiv:2005.00052", "summary": "serial adapters and an invertible adapter"}
_HOULSBY = {"paper": "Houlsby et al. 2019, arXiv:1902.00751", "summary": "serial adapters after attention and FFN"}
_PFEIFFER = {"paper": "Pfeiffer et al. 2021, arXiv:2005.00247", "summary": "one serial adapter after the FFN"}
_PARALLEL = {"paper": "He et al. 2022, arXiv:2110.04366", "summary": "one scaled adapter beside the FFN"}


def _preset(name: str, build: Callable[..., Any], about: Mapping[str, str], export: str = "") -> MethodPreset:
    return MethodPreset(
        name,
        build,
        export=export,
        paper=about["paper"],
        summary=about["summary"],
        family="bottleneck",
        tests="tests/unit/methods/test_bottleneck.py",
    )


PRESETS = (
    _preset("houlsby", houlsby, _HOULSBY, "Houlsby"),
    _preset("double_seq_bn", houlsby, _HOULSBY),
    _preset("pfeiffer", pfeiffer, _PFEIFFER, "Pfeiffer"),
    _preset("seq_bn", pfeiffer, _PFEIFFER),
    _preset("seq_bn_inv", seq_bn_inv, _MADX),
    _preset("double_seq_bn_inv", double_seq_bn_inv, _MADX),
    _preset("par_bn", par_bn, _PARALLEL),
)
