"""Which adapter each row of a batch uses: compositions, task ids, and the routing of a forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors.first_use import on_first_use

if TYPE_CHECKING:
    from .composition import Arrow as Arrow
    from .composition import Average as Average
    from .composition import Composition as Composition
    from .composition import Fuse as Fuse
    from .composition import Parallel as Parallel
    from .composition import Router as Router
    from .composition import Stack as Stack
    from .context import current as current
    from .context import use_routing as use_routing
    from .routing import Routing as Routing
    from .routing import Rows as Rows
    from .routing import all_tasks_take_part as all_tasks_take_part

# compositions are read from recipes without torch, which the routing of a pass needs
_HOMES = {
    "Arrow": ".composition",
    "Average": ".composition",
    "Composition": ".composition",
    "Fuse": ".composition",
    "Parallel": ".composition",
    "Router": ".composition",
    "Stack": ".composition",
    "Routing": ".routing",
    "Rows": ".routing",
    "all_tasks_take_part": ".routing",
    "current": ".context",
    "use_routing": ".context",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]

__getattr__ = on_first_use(__name__, _HOMES)
