"""Requests of many clients gathered into batches, each answered by one call of the engine."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .limits import Limits
from .refusals import Closing, TooBusy, TooLarge

if TYPE_CHECKING:
    from ..engine import Engine
    from ..predict import Prediction

__all__ = ["Batcher"]


@dataclass(frozen=True)
class _Waiting:
    """A request that waits, with texts, tasks and pairs of one length."""

    texts: Sequence[str]
    tasks: Sequence[str]
    pairs: Sequence[str | None]
    answer: Future[list[Prediction]] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """A queue of requests before an engine, and the thread that takes them from it.

    A batch is what came while the engine was busy with the one before. Where it was idle, the first request waits some
    milliseconds for others. A request that the engine refuses does not trouble those that it was gathered with.

    Args:
        engine: That answers.
        limits: Of queue, batch and request.
        answered: Called behind each batch, with its texts and the seconds that it took.
    """

    def __init__(
        self, engine: Engine, limits: Limits | None = None, answered: Callable[[int, float], None] = lambda *_: None
    ) -> None:
        self._engine = engine
        self._limits = limits or Limits()
        self._answered = answered
        self._changed = threading.Condition()
        self._queue: deque[_Waiting] = deque()
        self._texts = 0
        self._closing = False
        self._seconds_a_text = 0.0
        self._thread = threading.Thread(target=self._run, name="hfadapt-batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Texts that wait for the engine."""
        return self._texts

    @property
    def closing(self) -> bool:
        """Whether no more requests are taken."""
        return self._closing

    def submit(
        self, texts: Sequence[str], tasks: Sequence[str], pairs: Sequence[str | None]
    ) -> Future[list[Prediction]]:
        """Put a request into the queue.

        Args:
            texts: N texts, 1 or more.
            tasks: N task names.
            pairs: N second texts; None where there is none.

        Returns:
            The answers to come, in order; or what ``Engine.predict`` raises for this request alone.

        Raises:
            TooLarge: it holds more texts than a request may.
            TooBusy: the queue is full.
            Closing: `close` was called.
        """
        count, limits = len(texts), self._limits
        if count > limits.request_texts:
            raise TooLarge(
                "too many texts in one request",
                where="texts",
                got=f"{count:,}",
                allowed=f"at most {limits.request_texts:,}, each counted once for every task that it goes to",
                try_="several requests, which share batches all the same",
            )
        with self._changed:
            if self._closing:
                raise Closing("the server is about to stop", where="server", try_="another server, or this one later")
            if self._texts + count > limits.queue_texts:
                raise self._too_busy(count)
            waiting = _Waiting(texts, tasks, pairs)
            self._queue.append(waiting)
            self._texts += count
            self._changed.notify_all()
        return waiting.answer

    def close(self, seconds: float | None = None) -> None:
        """Take no more requests, answer those that wait, and return when that is done.

        Args:
            seconds: How long it may take; what waits then gets an error.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        with self._changed:
            left, self._texts = [*self._queue], 0
            self._queue.clear()
        for one in left:
            if one.answer.set_running_or_notify_cancel():
                one.answer.set_exception(Closing("the server stopped before it came to this request", where="server"))

    def _too_busy(self, count: int) -> TooBusy:
        error = TooBusy(
            "too many texts wait already",
            where="queue",
            got=f"{self._texts:,} wait, {count:,} come",
            allowed=f"at most {self._limits.queue_texts:,}",
            try_="again after the seconds that Retry-After says",
        )
        error.retry_after = min(60, max(1, math.ceil(self._seconds_a_text * self._texts)))
        return error

    def _run(self) -> None:
        while batch := self._next():
            started, texts = time.monotonic(), sum(len(one.texts) for one in batch)
            self._answer(batch)
            seconds = time.monotonic() - started
            self._seconds_a_text = seconds / texts
            self._answered(texts, seconds)

    def _next(self) -> list[_Waiting]:
        """Return what is answered next; nothing once the queue is closed and empty."""
        limits, batch, texts = self._limits, [], 0
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            if self._queue:
                left = self._queue[0].since + limits.wait_ms / 1000 - time.monotonic()
                self._changed.wait_for(lambda: self._texts >= limits.batch_texts or self._closing, max(0.0, left))
            while self._queue and (not batch or texts + len(self._queue[0].texts) <= limits.batch_texts):
                one = self._queue.popleft()
                self._texts -= len(one.texts)
                texts += len(one.texts)
                batch.append(one)
        return batch

    def _answer(self, batch: list[_Waiting]) -> None:
        """Answer requests together. One whose client is gone is left out."""
        batch = [one for one in batch if one.answer.running() or one.answer.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            found = self._engine.predict(
                [text for one in batch for text in one.texts],
                [task for one in batch for task in one.tasks],
                [pair for one in batch for pair in one.pairs],
            )
        except Exception as error:
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
            else:
                self._answer_apart(batch)
            return
        start = 0
        for one in batch:
            one.answer.set_result(found[start:][: len(one.texts)])
            start += len(one.texts)

    def _answer_apart(self, batch: list[_Waiting]) -> None:
        """Answer what was refused together: those that are refused alone get their error, the others go on."""
        good = []
        for one in batch:
            try:
                self._engine.check(one.texts, one.tasks, one.pairs)
            except Exception as error:
                one.answer.set_exception(error)
            else:
                good.append(one)
        # Where each could be read, it is the forward pass that failed.
        parts = [good] if len(good) < len(batch) else [[one] for one in good]
        for part in parts:
            self._answer(part)
