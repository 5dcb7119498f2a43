"""What several methods are made of: the down-up projection, per-row application, initial values."""

from .checks import require_activation, require_scale
from .initial import INITS, init_pair, init_projection
from .rows import change_rows
from .updown import UpDown, UpDownDelta, UpDownWeights, updown_variant

__all__ = [
    "INITS",
    "UpDown",
    "UpDownDelta",
    "UpDownWeights",
    "change_rows",
    "init_pair",
    "init_projection",
    "require_activation",
    "require_scale",
    "updown_variant",
]
