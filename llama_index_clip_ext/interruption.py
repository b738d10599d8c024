"""Ctrl-C as a request to stop where nothing is lost, rather than wherever it strikes."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """Let the first Ctrl-C set an event, and only the next one raise ``KeyboardInterrupt``.

    Elsewhere than in the main thread, and where the program handles the signal itself, nothing is
    changed.

    Yields:
        The event, to be looked at between two steps.
    """
    stop = threading.Event()

    def handle(signum: int, frame: FrameType | None) -> None:
        if stop.is_set():
            signal.default_int_handler(signum, frame)
        stop.set()
        logger.warning("stopping once what is embedded is stored; Ctrl-C again stops at once")

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield stop
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
