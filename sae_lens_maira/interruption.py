"""Handles Ctrl-C between two steps, not in the middle of one.

An exception that is raised when a signal arrives can be lost: nnsight catches every exception inside a trace, and an
exception in a destructor is only printed.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)


class StopRequest:
    """Its ``made`` is set once SIGINT (Ctrl-C) or SIGTERM has been received."""

    made: bool = False


@contextmanager
def noticed_interruptions(answer: str) -> Iterator[StopRequest]:
    """Turn the first signal into a request, and the second one into an immediate ``KeyboardInterrupt``.

    Outside the main thread, where Python does not allow signal handlers, this does nothing.

    Args:
        answer: message that is logged at the first signal.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def notice(_number: int, _frame: Any) -> None:
        if request.made:
            raise KeyboardInterrupt
        request.made = True
        logger.warning(answer)

    before = {number: signal.signal(number, notice) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
