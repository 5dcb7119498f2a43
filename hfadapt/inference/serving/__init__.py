"""An engine behind HTTP: requests of many clients gathered into batches, with limits on everything that they send.

What needs the extra ``serve`` stands in the modules ``app``, ``metrics`` and ``server``; the others need nothing.
"""

from .admin import Admin
from .batcher import Batcher
from .limits import Limits

__all__ = ["Admin", "Batcher", "Limits"]
