"""The one way to a Milvus database: its client, its lock, and how long a call of it may take."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypedDict, TypeVar
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
from .errors import (
    AnswerTooLargeError,
    CollectionNotFoundError,
    StoreError,
    StoreUnavailableError,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds. A server that is killed and started again answers within that; nobody waits for more.
DEFAULT_TIMEOUT = 30.0
_LONGEST_TIMEOUT = 1e9  # More than that is none at all to gRPC.

_FIRST_WAIT = 0.1  # Between two tries; doubled each time, and as much again by chance.
_LONGEST_WAIT = 2.0
_POLL = 0.1  # Between two looks at a collection that is being loaded.
# What a server may take to begin with it, whatever the timeout of a call.
_LOADS_WITHIN = 20.0
_SAY_LOADING = 5.0  # How often to say that it still is.

# gRPC would take a minute to find that a connection leads nowhere, as to a machine that is gone,
# and wait up to two before it connects again to a server that was long away; and it would share
# one connection among a process's clients, and with the children that it forks.
_GRPC_OPTIONS = {
    "grpc.use_local_subchannel_pool": 1,
    "grpc.http2.ping_timeout_ms": 5_000,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 2_000,
}
# What gRPC says of a certificate that is none of a CA's, or of another host.
_UNTRUSTED_SAID = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed")
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
_NO_COLLECTION = 100
# An answer beyond gRPC's limit (64 MiB from a server, 256 MiB from Milvus Lite), or beyond
# quotaAndLimits.limits.maxOutputSize, which 2.3 says of what a query node collects, too.
_TOO_LARGE_SAID = ("message larger than max", "exceed the limit size", "maxOutputSize")

# Threads that answer asynchronous calls of one store; a server that hangs blocks these alone.
_WORKERS = 32
_LITE_WORKERS = 4  # One at a time uses an embedded file.

# When an asynchronous call has to be answered, on the clock of `time.monotonic`.
_DEADLINE: ContextVar[float | None] = ContextVar("deadline", default=None)
_FIRST_DEADLINE: ContextVar[float | None] = ContextVar("first_deadline", default=None)


class TLSOptions(TypedDict, total=False):
    """What pymilvus takes to reach a server with its own CA or with client certificates.

    Attributes:
        server_pem_path: File with the certificate of the server or of its CA.
        server_name: Name in the server's certificate, where the address has another.
        ca_pem_path: File with the CA's certificate.
        client_pem_path: File with the client's certificate, for a server that asks for one.
        client_key_path: File with the client's key.
    """

    server_pem_path: str
    server_name: str
    ca_pem_path: str
    client_pem_path: str
    client_key_path: str


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
        tls: TLSOptions | None = None,
    ) -> None:
        """Reach a database.

        Raises:
            ValueError: If an option is for servers only and this is an embedded file, or the TLS
                options are incomplete.
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
        self.timeout = timeout
        self.is_lite = lite.is_lite(address)
        self._pid = os.getpid()
        self._lock: AbstractContextManager[Any] = nullcontext()
        self._file_lock: lite.FileLock | None = None
        self._workers: ThreadPoolExecutor | None = None
        self._is_closed = False
        self._closing = threading.Lock()
        self._has_told = False
        self._telling = threading.Lock()
        if self.is_lite:
            lite.lite_path(address, make=False)
            _refuse_server_options(token=token, db_name=db_name, tls=tls)
            self.address = lite.lite_path(address)
            self._client, self._file_lock = lite.connect(self.address)
            self._lock = self._file_lock
            self._finalizer = weakref.finalize(self, _ABANDONED.put, (self._client, self.address))
        else:
            self.address = address
            token = token or credentials
            _check_tls(address, tls or {})
            _warn_if_exposed(address, has_token=bool(token))
            try:
                self._client = self._retry(
                    "connecting", lambda left: _server_client(address, token, db_name, left(), tls)
                )
            except MilvusException as err:
                raise StoreError(
                    f"cannot reach Milvus at {address}: {_reason(err)}; check the address, token, "
                    "db_name and certificates"
                ) from err
            self._finalizer = weakref.finalize(self, _ABANDONED.put, (self._client, None))
        # The process's end closes everything by itself.
        self._finalizer.atexit = False
        _start_closer()

    @property
    def client(self) -> MilvusClient:
        """The client, to be used by one thread at a time on an embedded file.

        Raises:
            StoreError: If the connection is closed, or was made in another process.
        """
        self._check_process()
        self._check_open()
        return self._client

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreError(f"the store of {self.address!r} is closed; open it again")

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
            AnswerTooLargeError: If the answer exceeds what one message holds.
            StoreError: If the connection is closed, or Milvus refuses the call; its cause is
                pymilvus's exception.
        """
        doing = f"{method} of collection {args[0]!r}" if args else method
        try:
            return self._called(doing, method, args, kwargs)
        except (MilvusException, grpc.RpcError) as err:
            raise self._error(err, doing) from err

    def _called(self, doing: str, method: str, args: Any, kwargs: Any) -> Any:
        if self._file_lock:
            with self.lock, _quietly():
                result = getattr(self.client, method)(*args, **kwargs)
                if method == "create_collection":
                    self._file_lock.created[args[0]] += 1
                    self._file_lock.drop_corpus(args[0])
                    self._file_lock.unflushed.pop(args[0], None)
                return result

        def attempt(left: Callable[[], float]) -> Any:
            try:
                return getattr(self.client, method)(*args, timeout=left(), **kwargs)
            except MilvusException as err:
                if err.code in _NOT_LOADED and args:
                    # What a server that was started again may have forgotten.
                    self.client.load_collection(args[0], timeout=left(), _async=True)
                raise

        return self._retry(doing, attempt)

    def _error(self, err: Exception, doing: str) -> StoreError:
        """Return the package's error for one of pymilvus's or gRPC's."""
        reason = _reason(err)
        if any(said in reason for said in _TOO_LARGE_SAID):
            return AnswerTooLargeError(
                f"the answer of Milvus at {self.address} to {doing} exceeds what one message "
                f"holds: {reason}; ask for fewer rows"
            )
        if isinstance(err, MilvusException) and _code(err) == _NO_COLLECTION:
            return CollectionNotFoundError(
                f"{doing} in {self.address} failed: the collection does not exist; if it was "
                "dropped or renamed, open the store again with create_vector_store, which creates "
                f"it ({reason})"
            )
        return StoreError(f"{refusal(self.address)} {doing}: {reason}")

    def created(self, collection_name: str) -> int:
        """Return how often an embedded file's collection was created meanwhile; 0 of a server."""
        return self._file_lock.created[collection_name] if self._file_lock else 0

    @property
    def file_lock(self) -> lite.FileLock:
        """What the stores of an embedded file share.

        Raises:
            StoreError: If it is a server.
        """
        if self._file_lock is None:
            raise StoreError(f"{self.address} is not an embedded file")
        return self._file_lock

    def load(self, collection_name: str) -> None:
        """Have a collection loaded; wait as long as a server makes progress with it.

        A collection that is loaded already is left alone: a role that only reads may not load.

        Raises:
            StoreUnavailableError: If a server makes no progress within the timeout.
        """
        if self.is_lite:
            self.call("load_collection", collection_name)
            return
        if self._load_state(collection_name)[0] == LoadState.Loaded:
            return
        try:
            self.call("load_collection", collection_name, _async=True)
        except StoreError as err:
            if not _reason(err.__cause__).startswith("PERMISSION_DENIED"):
                raise
            # A role that only reads may not load, and before Milvus 2.4.10 may not even ask whether
            # the collection is loaded. If it is not, the first read says so.
            return
        started = moved = told = time.monotonic()
        progress, patience = -1, max(self.timeout, _LOADS_WITHIN)
        while True:
            state, loaded = self._load_state(collection_name)
            if state != LoadState.Loading:
                return
            now = time.monotonic()
            if loaded > progress:
                progress, moved = loaded, now
            elif now - moved > patience:
                raise StoreUnavailableError(
                    f"Milvus at {self.address} has been loading collection {collection_name!r} for "
                    f"{now - started:.0f} s and is stuck at {progress} %; it may lack memory, or a "
                    "query node. Look at the server's log, and open the store again; timeout= is "
                    f"how long to wait for progress (now {patience:g} s)",
                    address=self.address,
                )
            if now - told > _SAY_LOADING:
                told = now
                logger.warning(
                    "Milvus at %s is loading collection %r: %d %% after %.0f s",
                    *(self.address, collection_name, progress, now - started),
                )
            time.sleep(_POLL)

    def _load_state(self, collection_name: str) -> tuple[LoadState, int]:
        """Return whether a collection is loaded, and the percentage that is."""
        try:
            answer = self.call("get_load_state", collection_name)
        except StoreUnavailableError:
            raise
        except StoreError:
            return LoadState.NotLoad, 0  # A role that may not ask; loading will tell.
        # pymilvus gives the progress as a number or as text such as "40%".
        progress = str(answer.get("progress", 0)).rstrip("%")
        return answer["state"], int(progress) if progress.isdecimal() else 0

    @property
    def executor(self) -> ThreadPoolExecutor:
        """Threads for asynchronous calls, so that none waits for the loop's own.

        Raises:
            StoreError: If the connection is closed, or was made in another process.
        """
        self._check_process()
        with self._closing:
            self._check_open()
            if self._workers is None:
                count = _LITE_WORKERS if self.is_lite else _WORKERS
                self._workers = ThreadPoolExecutor(count, "clip-store")
            return self._workers

    def begin_in_time(self, function: Callable[[], T]) -> Callable[[], T]:
        """Return a function whose first call of a server ends with the timeout, counted from now.

        What it does after that may take longer: many nodes are added in several calls.
        """
        latest = time.monotonic() + self.timeout

        def begin() -> T:
            _FIRST_DEADLINE.set(latest)  # In a context that is the function's own.
            return function()

        return begin

    def _waited(self, doing: str) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"Milvus at {self.address} did not answer: {doing} waited {self.timeout:g} s for other "
            "calls of this store that are not answered, either",
            address=self.address,
        )

    def close(self) -> None:
        """Let go of the database; the last to close an embedded file unlocks it."""
        if self._pid != os.getpid():
            return  # It is the parent's, who goes on with it.
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
            self._finalizer.detach()
            if self._workers:
                self._workers.shutdown(wait=False)
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

    def _retry(self, doing: str, attempt: Callable[[Callable[[], float]], T]) -> T:
        """Try until it succeeds, fails for good, or the time is up.

        Args:
            doing: What is tried, for the error.
            attempt: Takes what tells the seconds that are left.
        """
        started = time.monotonic()
        given = [one for one in (_DEADLINE.get(), _FIRST_DEADLINE.get()) if one is not None]
        deadline = min([*given, started + self.timeout])
        if deadline <= started:
            raise self._waited(doing)

        def left() -> float:
            return max(deadline - time.monotonic(), _FIRST_WAIT)

        retrying = Retrying(
            retry=retry_if_exception(is_passing),
            stop=stop_before_delay(deadline - started),
            wait=wait_exponential_jitter(_FIRST_WAIT, _LONGEST_WAIT, jitter=_FIRST_WAIT),
            before_sleep=self._tell,
            reraise=True,
        )
        try:
            with _quietly():
                result = retrying(lambda: attempt(left))
        except Exception as err:
            if not is_passing(err):
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
        _FIRST_DEADLINE.set(None)
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


