"""What runs inside a stock model's ``forward``: slots, hooks, and the state of an adapted model.

The names here are for authors of methods whose deltas do more than `hfadapt.Delta` asks of them: that keep earlier
tokens, share modules, read other tensors, or fuse adapters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors.first_use import on_first_use

if TYPE_CHECKING:
    from .attachment import Attachment as Attachment
    from .attachment import Fusion as Fusion
    from .attachment import Prepared as Prepared
    from .attachment import adapted_model as adapted_model
    from .attachment import deltas_of as deltas_of
    from .attachment import shared_modules as shared_modules
    from .delta_call import shape_like_batch as shape_like_batch
    from .delta_call import source_of as source_of
    from .kv_history import KVHistory as KVHistory
    from .kv_history import history_of as history_of
    from .kv_history import needs_earlier_tokens as needs_earlier_tokens
    from .leaf_hooks import TapInput as TapInput
    from .leaf_hooks import add_hook as add_hook
    from .leaf_hooks import remove_our_hooks as remove_our_hooks
    from .loss_terms import ask_loss_term as ask_loss_term
    from .numbering import takes_numbers as takes_numbers
    from .shards import refuse_sharded as refuse_sharded
    from .slot import applies as applies
    from .slot import fusion_key as fusion_key

# loaded on first use: the state of a model is asked for by code that never runs one
_HOMES = {
    "Attachment": ".attachment",
    "Fusion": ".attachment",
    "Prepared": ".attachment",
    "adapted_model": ".attachment",
    "deltas_of": ".attachment",
    "shared_modules": ".attachment",
    "KVHistory": ".kv_history",
    "history_of": ".kv_history",
    "needs_earlier_tokens": ".kv_history",
    "TapInput": ".leaf_hooks",
    "add_hook": ".leaf_hooks",
    "remove_our_hooks": ".leaf_hooks",
    "ask_loss_term": ".loss_terms",
    "takes_numbers": ".numbering",
    "refuse_sharded": ".shards",
    "applies": ".slot",
    "fusion_key": ".slot",
    "shape_like_batch": ".delta_call",
    "source_of": ".delta_call",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]

__getattr__ = on_first_use(__name__, _HOMES)
