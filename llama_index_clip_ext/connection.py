"""The one way to a Milvus database: its client, its lock, and how long a call of it may take."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlparse

import grpc
from pymilvus import MilvusClient
from pymilvus.client.types import LoadState
from pymilvus.exceptions import MilvusException
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_before_delay,
    wait_exponential_jitter,
)

from . import lite
from .errors import StoreError, StoreUnavailableError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds. A server that is killed and started again answers within that; nobody waits for more.
DEFAULT_TIMEOUT = 30.0
_LONGEST_TIMEOUT = 1e9  # More than that is none at all to gRPC.

_FIRST_WAIT = 0.1  # Between two tries; doubled each time, and as much again by chance.
_LONGEST_WAIT = 2.0
_POLL = 0.1  # Between two looks at a collection that is being loaded.

# gRPC would take a minute to find that a connection leads nowhere, as to a machine that is gone,
# and wait up to two before it connects again to a server that was long away; and it would share
# one connection among a process's clients, and with the children that it forks.
_GRPC_OPTIONS = {
    "grpc.use_local_subchannel_pool": 1,
    "grpc.http2.ping_timeout_ms": 5_000,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 2_000,
}
_PASSING_STATUS = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
)
# What Milvus answers while it starts, recovers, moves data between its nodes, or is overloaded
# (milvus, pkg/util/merr/errors.go). A server of 2.3 that comes back says 1, 101 and 503.
_UNAVAILABLE = 2  # pymilvus's own, too, where it could not connect.
_NOT_LOADED = (101, 201)
_PASSING_CODES = frozenset(
    {
        *(_UNAVAILABLE, 4, 8, 12),  # Too many requests at once, or too fast; too few resources.
        *(*_NOT_LOADED, 103, 106, 202),  # A collection or partition that is being loaded.
        *(400, 401, 500, 501, 502, 503, 504, 600, 601, 602, 603),  # Replicas, channels, segments.
        *(901, 902, 903, 904, 905, 906),  # Nodes.
        10_001,  # Out of time, between its own parts.
    }
)
# Also what pymilvus gives to whatever has no code.
_MAY_BE_NOT_READY = 1
_NOT_READY_SAID = ("service not ready", "service unavailable")


class Connection:
    """A database that was reached, and through which every call of it goes.

    Attributes:
        address: Where it is, without credentials: a server's address, or an embedded file's path.
        is_lite: Whether it is an embedded file.
        timeout: Seconds that a call of a server may take, with all that is tried again.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        token: str = "",
        db_name: str = "",
        *,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        """Reach a database.

        Raises:
            StoreUnavailableError: If a server does not answer in time.
            StoreLockedError: If another process holds the embedded file.
            StoreError: If the database cannot be opened for another reason.
        """
        if not isinstance(timeout, (int, float)) or not 0 < timeout <= _LONGEST_TIMEOUT:
            raise ValueError(
                f"timeout is {timeout!r}, expected seconds, more than 0 and at most "
                f"{_LONGEST_TIMEOUT:g}"
            )
        address, credentials = split_credentials(os.fspath(uri))
        token = token or credentials
        self.timeout = timeout
        self.is_lite = lite.is_lite(address)
        self._pid = os.getpid()
        self._lock: AbstractContextManager[Any] = nullcontext()
        self._made: Counter[str] = Counter()
        self._is_closed = False
        self._closing = threading.Lock()
        self._has_told = False
        self._telling = threading.Lock()
        if self.is_lite:
            self.address = lite.lite_path(address)
            self._client, file_lock = lite.connect(self.address)
            self._lock, self._made = file_lock, file_lock.made
            return
        self.address = address
        _warn_if_exposed(address, has_token=bool(token))
        try:
            self._client = self._tried(
                "connecting", lambda left: _server_client(address, token, db_name, left())
            )
        except MilvusException as err:
            raise StoreError(
                f"cannot reach Milvus at {address}: {_reason(err)}; are the address, token and "
                "db_name right?"
            ) from err

    @property
    def client(self) -> MilvusClient:
        """The client, to be used by one thread at a time on an embedded file.

        Raises:
            StoreError: If the connection is closed, or was made in another process.
        """
        self._check_process()
        if self._is_closed:
            raise StoreError(f"the store of {self.address!r} is closed; open it again")
        return self._client

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """What makes several calls of an embedded file one; nothing on a server.

        Raises:
            StoreError: If the connection was made in another process.
        """
        self._check_process()
        return self._lock

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the client whose effect is the same if it is called again.

        On a server it is tried again, less and less often, until the timeout, if what failed may
        pass by itself. On an embedded file, which is in this process, nothing is.

        Args:
            method: Its name.
            *args: Its arguments; the first is the collection's name, if there is any.
            **kwargs: Its keyword arguments.

        Returns:
            What it returns.

        Raises:
            StoreUnavailableError: If the server did not do it in time.
            StoreError: If the connection is closed, or does not let the call through.
            MilvusException: If Milvus refuses it.
        """
        if self.is_lite:
            with self.lock, _quietly():
                result = getattr(self.client, method)(*args, **kwargs)
                if method == "create_collection":
                    self._made[args[0]] += 1
                return result

        def attempt(left: Callable[[], float]) -> Any:
            try:
                return getattr(self.client, method)(*args, timeout=left(), **kwargs)
            except MilvusException as err:
                if err.code in _NOT_LOADED and args:
                    # What a server that was started again may have forgotten.
                    self.client.load_collection(args[0], timeout=left(), _async=True)
                raise

        doing = f"{method} of collection {args[0]!r}" if args else method
        return self._tried(doing, attempt)

    def n_made(self, collection_name: str) -> int:
        """Return how often a collection of an embedded file was made meanwhile; 0 of a server."""
        return self._made[collection_name]

    def load(self, collection_name: str) -> None:
        """Have a collection loaded; wait as long as a server says that it is at it."""
        if self.is_lite:
            self.call("load_collection", collection_name)
            return
        self.call("load_collection", collection_name, _async=True)
        while self.call("get_load_state", collection_name)["state"] == LoadState.Loading:
            time.sleep(_POLL)

    def close(self) -> None:
        """Let go of the database; the last to close an embedded file unlocks it."""
        if self._pid != os.getpid():
            return  # It is the parent's, who goes on with it.
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
        try:
            with suppress(StoreError), self.lock:
                pass  # After the call that another thread may be in; or its file has failed.
        finally:  # Also after Ctrl-C: nobody closes it again.
            self._client.close()
            if self.is_lite:
                lite.disconnect(self.address)

    def _check_process(self) -> None:
        # First of all: in a forked child, a thread that is not there may hold the lock.
        if self._pid != os.getpid():
            raise StoreError(
                f"the store of {self.address!r} was opened in process {self._pid} and is of no use "
                f"in this one, {os.getpid()}, which was forked; call create_vector_store here"
            )

    def _tried(self, doing: str, attempt: Callable[[Callable[[], float]], T]) -> T:
        """Try until it succeeds, fails for good, or the time is up.

        Args:
            doing: What is tried, for the error.
            attempt: Takes what tells the seconds that are left.
        """
        started = time.monotonic()

        def left() -> float:
            return max(self.timeout - (time.monotonic() - started), _FIRST_WAIT)

        retrying = Retrying(
            retry=retry_if_exception(is_passing),
            stop=stop_before_delay(self.timeout),
            wait=wait_exponential_jitter(_FIRST_WAIT, _LONGEST_WAIT, jitter=_FIRST_WAIT),
            before_sleep=self._tell,
            reraise=True,
        )
        try:
            with _quietly():
                result = retrying(lambda: attempt(left))
        except Exception as err:
            if not is_passing(err):
                if isinstance(err, grpc.RpcError):  # Which has no message of its own.
                    raise StoreError(
                        f"Milvus at {self.address} refuses {doing}: {_reason(err)}"
                    ) from err
                raise
            seconds = time.monotonic() - started
            raise StoreUnavailableError(
                f"Milvus at {self.address} did not answer: {doing} failed for {seconds:.1f} s "
                f"({retrying.statistics['attempt_number']} tries), at last by: {_reason(err)}. Is "
                "it up, and reached from here? Once it is, do the same again: nothing that was "
                f"acknowledged is lost. timeout= is how long to wait (now {self.timeout:g} s)",
                address=self.address,
            ) from err
        self._has_told = False
        return result

    def _tell(self, state: RetryCallState) -> None:
        """Say once that the server is away: pymilvus would, with a traceback, for each try."""
        with self._telling:
            if self._has_told:
                return
            self._has_told = True
        error = state.outcome.exception() if state.outcome else None
        logger.warning(
            "Milvus at %s does not answer (%s); trying again for %g s",
            self.address,
            _reason(error),
            self.timeout,
        )


def split_credentials(uri: str) -> tuple[str, str]:
    """Take ``user:password@`` out of an address.

    Returns:
        The address without it, which may be shown; and what Milvus takes for a token, as it is.

    Raises:
        ValueError: If it is no address of a server, nor a path.
    """
    if not isinstance(uri, str):
        raise TypeError(f"uri is a {type(uri).__name__}, expected a path or an address")
    if lite.is_lite(uri) and "://" not in uri and uri.rstrip("/").endswith(".db"):
        return uri, ""  # A path, where @ is a character like others.
    scheme, separator, rest = uri.rpartition("://") if "://" not in uri else uri.partition("://")
    credentials, _, place = rest.rpartition("@")
    address = f"{scheme}{separator}{place}"
    if not lite.is_lite(uri):
        _check_address(address, separator)
    return address, credentials


def _check_address(address: str, separator: str) -> None:
    """Refuse what is no server's address; what of it may be a secret is not said."""
    if address.lower().startswith("unix:"):
        return
    if not separator:
        raise ValueError("uri starts as a server's address, and lacks the // of http://HOST:PORT")
    shown, has_more, _ = address.replace("#", "?").partition("?")
    if has_more:
        raise ValueError(
            f"uri is {shown} and a query or fragment, which Milvus takes none of; pass a token as "
            "token="
        )
    try:
        url = urlparse(address)
        is_place = bool(url.hostname) and url.port != 0
    except ValueError as err:
        raise ValueError(f"uri is {address!r}: {err}") from err
    if not is_place:
        raise ValueError(f"uri is {address!r}, expected http://HOST:PORT")
    if address.rstrip("/").endswith(".db"):
        raise ValueError(
            f"uri is {address!r}: a server's address does not end in .db, by which pymilvus knows "
            "embedded files; a database on it is db_name="
        )


