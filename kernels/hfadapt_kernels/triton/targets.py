"""The card families that the Triton kernels are compiled for, their limits, and which of them a device belongs to."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

__all__ = ["TARGETS", "Target", "target_of"]


@dataclass(frozen=True)
class Target:
    """A card family.

    Attributes:
        backend: ``cuda`` or ``hip``.
        arch: What Triton calls it.
        warp: Threads of a warp.
        registers: Registers that one thread may have.
        register_file: Registers that one block may have; 0 where a block's waves may wait for each other's.
        shared: Bytes of shared memory that one block may have.
        tensor_columns: Columns of tensor memory that one block may have.
    """

    backend: str
    arch: int | str
    warp: int
    registers: int
    register_file: int
    shared: int
    tensor_columns: int = 0

    def registers_of(self, warps: int) -> int:
        """Registers that each thread of a block of ``warps`` warps may have."""
        return min(self.registers, self.register_file // (warps * self.warp)) if self.register_file else self.registers


# CUDA C++ programming guide, technical specifications per compute capability (shared memory: the opt-in maximum of a
# block); AMD CDNA 3 ISA guide: 512 vector registers of a lane, 64 KiB of local data share of a workgroup.
TARGETS = {
    # An A100 has 163 KiB; the cards that take the same configurations (8.6, 8.9, 12.0) have 99.
    "sm_80": Target("cuda", 80, 32, 255, 65536, 99 * 1024),
    "sm_90": Target("cuda", 90, 32, 255, 65536, 227 * 1024),
    "sm_100": Target("cuda", 100, 32, 255, 65536, 227 * 1024, 512),
    "gfx942": Target("hip", "gfx942", 64, 512, 0, 64 * 1024),
}


@functools.cache
def target_of(device: torch.device) -> str:
    """The target whose committed configurations a device takes; ``sm_80``, the smallest NVIDIA one, for the rest."""
    if device.type != "cuda":
        return "sm_80"
    if torch.version.hip is not None:
        return "gfx942"
    return {9: "sm_90", 10: "sm_100"}.get(torch.cuda.get_device_capability(device)[0], "sm_80")
