"""AdapterHub's folders (the library ``adapters``, before: adapter-transformers)."""

from .format import AdapterHubFormat

__all__ = ["AdapterHubFormat"]
