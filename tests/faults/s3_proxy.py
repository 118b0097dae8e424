"""An S3 server's faults, which must be scripted: an HTTP proxy in front of the real one.

It forwards what no rule names as it is, the signed `Host` too, in pieces, so that a body of any size passes.
Services find it by `FEDQ_S3_URL`, in this process or in another.
"""

import http.client
import http.server
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from tests.faults.tcp_proxy import listen, reset

PIECE = 1 << 16
SECONDS = 60.0  # that the real server has for an answer
CODES = {500: "InternalError", 503: "SlowDown", 507: "XMinioStorageFull"}
HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}  # said anew by whoever forwards


@dataclass(eq=False)
class Rule:
    """What happens to the requests it matches; of several faults in one rule, each where it comes in an exchange."""

    method: str  # or * for any
    key: re.Pattern[str]  # found in the unquoted path and query: /bucket/key?partNumber=1
    times: int | None = 1  # that it applies at most; None is always
    skip: int = 0  # requests that it matches and lets pass first
    # Before the request is forwarded:
    stall: float = 0.0  # seconds in which nothing happens
    status: int | None = None  # answered in the server's place, with S3's words for it
    # While it is:
    bandwidth: float = 0.0  # bytes a second, of both bodies
    reset_request: int | None = None  # the connection breaks after so many bytes of its body; the server lacks the rest
    flip_request: int | None = None  # the byte at this place of its body arrives as another
    # When the server has answered:
    lose_reply: bool = False  # and the client never hears of it
    reset_response: int | None = None  # the connection breaks after so many bytes of the body
    truncate: int | None = None  # the body ends in order after so many bytes, and with it the connection
    honest: bool = True  # the Content-Length of what is truncated is that of the whole; else of what comes
    flip_response: int | None = None
    fired: int = 0  #: how often the fault was really made


@dataclass
class S3Proxy:
    """A proxy before the S3 server at `target`.

    ::

        with S3Proxy("http://127.0.0.1:8333") as proxy:
            rule = proxy.rule("PUT", "updates/", status=503, times=3)
            ...                     # a client of proxy.url
            assert rule.fired == 3
            proxy.assert_fired()    # each rule has
    """

    target: str
    rules: list[Rule] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)  #: method, and unquoted path and query, of each

    def __enter__(self) -> Self:
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Exchange, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listen()
        self._server.proxy = self
        self.port: int = self._server.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name=f"s3-proxy-{self.port}")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Breaks what is on its way, and ends every thread."""
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        with self._lock:
            for known in self._sockets:
                with suppress(OSError):
                    known.shutdown(socket.SHUT_RDWR)
        self._server.server_close()  # waits for the exchanges

    def rule(self, method: str, key: str = "", **fault: Any) -> Rule:
        """Adds a rule of `Rule`'s fields; the first that matches a request and is not used up holds."""
        added = Rule(method, re.compile(key), **fault)
        with self._lock:
            self.rules.append(added)
        return added

    def clear(self) -> None:
        """All rules end; what they did is forgotten."""
        with self._lock:
            self.rules.clear()
            self.requests.clear()

    def assert_fired(self) -> None:
        """Fails where a rule never fired: then a test has shown nothing."""
        silent = [f"{rule.method} {rule.key.pattern}" for rule in self.rules if not rule.fired]
        assert not silent, f"rules that never fired: {', '.join(silent)}; requests: {self.requests}"

    def count(self, method: str, key: str = "") -> int:
        """Requests that came, of a method, whose path and query match."""
        return sum(seen == method and re.search(key, target) is not None for seen, target in self.requests)

    def chosen(self, method: str, target: str) -> Rule | None:
        """Notes a request and spends the rule that applies to it."""
        with self._lock:
            self.requests.append((method, target))
            for rule in self.rules:
                if rule.times == 0 or rule.method not in ("*", method) or not rule.key.search(target):
                    continue
                if rule.skip:
                    rule.skip -= 1
                    continue
                if rule.times is not None:
                    rule.times -= 1
                return rule
        return None

    def fire(self, rule: Rule) -> None:
        with self._lock:
            rule.fired += 1

    def track(self, known: socket.socket) -> None:
        with self._lock:
            self._sockets = {other for other in self._sockets if other.fileno() >= 0} | {known}
        if self.closing.is_set():
            with suppress(OSError):
                known.shutdown(socket.SHUT_RDWR)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for them
    proxy: S3Proxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client, a server or a rule broke the connection

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)  # without the orderly end that would come before a reset