def refusal(address: str) -> str:
    """Return what an error begins with where Milvus refuses a call."""
    return f"Milvus at {address} refuses"


def is_passing(err: BaseException | None) -> bool:
    """Whether a failure is none of the caller's, and may pass by itself."""
    if isinstance(err, grpc.RpcError):
        is_refused = any(said in (err.details() or "") for said in _UNTRUSTED_SAID)
        return err.code() in _PASSING_STATUS and not is_refused
    if not isinstance(err, MilvusException):
        return False
    if err.code == _UNAVAILABLE and isinstance(err.__cause__, grpc.RpcError):
        return is_passing(err.__cause__)  # pymilvus says this of a wrong token, too.
    code = _code(err)
    if code == _MAY_BE_NOT_READY:
        return any(saying in err.message for saying in _NOT_READY_SAID)
    return code in _PASSING_STATUS or code in _PASSING_CODES


def _code(err: MilvusException) -> Any:
    # Some versions of pymilvus forget to call what gives the code.
    return err.code() if callable(err.code) else err.code


def _reason(err: BaseException | None) -> str:
    """Say why a call failed, in the words of gRPC where they are the cause."""
    cause = err.__cause__ if isinstance(err, MilvusException) else err
    if isinstance(cause, grpc.RpcError):
        return f"{cause.code().name}: {cause.details()}"
    return str(err.message if isinstance(err, MilvusException) else err)


