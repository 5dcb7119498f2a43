"""What a plain Trainer needs for several tasks: the mixture, callbacks, metrics of a whole evaluation, resuming."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors.first_use import on_first_use

if TYPE_CHECKING:
    from ..multitask.compute_metrics import MultiTaskMetrics as MultiTaskMetrics
    from ..multitask.macro import Macro as Macro
    from ..multitask.macro import macro_of as macro_of
    from ..multitask.metrics import METRICS as METRICS
    from ..multitask.metrics import Metric as Metric
    from ..multitask.metrics import RegisteredMetric as RegisteredMetric
    from ..multitask.metrics import Scored as Scored
    from ..multitask.metrics import find_metric as find_metric
    from ..multitask.metrics import register_metric as register_metric
    from .callbacks import EpochSync as EpochSync
    from .callbacks import IdleTaskGuard as IdleTaskGuard
    from .callbacks import RobustAdapterDrop as RobustAdapterDrop
    from .early_stopping import TaskEarlyStopping as TaskEarlyStopping
    from .mixture import TaskMixture as TaskMixture
    from .optimizer import task_optimizer as task_optimizer
    from .regularizers import Regularizer as Regularizer
    from .regularizers import regularize as regularize
    from .resume import last_checkpoint as last_checkpoint

# callbacks import transformers' trainer, which takes seconds: names are loaded on first use
_HOMES = {
    "EpochSync": ".callbacks",
    "IdleTaskGuard": ".callbacks",
    "RobustAdapterDrop": ".callbacks",
    "Regularizer": ".regularizers",
    "TaskEarlyStopping": ".early_stopping",
    "TaskMixture": ".mixture",
    "last_checkpoint": ".resume",
    "regularize": ".regularizers",
    "task_optimizer": ".optimizer",
    "METRICS": "..multitask.metrics",
    "Metric": "..multitask.metrics",
    "RegisteredMetric": "..multitask.metrics",
    "Scored": "..multitask.metrics",
    "find_metric": "..multitask.metrics",
    "register_metric": "..multitask.metrics",
    "Macro": "..multitask.macro",
    "macro_of": "..multitask.macro",
    "MultiTaskMetrics": "..multitask.compute_metrics",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]

__getattr__ = on_first_use(__name__, _HOMES)
