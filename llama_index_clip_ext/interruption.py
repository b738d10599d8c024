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
    stop = put_off("stopping once what is embedded is stored; Ctrl-C again stops at once")
    try:
        yield stop or threading.Event()
    finally:
        if stop:
            put_back()


def put_off(saying: str) -> threading.Event | None:
    """Let the first Ctrl-C from now on say something and set an event, as `stop_on_interrupt` does.

    Returns:
        The event, until `put_back`; ``None`` if nothing was changed.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return None
    stop = threading.Event()

    def handle(signum: int, frame: FrameType | None) -> None:
        if stop.is_set():
            signal.default_int_handler(signum, frame)
        stop.set()
        logger.warning(saying)

    signal.signal(signal.SIGINT, handle)
    return stop


def put_back() -> None:
    """Let Ctrl-C raise ``KeyboardInterrupt`` again."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
