"""An internet on loopback: names lead to public addresses, and these to servers of the test."""

from __future__ import annotations

import contextlib
import socket
import threading

import httpcore

PUBLIC = "93.184.216.34"


def answer(content, *headers, status="200 OK"):
    """Write an HTTP answer that says how long it is."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + content


def redirect(location, status="302 Found"):
    return answer(b"", f"Location: {location}", status=status)


class Internet:
    """Servers by what they answer, and who asked for what.

    Attributes:
        hosts: The addresses of a name, one list for each time that it is looked up; the last stays.
        pages: By ``(host, path)``: the answer's bytes, or a function that is given the socket.
        asked: What was asked for, as it came.
        looked_up: The names that were looked up.
        reached: The addresses that were connected to.
        tls: The certificate of all servers; ``None`` for http.
        at_once: Called with the socket, in place of reading what is asked for.
    """

    def __init__(self):
        self.hosts, self.pages = {}, {}
        self.asked, self.looked_up, self.reached = [], [], []
        self.tls = self.at_once = None
        self._is_open = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def put(self, url, page, addresses=(PUBLIC,)):
        """Put a page at a URL of a host, which is at these addresses."""
        host, _, path = url.partition("://")[2].partition("/")
        self.hosts.setdefault(host.partition(":")[0], [list(addresses)])
        self.pages[host, f"/{path}"] = page
        return url

    def resolve(self, host, port):
        self.looked_up.append(host)
        answers = self.hosts.get(host)
        if not answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def connect(self, address, port, seconds):
        self.reached.append(address)
        here = self._listener.getsockname()
        return httpcore.SyncBackend().connect_tcp(*here, timeout=seconds)

    def close(self):
        # Closing a socket does not wake who waits at it on every system; a guest does.
        self._is_open = False
        socket.create_connection(self._listener.getsockname()).close()
        self._thread.join()
        self._listener.close()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _serve(self):
        while True:
            connection, _ = self._listener.accept()
            if not self._is_open:
                connection.close()
                return
            self._sockets = [one for one in self._sockets if one.fileno() >= 0] + [connection]
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _secured(self, connection):
        return self.tls.wrap_socket(connection, server_side=True) if self.tls else connection

    def _answer(self, connection):
        # Whoever asked may hang up.
        with contextlib.suppress(OSError), self._secured(connection) as connection:
            if self.at_once:
                self.at_once(connection)
                return
            request = b""
            while b"\r\n\r\n" not in request:
                if not (received := connection.recv(65536)):
                    return
                request += received
            lines = request.decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            self.asked.append(request.decode())
            place = headers["host"], lines[0].split(" ")[1]
            page = self.pages.get(place, answer(b"", status="404 Not Found"))
            if callable(page):
                page(connection)
            else:
                connection.sendall(page)
