"""One TCP link between two machines or namespaces: the wire protocol and both of its ends.

Standard library only, and no import of this project: the far end is started by the path of this file
(`python -I -S link.py HOST`), in a few hundredths of a second, wherever there is an interpreter.

The near end opens one connection per command. It sends a request of 54 bytes, big-endian:

    magic b"MAAT" · version u8 = 1 · command u8 · token 32 bytes · count u64 · size u64

and the far end answers with one status byte: 0 accepted, 1 refused (bad token, version, command or size; it
then closes). What follows depends on the command:

    CONNECT  nothing
    SOURCE   the far end sends `count` chunks of `size` bytes; closing early ends it
    SINK     the near end sends up to `count` chunks of `size` bytes and shuts its side down; the far end
             answers with a u64 n and n pairs of u64: bytes, and the nanoseconds in which they arrived
    ECHO     `count` messages of `size` bytes, each sent back before the next; closing early ends it
    DIGEST   `size` bytes, answered by their SHA-256 (32 bytes)
    RELAY    `size` bytes of JSON {"host", "port", "seconds"}: the far end itself probes that address with
             the same token, and answers with a u64 length and the JSON of the Link, or of {"error": message}

The token keeps strangers and port scanners from using a machine as a traffic source; it travels in the
clear, so it is no protection against someone who can read the traffic. Every socket operation on both sides
has a timeout.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import hmac
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

VERSION = 1
CONNECT, SOURCE, SINK, ECHO, DIGEST, RELAY = range(1, 7)
TOKEN_BYTES = 32
CHUNK = 16 << 20  # bytes per rate: more than the socket buffers hold, whose emptying is no rate of the link
PIECE = 1 << 20  # bytes per send and receive: what a slow link must move within the timeout
MESSAGE = 64  # bytes of a ping
TIMEOUT = 10.0  # seconds without any progress before an end gives up

_REQUEST = struct.Struct("!4sBB32sQQ")
_MAGIC = b"MAAT"
_LARGEST = 64 << 20  # bytes that a request may make the far end hold


class LinkError(RuntimeError):
    """A link could not be measured."""


class LinkTimeout(LinkError):
    """The other end made no progress within the timeout."""


class LinkRefused(LinkError):
    """Nothing listens there, or it does not accept the token or the protocol version."""


class CorruptTransfer(LinkError):
    """Data arrived altered."""


@dataclass(frozen=True)
class Link:
    """What `probe` measured, as series in the order of measurement.

    receive, send: bytes per second of each chunk of 16 MiB, timed where it arrives, or one value over less
    where the time was up before that; round_trip: seconds of each 64-byte ping-pong; connect: seconds from
    the start of a connection to the first byte of the answer.
    """

    host: str
    port: int
    receive: tuple[float, ...]
    send: tuple[float, ...]
    round_trip: tuple[float, ...]
    connect: tuple[float, ...]


# ----------------------------------------------------------------------------------------------- both ends


def _receive_exactly(link: socket.socket, view: memoryview) -> bool:
    """Fill `view`; False when the other end closed before that."""
    at = 0
    while at < len(view):
        got = link.recv_into(view[at:])
        if got == 0:
            return False
        at += got
    return True


def _receive_bytes(link: socket.socket, size: int) -> bytes:
    """`size` bytes. Raises LinkError when the other end closes before that."""
    data = bytearray(size)
    if not _receive_exactly(link, memoryview(data)):
        raise LinkError(f"the other end closed the connection before {size} bytes had arrived")
    return bytes(data)


# ------------------------------------------------------------------------------------------------- far end


def serve(
    host: str,
    port: int = 0,
    *,
    token: bytes,
    ready: Callable[[int], None],
    stop: threading.Event | None = None,
    timeout: float = TIMEOUT,
) -> None:
    """Answer probes at `host`:`port` (0: any free port; `ready` is called with the one taken) until `stop`
    is set.

    Each connection has its own thread, so that a stuck one keeps nobody else waiting.
    Raises OSError when the address cannot be bound, ValueError when the token has not 32 bytes.
    """
    _require_token(token)
    with socket.create_server((host, port), backlog=64) as listener:
        listener.settimeout(0.2)  # how soon `stop` is noticed
        ready(listener.getsockname()[1])
        while stop is None or not stop.is_set():
            try:
                link, _ = listener.accept()
            except TimeoutError:
                continue
            threading.Thread(target=_answer, args=(link, token, timeout), daemon=True).start()


def _answer(link: socket.socket, token: bytes, timeout: float) -> None:
    # The near end may close at any moment, on purpose when its time is up: that ends the command, no more.
    with link, contextlib.suppress(OSError, LinkError):
        link.settimeout(timeout)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        magic, version, command, offered, count, size = _REQUEST.unpack(_receive_bytes(link, _REQUEST.size))
        known = magic == _MAGIC and version == VERSION and command in _ANSWERS
        if not known or size > _LARGEST or not hmac.compare_digest(offered, token):
            link.sendall(b"\x01")
            return
        link.sendall(b"\x00")
        _ANSWERS[command](link, token, count, size)


def _answer_connect(link: socket.socket, token: bytes, count: int, size: int) -> None:
    pass  # the status byte was the answer


def _answer_source(link: socket.socket, token: bytes, count: int, size: int) -> None:
    piece = memoryview(os.urandom(min(size, PIECE)))  # incompressible: nothing on the way may shrink it
    for at in range(0, count * size, PIECE):
        link.sendall(piece[: count * size - at])


def _answer_sink(link: socket.socket, token: bytes, count: int, size: int) -> None:
    arrived = [number for pair in _arrivals(link, count, size, float("inf")) for number in pair]
    link.sendall(struct.pack(f"!Q{len(arrived)}Q", len(arrived) // 2, *arrived))


def _answer_echo(link: socket.socket, token: bytes, count: int, size: int) -> None:
    view = memoryview(bytearray(size))
    for _ in range(count):
        if not _receive_exactly(link, view):
            return
        link.sendall(view)


def _answer_digest(link: socket.socket, token: bytes, count: int, size: int) -> None:
    link.sendall(hashlib.sha256(_receive_bytes(link, size)).digest())


def _answer_relay(link: socket.socket, token: bytes, count: int, size: int) -> None:
    text = _receive_bytes(link, size)
    answer: dict[str, object]
    try:
        order = json.loads(text)
        answer = asdict(probe(order["host"], order["port"], token=token, seconds=order["seconds"]))
    except (LinkError, ValueError, TypeError, KeyError) as error:  # the last two: JSON of another shape
        answer = {"error": str(error)}
    text = json.dumps(answer).encode()
    link.sendall(struct.pack("!Q", len(text)) + text)


_ANSWERS = {
    CONNECT: _answer_connect,
    SOURCE: _answer_source,
    SINK: _answer_sink,
    ECHO: _answer_echo,
    DIGEST: _answer_digest,
    RELAY: _answer_relay,
}


def _arrivals(link: socket.socket, count: int, size: int, deadline: float) -> Iterator[tuple[int, int]]:
    """(bytes, nanoseconds) of each of `count` chunks of `size` bytes, the last one cut short when the other
    end closes, or when the `deadline` (on the perf_counter clock) passes after PIECE bytes at least: fewer
    might have been waiting in a buffer on the way, and say nothing of the link. """
    view = memoryview(bytearray(PIECE))
    began = time.perf_counter_ns()
    total = 0
    for _ in range(count):
        at = 0
        while at < size:
            got = link.recv_into(view[: min(PIECE, size - at)])
            at += got
            total += got
            now = time.perf_counter_ns()
            if got == 0 or (now > deadline * 1e9 and total >= PIECE):
                if at:
                    yield at, now - began
                return
        yield size, now - began
        began = now


# ------------------------------------------------------------------------------------------------ near end


def probe(
    host: str,
    port: int,
    *,
    token: bytes,
    seconds: float = 1.0,
    chunks: int = 48,
    pings: int = 2000,
    connections: int = 200,
    timeout: float = TIMEOUT,
) -> Link:
    """Measure the link to the far end at `host`:`port`: check its integrity, then time it.

    Each of the four measurements stops after `seconds`, or after `chunks` of 16 MiB, `pings`,
    `connections`; it has one value at least. Raises LinkRefused, LinkTimeout, CorruptTransfer, LinkError,
    ValueError.
    """
    _require_token(token)
    if seconds <= 0 or chunks < 1 or pings < 1 or connections < 1:
        raise ValueError(
            f"seconds {seconds}, chunks {chunks}, pings {pings}, connections {connections}: "
            "expected positive numbers"
        )
    far = _Far(host, port, token, timeout)
    try:
        far.check_integrity()
        return Link(
            host=host,
            port=port,
            receive=far.receive(chunks, seconds),
            send=far.send(chunks, seconds),
            round_trip=far.round_trip(pings, seconds),
            connect=far.connect(connections, seconds),
        )
    except TimeoutError as error:
        raise LinkTimeout(f"{host}:{port} made no progress within {timeout} s") from error
    except ConnectionRefusedError as error:
        raise LinkRefused(f"nothing listens at {host}:{port}: start `serve` there first") from error
    except OSError as error:
        raise LinkError(f"the link to {host}:{port} failed: {error}") from error


def relay(
    via: tuple[str, int], to: tuple[str, int], *, token: bytes, seconds: float = 1.0, timeout: float = TIMEOUT
) -> Link:
    """Have the far end at `via` probe the one at `to` (host, port). Raises as `probe` does."""
    order = json.dumps({"host": to[0], "port": to[1], "seconds": seconds}).encode()
    far = _Far(*via, token, timeout)
    try:
        with far.request(RELAY, 1, len(order)) as link:
            link.sendall(order)
            link.settimeout(timeout + 4 * seconds + 4 * timeout)  # the probe's own stages and their timeouts
            (length,) = struct.unpack("!Q", _receive_bytes(link, 8))
            if length > _LARGEST:
                raise LinkError(f"{via[0]}:{via[1]} announced an answer of {length} bytes: not this protocol")
            answer = json.loads(_receive_bytes(link, length))
    except TimeoutError as error:
        raise LinkTimeout(f"{via[0]}:{via[1]} did not report on {to[0]}:{to[1]} in time") from error
    except ConnectionRefusedError as error:
        raise LinkRefused(f"nothing listens at {via[0]}:{via[1]}: start `serve` there first") from error
    except OSError as error:
        raise LinkError(f"the link to {via[0]}:{via[1]} failed: {error}") from error
    if "error" in answer:
        raise LinkError(f"seen from {via[0]}:{via[1]}: {answer['error']}")
    return Link(
        host=answer["host"],
        port=answer["port"],
        receive=tuple(answer["receive"]),
        send=tuple(answer["send"]),
        round_trip=tuple(answer["round_trip"]),
        connect=tuple(answer["connect"]),
    )


def _require_token(token: bytes) -> None:
    if len(token) != TOKEN_BYTES:
        raise ValueError(f"token of {len(token)} bytes: expected {TOKEN_BYTES}, from secrets.token_bytes")


@dataclass(frozen=True)
class _Far:
    """The far end as the near end sees it: an address and what it takes to be let in."""

    host: str
    port: int
    token: bytes
    timeout: float

    def request(self, command: int, count: int, size: int) -> socket.socket:
        """A connection on which `command` was accepted. Raises LinkRefused, OSError."""
        link = socket.create_connection((self.host, self.port), timeout=self.timeout)
        try:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.sendall(_REQUEST.pack(_MAGIC, VERSION, command, self.token, count, size))
            status = link.recv(1)
            if status != b"\x00":
                raise LinkRefused(
                    f"{self.host}:{self.port} refused the request: it has another token, or a protocol other "
                    f"than version {VERSION}"
                )
        except BaseException:
            link.close()
            raise
        return link

    def check_integrity(self) -> None:
        data = os.urandom(PIECE)
        with self.request(DIGEST, 1, len(data)) as link:
            link.sendall(data)
            if _receive_bytes(link, 32) != hashlib.sha256(data).digest():
                raise CorruptTransfer(f"{len(data)} bytes sent to {self.host}:{self.port} arrived altered")

    def receive(self, chunks: int, seconds: float) -> tuple[float, ...]:
        """Bytes per second of each chunk that arrives here."""
        deadline = time.perf_counter() + seconds
        with self.request(SOURCE, chunks + 1, CHUNK) as link:
            return _rates(list(_arrivals(link, chunks + 1, CHUNK, deadline)))

    def send(self, chunks: int, seconds: float) -> tuple[float, ...]:
        """Bytes per second of each chunk, as the far end saw it arrive."""
        piece = os.urandom(PIECE)
        with self.request(SINK, chunks + 1, CHUNK) as link:
            deadline = time.perf_counter() + seconds
            for sent in range((chunks + 1) * CHUNK // PIECE):
                if time.perf_counter() > deadline and sent:
                    break
                link.sendall(piece)
            link.shutdown(socket.SHUT_WR)
            (count,) = struct.unpack("!Q", _receive_bytes(link, 8))
            if count > chunks + 1:
                raise LinkError(
                    f"{self.host}:{self.port} counted {count} of {chunks + 1} chunks: not this protocol"
                )
            numbers = struct.unpack(f"!{2 * count}Q", _receive_bytes(link, 16 * count))
        return _rates(list(zip(numbers[::2], numbers[1::2], strict=True)))

    def round_trip(self, pings: int, seconds: float) -> tuple[float, ...]:
        """Seconds of each ping-pong of 64 bytes. The first tenth, 50 at most, warms both ends up."""
        warm = min(50, pings // 10)
        view, message = memoryview(bytearray(MESSAGE)), os.urandom(MESSAGE)
        times: list[float] = []
        with self.request(ECHO, warm + pings, MESSAGE) as link:
            deadline = time.perf_counter() + seconds
            for index in range(warm + pings):
                began = time.perf_counter_ns()
                link.sendall(message)
                if not _receive_exactly(link, view):
                    raise LinkError(f"{self.host}:{self.port} closed the connection during ping {index}")
                ended = time.perf_counter_ns()
                if view != message:
                    raise CorruptTransfer(f"ping {index} to {self.host}:{self.port} came back altered")
                if index >= warm:
                    times.append((ended - began) / 1e9)
                if times and time.perf_counter() > deadline:
                    break
        return tuple(times)

    def connect(self, connections: int, seconds: float) -> tuple[float, ...]:
        """Seconds from the start of each connection to the far end's first byte."""
        times: list[float] = []
        deadline = time.perf_counter() + seconds
        while len(times) < connections and (not times or time.perf_counter() < deadline):
            began = time.perf_counter_ns()
            with self.request(CONNECT, 1, 0):
                times.append((time.perf_counter_ns() - began) / 1e9)
        return tuple(times)


