"""A TCP proxy whose line can be made slow, mute or broken while it runs, because faults must be scripted.

It stands before RabbitMQ, Redis or S3, and knows none of them. A line that is mute holds what is sent and
delivers it when it heals, as a network does whose packets are lost for a while: no stream loses its middle.
"""

import queue
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self

Way = Literal["up", "down"]  # from the client to the server, and back
Line = queue.Queue[tuple[float, bytes]]  # what is on its way, and when it arrives; nothing is its end

PORTS = range(12_000, 20_000)  # given to no outgoing connection: who calls a closed port never reaches itself
PIECE = 1 << 16
HELD = 64  # pieces on their way at most; then the sender feels it
TURN = 0.2  # seconds after which a thread that is blocked looks whether its connection is over
SECONDS = 10.0  # in which all threads end


class TcpProxy:
    """One listening port in front of `host:port`.

    ::

        with TcpProxy("127.0.0.1", 5672) as line:
            ...                      # clients connect to 127.0.0.1:line.port
            line.latency = 0.2       # seconds, each way
            line.bandwidth = 16_000  # bytes a second, each way of each connection
            line.mute()              # a black hole: accepts, forwards nothing; mute("up"): in one way only
            line.reset_all()         # every connection, now
            line.down()              # resets them, and refuses others as a server does that is not running
            line.heal()              # all of it ends
            line.assert_fired("mute", "reset")
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.latency = 0.0
        self.bandwidth = 0.0
        self.delivered: Counter[Way] = Counter()  #: bytes, by way
        self.accepted = 0  #: connections
        self.fired: Counter[str] = Counter()  #: how often latency, bandwidth, mute, reset and down were felt
        self._muted: set[Way] = set()
        self._changed = threading.Condition()  # guards all that is private here
        self._connections: set[_Connection] = set()
        self._threads: set[threading.Thread] = set()
        self._closed = False
        self._listener = listen()
        self.port: int = self._listener.getsockname()[1]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._spawn(self._accept, self._listener)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Resets all connections, and ends every thread."""
        with self._changed:
            self._closed = True
            close_listener(self._listener)
        self._reset()
        deadline = time.monotonic() + SECONDS
        while threads := self._alive():
            threads.pop().join(max(0.0, deadline - time.monotonic()))
            assert time.monotonic() < deadline, f"the proxy's threads hang: {self._alive()}"

    def mute(self, *ways: Way) -> None:
        """From now on nothing passes in these ways, or in neither; new connections are taken."""
        with self._changed:
            self._muted |= set(ways or ("up", "down"))

    def reset_all(self) -> None:
        """Resets the connections that there are; others may follow."""
        self.fired["reset"] += self._reset()

    def down(self) -> None:
        """Refuses, as a server does that is not running, until `heal`; what is connected is reset."""
        self.fired["down"] += 1  # who is refused is not seen here
        with self._changed:
            close_listener(self._listener)
        self._reset()

    def heal(self) -> None:
        """Forwards everything again, without delay, and first what was held."""
        with self._changed:
            self.latency = self.bandwidth = 0.0
            self._muted.clear()
            self._changed.notify_all()
            if self._listener.fileno() >= 0 or self._closed:
                return
            self._listener = listen(self.port)
        self._spawn(self._accept, self._listener)

    def assert_fired(self, *faults: str) -> None:
        """Fails where one of them was never felt: then a test has shown nothing."""
        silent = [fault for fault in faults if not self.fired[fault]]
        assert not silent, f"never felt on the line: {', '.join(silent)}; felt: {dict(self.fired)}"

    def _reset(self) -> int:
        with self._changed:
            found = list(self._connections)
            for connection in found:
                connection.reset()
            self._changed.notify_all()
        return len(found)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # closed
                return
            connection = _Connection(client)
            with self._changed:
                if listener.fileno() < 0:
                    connection.reset()
                    return
                self._connections.add(connection)
                self.accepted += 1
            self._spawn(self._serve, connection)

    def _serve(self, connection: "_Connection") -> None:
        try:
            if self._passes("up", connection):
                connection.dial(self.target)
                lines: dict[Way, Line] = {"up": queue.Queue(HELD), "down": queue.Queue(HELD)}
                threads = [self._spawn(self._read, connection, way, line) for way, line in lines.items()]
                threads += [self._spawn(self._write, connection, way, line) for way, line in lines.items()]
                for thread in threads:
                    thread.join()
        except OSError:  # the server refuses, or all was reset meanwhile
            connection.reset()
        finally:
            connection.close()
            with self._changed:
                self._connections.discard(connection)

    def _read(self, connection: "_Connection", way: Way, line: Line) -> None:
        source = connection.client if way == "up" else connection.server
        try:
            while piece := connection.receive(source):
                line.put((time.monotonic() + self.latency, piece))
        except OSError:
            self._break(connection)
        line.put((0.0, b""))

    def _write(self, connection: "_Connection", way: Way, line: Line) -> None:
        """In a thread of its own, so that latency delays bytes and does not thin them out."""
        sink = connection.server if way == "up" else connection.client
        piece = b"begun"
        try:
            while piece and not connection.over.is_set():
                due, piece = line.get()
                if (wait := due - time.monotonic()) > 0:
                    self.fired["latency"] += 1
                    connection.over.wait(wait)
                if not self._passes(way, connection):
                    break
                self._deliver(connection, sink, way, piece)
            if not piece:
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._break(connection)
        while piece:  # its reader may wait for room
            _, piece = line.get()

    def _deliver(self, connection: "_Connection", sink: socket.socket, way: Way, piece: bytes) -> None:
        while piece:
            rate = self.bandwidth
            sent = connection.send(sink, piece[: max(1, int(rate * TURN))] if rate else piece)
            self.delivered[way] += sent
            piece = piece[sent:]
            if rate:
                self.fired["bandwidth"] += 1
                connection.over.wait(sent / rate)

    def _passes(self, way: Way, connection: "_Connection") -> bool:
        """Waits while the way is mute; false where the connection ended meanwhile."""
        with self._changed:
            if way in self._muted:
                self.fired["mute"] += 1
                self._changed.wait_for(lambda: way not in self._muted or connection.over.is_set())
        return not connection.over.is_set()

    def _break(self, connection: "_Connection") -> None:
        with self._changed:
            connection.reset()
            self._changed.notify_all()

    def _alive(self) -> set[threading.Thread]:
        with self._changed:
            self._threads = {thread for thread in self._threads if thread.is_alive()}
            return set(self._threads)

    def _spawn(self, target: Callable[..., None], *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, name=f"tcp-proxy-{self.port}", daemon=True)
        self._alive()
        with self._changed:
            thread.start()
            self._threads.add(thread)
        return thread


