"""A circuit breaker: after several failures in a row, calls are refused at once instead of each waiting for a timeout.

``closed``: calls go through, and ``failures`` of them in a row open it. ``open``: calls are refused for ``reset_s``
seconds. ``half-open``: one call is let through as a probe, the others are refused; it closes the breaker or opens it
again.

Written here because pybreaker 1.4 holds its lock while a call runs, so that the environments of one process would
search one after the other, and purgatory 3.0 lets every call through when half-open.

Invariant: the lock is never held while a call runs, and every ``enter`` is followed by one ``leave``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half-open"


class CircuitBreaker:
    """Counts failures of a server; safe to use from several threads.

    Args:
        failures: Failures in a row that open it.
        reset_s: Seconds it stays open.
        clock: Seconds that never run backwards.
    """

    def __init__(self, failures: int, reset_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._threshold = failures
        self._reset_s = reset_s
        self._clock = clock
        self._lock = threading.Lock()
        self._failed = 0
        self._opened_at: float | None = None
        self._probing = False

    @property
    def state(self) -> str:
        """``closed``, ``open`` or ``half-open``."""
        with self._lock:
            return self._state()

    def enter(self) -> bool | None:
        """Asks to make a call.

        Returns:
            Whether the call is a probe, or None where it is refused.
        """
        with self._lock:
            state = self._state()
            if state == CLOSED:
                return False
            if state == OPEN or self._probing:
                return None
            self._probing = True
            return True

    def leave(self, *, probe: bool, failed: bool | None) -> None:
        """Tells how a call ended.

        Args:
            probe: What ``enter`` returned.
            failed: Whether the server failed; None where the call says nothing of it, such as one that was interrupted.
        """
        with self._lock:
            if probe:
                self._probing = False
            elif self._opened_at is not None:
                return  # began before the breaker opened: says nothing of the server now
            if failed is None:
                return
            self._failed = self._failed + 1 if failed else 0
            if not failed:
                self._opened_at = None
            elif probe or self._failed >= self._threshold:
                self._opened_at = self._clock()

    def _state(self) -> str:
        if self._opened_at is None:
            return CLOSED
        return OPEN if self._clock() < self._opened_at + self._reset_s else HALF_OPEN