def _rates(arrived: list[tuple[int, int]]) -> tuple[float, ...]:
    """Bytes per second of whole chunks, without the first of several, which warms the connection up; of the
    only part when the time was up before a chunk was whole.
    """
    whole = [(size, nanoseconds) for size, nanoseconds in arrived if size == CHUNK]
    chosen = whole[1:] or whole or arrived
    if not chosen:
        raise LinkError("the connection ended before any data had arrived")
    return tuple(size / (nanoseconds / 1e9) for size, nanoseconds in chosen)


# --------------------------------------------------------------------------------- the far end as a process


def main(arguments: list[str]) -> int:
    """`link.py HOST [--port N] [--cpu N]`: read the token (hex, one line) from standard input, print the
    port, serve until standard input closes: an end that dies, however it dies, takes this process with
    it.
    """
    parser = argparse.ArgumentParser(description="Answer network probes until standard input closes.")
    parser.add_argument("host", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: any free one)")
    parser.add_argument("--cpu", type=int, help="run on this CPU only")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the near end decides
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})
    token = bytes.fromhex(sys.stdin.readline().strip())
    stop = threading.Event()

    def watch() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    try:
        serve(
            options.host,
            options.port,
            token=token,
            ready=lambda port: print(port, flush=True),
            stop=stop,
        )
    except OSError as error:
        print(f"cannot listen at {options.host}:{options.port}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
