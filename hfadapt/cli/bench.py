"""``hfadapt bench``: the kernels against their rivals on this machine, and what they take of GPUs."""

from __future__ import annotations

import click

from .bench_adapterdrop import adapterdrop
from .bench_engine import engine
from .bench_ops import ops
from .bench_regularizers import regularizers
from .bench_static import triton_static

__all__ = ["bench"]


@click.group()
def bench() -> None:
    """Measure the kernels on this machine."""


bench.add_command(adapterdrop)
bench.add_command(engine)
bench.add_command(ops)
bench.add_command(regularizers)
bench.add_command(triton_static)