def _refuse_server_options(*, token: str, db_name: str, tls: TLSOptions | None) -> None:
    """Refuse what an embedded file would ignore, such as the database that keeps tenants apart.

    Raises:
        ValueError: If there is any.
    """
    given = {"token": token, "db_name": db_name, **(tls or {})}
    for name, value in given.items():
        if value:
            raise ValueError(
                f"{name} is for a Milvus server, and uri is an embedded file, which has neither "
                "databases nor passwords; leave it out, or keep collections apart by another .db "
                "file or collection_name"
            )


def _check_tls(address: str, tls: TLSOptions) -> None:
    """Refuse TLS options that would be ignored, and files that do not exist.

    Raises:
        ValueError: If the address is not https, or a client's certificate comes without its key
            or CA.
        StoreError: If a file does not exist.
    """
    if not tls:
        return
    if urlparse(address).scheme.lower() != "https":
        raise ValueError(f"{next(iter(tls))} is for TLS, and uri is {address!r}; use https://")
    mutual = ("ca_pem_path", "client_pem_path", "client_key_path")
    given = [name for name in mutual if tls.get(name)]
    if given and len(given) < len(mutual) and given != ["ca_pem_path"]:
        missing = [name for name in mutual if name not in given]
        raise ValueError(f"{given[0]} also needs {' and '.join(missing)}")
    for name, path in tls.items():
        if name != "server_name" and not Path(str(path)).is_file():
            raise StoreError(f"{name} is {path!r}: no such file")