def is_passing(err: BaseException | None) -> bool:
    """Whether a failure is none of the caller's, and may pass by itself."""
    if isinstance(err, grpc.RpcError):
        return err.code() in _PASSING_STATUS
    if not isinstance(err, MilvusException):
        return False
    if err.code == _UNAVAILABLE and isinstance(err.__cause__, grpc.RpcError):
        return is_passing(err.__cause__)  # pymilvus says this of a wrong token, too.
    # Some versions of pymilvus forget to call what gives the code.
    code = err.code() if callable(err.code) else err.code
    if code == _MAY_BE_NOT_READY:
        return any(saying in err.message for saying in _NOT_READY_SAID)
    return code in _PASSING_STATUS or code in _PASSING_CODES


def _reason(err: BaseException | None) -> str:
    """Say why a call failed, in the words of gRPC where they are the cause."""
    cause = err.__cause__ if isinstance(err, MilvusException) else err
    if isinstance(cause, grpc.RpcError):
        return f"{cause.code().name}: {cause.details()}"
    return str(err.message if isinstance(err, MilvusException) else err)


def _server_client(address: str, token: str, db_name: str, timeout: float) -> MilvusClient:
    """Reach a server by a channel of its own."""
    client = MilvusClient(
        address,
        token=token,
        db_name=db_name,
        timeout=timeout,
        dedicated=True,
        grpc_options=_GRPC_OPTIONS,
    )
    if not client._config.is_global:
        # pymilvus would connect anew, one thread after another under a lock of the whole process:
        # with a server that hangs, each waits for all before it. gRPC connects anew by itself.
        client._handler._on_rpc_error = _fail_at_once
    return client


