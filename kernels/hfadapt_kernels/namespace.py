"""The names under which torch knows the ops of this copy of the package.

torch registers a name once in a process. A copy that is loaded beside the installed package (one from the Kernel Hub)
has a suffix of its own: `tools/kernel_hub.py` writes it here, and into the C++ library that goes with it.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["CPU_NAMESPACE", "NAMESPACE", "SUFFIX", "cpu_ops", "ops"]

SUFFIX = ""
#: of the ops that models call, which have gradients
NAMESPACE = f"hfadapt{SUFFIX}"
#: of the C++ functions below them
CPU_NAMESPACE = f"hfadapt_cpu{SUFFIX}"

# torch makes both when they are asked for; what is in them comes with `opaque.define` and with the library.
ops: Any = getattr(torch.ops, NAMESPACE)
cpu_ops: Any = getattr(torch.ops, CPU_NAMESPACE)
