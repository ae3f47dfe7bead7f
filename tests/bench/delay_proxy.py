"""A TCP proxy that delays every chunk by a fixed time, to put a network's round trip in front of a local server.

`python -S tests/bench/delay_proxy.py TARGET_PORT DELAY_MICROSECONDS` prints the port it listens on. A line on its
standard input sets a new delay (a number) or asks for the traffic so far (`count`): round trips, bytes in, bytes out.
It ends with its standard input. It is a separate process, so that it takes no time from Python threads that are
measured. `Network` measures what it adds beyond the delay, and takes that off the delay.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from queue import SimpleQueue

CHUNK_BYTES = 1 << 18


class Proxy:
    """Passes bytes both ways; one thread reads and one writes for each direction."""

    def __init__(self, target_port: int, delay_seconds: float) -> None:
        self._target_port = target_port
        self.delay_seconds = delay_seconds
        self._lock = threading.Lock()
        self.round_trips = 0
        """How often a client sent after it had received, or for the first time."""
        self.bytes_in = self.bytes_out = 0

    def serve(self, listener: socket.socket) -> None:
        """Accept connections forever."""
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(("127.0.0.1", self._target_port))
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            turn = [""]
            for source, sink, direction in ((client, server, "in"), (server, client, "out")):
                queue: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
                threading.Thread(target=self._read, args=(source, queue, direction, turn), daemon=True).start()
                threading.Thread(target=self._write, args=(sink, queue), daemon=True).start()

    def _read(
        self, source: socket.socket, queue: SimpleQueue[tuple[float, bytes]], direction: str, turn: list[str]
    ) -> None:
        while True:
            try:
                chunk = source.recv(CHUNK_BYTES)
            except OSError:
                chunk = b""
            queue.put((time.monotonic() + self.delay_seconds, chunk))
            with self._lock:
                if direction == "in":
                    self.round_trips += turn[0] != "in" and bool(chunk)
                    self.bytes_in += len(chunk)
                else:
                    self.bytes_out += len(chunk)
                turn[0] = direction
            if not chunk:
                return

    def _write(self, sink: socket.socket, queue: SimpleQueue[tuple[float, bytes]]) -> None:
        while True:
            due, chunk = queue.get()
            if (wait := due - time.monotonic()) > 0:
                time.sleep(wait)
            try:
                if not chunk:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(chunk)
            except OSError:
                return


def main() -> None:
    """Serve until the standard input ends."""
    proxy = Proxy(int(sys.argv[1]), int(sys.argv[2]) / 1e6)
    listener = socket.create_server(("127.0.0.1", 0))
    sys.setswitchinterval(0.0005)
    threading.Thread(target=proxy.serve, args=(listener,), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    answers.write(f"{listener.getsockname()[1]}\n")
    for line in sys.stdin:
        if line.strip() == "count":
            answers.write(f"{proxy.round_trips} {proxy.bytes_in} {proxy.bytes_out}\n")
        else:
            proxy.delay_seconds = float(line) / 1e6
            answers.write("set\n")


if __name__ == "__main__":
    main()