def _fail_at_once(error: Exception) -> bool:
    """Have pymilvus hand over a failure, instead of trying again on its own."""
    if isinstance(error, grpc.RpcError):
        raise error
    return False


@lru_cache
def _warn_if_exposed(address: str, *, has_token: bool) -> None:
    """Say, once for each address, what others in the network can do."""
    url = urlparse(address)
    host = url.hostname or "localhost"
    if url.scheme.lower() == "unix" or _is_loopback(host):
        return
    lacks = []
    if url.scheme.lower() != "https":
        lacks.append("without TLS, so that all that is sent can be read and changed: use https://")
    if not has_token:
        lacks.append("without a token, so that it may let in anybody: turn its authentication on")
    if lacks:
        logger.warning("Milvus at %s is reached %s", host, "; and ".join(lacks))


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback or (mapped is not None and mapped.is_loopback)


_IS_CALLING: ContextVar[bool] = ContextVar("is_calling", default=False)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep pymilvus from logging an error, with its traceback, that is raised anyway."""
    token = _IS_CALLING.set(True)
    try:
        yield
    finally:
        _IS_CALLING.reset(token)


def _for_debugging(record: logging.LogRecord) -> bool:
    """Let only those who debug see what pymilvus says of a call of ours."""
    if not _IS_CALLING.get():
        return True
    record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
    return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


for _name in ("pymilvus.decorators", "pymilvus.client.connection_manager"):
    logging.getLogger(_name).addFilter(_for_debugging)