class _Connection:
    """A client's socket, and the one to the server once it is dialled."""

    def __init__(self, client: socket.socket) -> None:
        self.client, self.server = client, socket.socket()
        self.over = threading.Event()

    def dial(self, target: tuple[str, int]) -> None:
        self.server.settimeout(SECONDS)
        self.server.connect(target)
        for side in (self.client, self.server):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            side.settimeout(TURN)

    def receive(self, source: socket.socket) -> bytes:
        while True:
            try:
                return source.recv(PIECE)
            except TimeoutError:
                if self.over.is_set():
                    raise

    def send(self, sink: socket.socket, piece: bytes) -> int:
        while True:
            try:
                return sink.send(piece)
            except TimeoutError:
                if self.over.is_set():
                    raise

    def reset(self) -> None:
        self.over.set()
        for side in (self.client, self.server):
            reset(side)

    def close(self) -> None:
        self.over.set()
        for side in (self.client, self.server):
            side.close()


def listen(port: int = 0) -> socket.socket:
    """Listens on loopback, at a port that no outgoing connection is given, or at this one again."""
    for chosen in [port] if port else random.sample(PORTS, len(PORTS)):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", chosen))
            listener.listen(128)
        except OSError:
            listener.close()
            continue
        return listener
    raise OSError(f"port {port or 'after port'} is taken")


def close_listener(listener: socket.socket) -> None:
    with suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
    listener.close()


def reset(side: socket.socket) -> None:
    """Breaks a connection as a crash or a firewall does: its other end reads an error instead of an end."""
    with suppress(OSError):
        side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        side.shutdown(socket.SHUT_RD)  # wakes who reads from it here
    side.close()
