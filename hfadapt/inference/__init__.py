"""Running adapted models: the frozen base packed once for this machine."""

from ..runtime.packing import is_packed, pack, unpack

__all__ = ["is_packed", "pack", "unpack"]