class _Exchange(http.server.BaseHTTPRequestHandler):
    """One connection of a client, request after request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.proxy = self.server.proxy
        self.proxy.track(self.connection)

    def log_message(self, *_: Any) -> None:
        pass

    def exchange(self) -> None:
        rule = self.proxy.chosen(self.command, unquote(self.path))
        if rule is not None and rule.stall:
            self.proxy.fire(rule)
            self.proxy.closing.wait(rule.stall)
        if rule is not None and rule.status is not None:
            self.refuse(rule, rule.status)
            return
        origin = urlsplit(self.proxy.target)
        real = http.client.HTTPConnection(origin.hostname or "", origin.port, timeout=SECONDS)
        try:
            real.connect()
            self.proxy.track(real.sock)
            if self.ask(real, rule):
                self.answer(real, rule)
        finally:
            real.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = exchange  # noqa: N815

    def refuse(self, rule: Rule, status: int) -> None:
        for _ in self.body(None):
            pass
        code = CODES.get(status, "Refused")
        page = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>It was told to.</Message></Error>'.encode()
        self.proxy.fire(rule)
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page)

    def ask(self, real: http.client.HTTPConnection, rule: Rule | None) -> bool:
        """Forwards the request; false where that was broken off."""
        real.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP - {"content-length"}:
                real.putheader(name, value)
        real.endheaders()
        sent = 0
        for piece in self.body(rule):
            if rule is not None and rule.reset_request is not None and sent + len(piece) >= rule.reset_request:
                real.send(piece[: rule.reset_request - sent])
                self.proxy.fire(rule)
                self.break_off()
                return False
            real.send(self.flipped(piece, sent, rule, rule.flip_request if rule else None))
            sent += len(piece)
        return True

    def answer(self, real: http.client.HTTPConnection, rule: Rule | None) -> None:
        """Forwards what the server says to it."""
        response = real.getresponse()
        if rule is not None and rule.lose_reply:
            response.read()
            self.proxy.fire(rule)
            self.break_off()
            return
        length = response.getheader("Content-Length")
        # What has no length came in chunks: a listing, which is small.
        listing = b"" if length is not None or self.command == "HEAD" else response.read()
        whole = int(length) if length is not None else len(listing)
        kept = whole if rule is None or rule.truncate is None else min(rule.truncate, whole)
        if rule is not None and kept < whole:
            self.proxy.fire(rule)  # now: its client may see at once that the length is wrong, and leave
        self.head(response, whole if rule is None or rule.honest else kept, last=kept < whole)
        if self.command == "HEAD":
            return
        sent = 0
        for piece in self.throttled(rule, iter([listing[:kept]]) if listing else _read(response, kept)):
            if rule is not None and rule.reset_response is not None and sent + len(piece) >= rule.reset_response:
                self.wfile.write(piece[: rule.reset_response - sent])
                self.proxy.fire(rule)
                self.break_off()
                return
            self.wfile.write(self.flipped(piece, sent, rule, rule.flip_response if rule else None))
            sent += len(piece)

    def head(self, response: http.client.HTTPResponse, length: int, *, last: bool) -> None:
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in HOP:
                self.send_header(name, value)
        if response.status != 204:
            self.send_header("Content-Length", str(length))
        if last:
            self.send_header("Connection", "close")  # and `close_connection` with it
        self.end_headers()

    def body(self, rule: Rule | None) -> Iterator[bytes]:
        """The request's, as it comes."""

        def pieces() -> Iterator[bytes]:
            left = int(self.headers.get("Content-Length", 0))
            while left:
                piece = self.rfile.read1(min(left, PIECE))
                if not piece:
                    raise ConnectionError("the client broke off")
                left -= len(piece)
                yield piece

        return self.throttled(rule, pieces())

    def throttled(self, rule: Rule | None, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if rule is None or not rule.bandwidth:
                yield piece
                continue
            self.proxy.fire(rule)
            step = max(1, int(rule.bandwidth / 20))
            for start in range(0, len(piece), step):
                part = piece[start : start + step]
                if self.proxy.closing.wait(len(part) / rule.bandwidth):
                    raise ConnectionError("the proxy closes")
                yield part

    def flipped(self, piece: bytes, start: int, rule: Rule | None, place: int | None) -> bytes:
        if rule is None or place is None or not start <= place < start + len(piece):
            return piece
        self.proxy.fire(rule)
        garbled = bytearray(piece)
        garbled[place - start] ^= 0x01
        return bytes(garbled)

    def break_off(self) -> None:
        self.close_connection = True
        self.rfile.close()  # it holds the socket open
        reset(self.connection)


def _read(response: http.client.HTTPResponse, most: int) -> Iterator[bytes]:
    while most and (piece := response.read1(min(most, PIECE))):
        most -= len(piece)
        yield piece
