"""Ctrl-C as a request that is answered between two steps.

An exception that is raised wherever a signal happens to arrive can be lost on its way: nnsight, for one, catches
everything that is raised inside a trace, and what a destructor raises is only printed.
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
    """Whether Ctrl-C was pressed (SIGINT), or the process asked to end (SIGTERM)."""

    made: bool = False


@contextmanager
def noticed_interruptions(answer: str) -> Iterator[StopRequest]:
    """Turn the first signal into a request, and only the second one into a ``KeyboardInterrupt`` on the spot.

    Outside of the main thread, where Python lets nobody handle signals, nothing changes.

    Args:
        answer: what is logged at the first signal.
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