def _server_client(
    address: str, token: str, db_name: str, timeout: float, tls: TLSOptions | None
) -> MilvusClient:
    """Reach a server by a channel of its own."""
    options = dict(tls or {})
    if "client_pem_path" not in options and (ca := options.pop("ca_pem_path", None)):
        # pymilvus reads a CA beside a client's certificate only; alone, it calls it the server's.
        options.setdefault("server_pem_path", ca)
    client = MilvusClient(
        address,
        token=token,
        db_name=db_name,
        timeout=timeout,
        dedicated=True,
        grpc_options=_GRPC_OPTIONS,
        **options,
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


@contextmanager
def answer_within(timeout: float) -> Iterator[None]:
    """Bound what is called inside by one deadline that counts from now.

    An asynchronous call copies its context here and runs later, in a thread that may first have
    to wait for others.
    """
    token = _DEADLINE.set(time.monotonic() + timeout)
    try:
        yield
    finally:
        _DEADLINE.reset(token)


# Connections whose stores were dropped without being closed. A finalizer may run anywhere, also
# in a thread that holds the locks which closing needs: it only puts them here.
_ABANDONED: SimpleQueue[tuple[MilvusClient, str | None]] = SimpleQueue()
_closer: threading.Thread | None = None
_STARTING = threading.Lock()


def _start_closer() -> None:
    """Start the thread that closes abandoned connections, once for each process."""
    global _closer
    with _STARTING:
        if _closer is None or not _closer.is_alive():
            _closer = threading.Thread(target=_close_abandoned, name="clip-closer", daemon=True)
            _closer.start()


def _close_abandoned() -> None:
    while True:
        client, path = _ABANDONED.get()
        try:
            client.close()
            if path:
                lite.disconnect(path)
        except Exception:
            logger.warning("could not close a connection that was dropped", exc_info=True)


def _forget_closer() -> None:
    """Forget, in a forked child, the thread and the queue of its parent."""
    global _ABANDONED, _STARTING, _closer
    _ABANDONED, _STARTING, _closer = SimpleQueue(), threading.Lock(), None


if hasattr(os, "register_at_fork"):  # Not on Windows.
    os.register_at_fork(after_in_child=_forget_closer)


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
