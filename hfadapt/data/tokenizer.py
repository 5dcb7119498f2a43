"""The tokenizer of a base, which must know words."""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ..adapters.model_source import model_path
from ..errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["check_tokenizer", "load_tokenizer", "sole_use"]

_locks: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def sole_use(tokenizer: PreTrainedTokenizerBase) -> AbstractContextManager[Any]:
    """Hold a tokenizer alone among threads for as long as it reads texts.

    How texts are cut and padded is kept in the tokenizer, which each call sets before it reads: of two threads that ask
    for other lengths, one gets the other's, without an error (``findings/tokenizers-threads-truncation.sh``).
    """
    with _making:
        return _locks.setdefault(tokenizer, threading.RLock())


def load_tokenizer(name: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base, by name or from its folder.

    Raises:
        DataError: there is none. transformers then makes one for some families that knows special tokens only, with
            which every word of every text is unknown.
    """
    from transformers import AutoTokenizer

    try:
        found: Any = AutoTokenizer.from_pretrained(model_path(os.fspath(name)))
    except (ValueError, OSError, ImportError) as error:
        got = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise DataError(
            "no tokenizer can be loaded",
            where=str(name),
            got=got,
            allowed="a folder with tokenizer.json or the like, or a name on the hub",
            try_=_CURE,
        ) from error
    check_tokenizer(found, str(name))
    return found


_CURE = "tokenizer.save_pretrained(folder) with the tokenizer that the base was trained with"


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Raise ``DataError`` if a tokenizer knows hardly more than its special tokens.

    The fallbacks for SentencePiece know one or two signs for spaces besides.
    """
    words = len(tokenizer) - len(set(tokenizer.all_special_ids))
    if words <= 2:
        raise DataError(
            "the tokenizer knows no words: every text would be unknown tokens",
            where=where,
            got=f"{type(tokenizer).__name__} with {len(tokenizer)} tokens, all special",
            allowed="the tokenizer of the base",
            try_=_CURE,
        )
