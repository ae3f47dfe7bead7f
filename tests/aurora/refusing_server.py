"""A server that refuses sessions in PostgreSQL's own protocol, as Aurora does while it resumes."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager

_NO_TLS = (80877103, 80877104)  # SSLRequest, GSSENCRequest

NO_ENTRY = ("28000", 'no pg_hba.conf entry for host "10.1.2.3", user "napoleon", database "waterloo", SSL encryption')


class RefusingServer:
    """Answers each session with one ErrorResponse: (SQLSTATE, text), or with the severity as a third part.

    After `refusals`, sessions are passed on to the port `then`.
    """

    def __init__(self, *answer: str, refusals: int | None = None, then: int | None = None) -> None:
        self.answer: Sequence[str] = answer
        self.sessions = 0
        self._refusals, self._then = refusals, then
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Take no more sessions."""
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self.sessions += 1
            passes = self._refusals is not None and self.sessions > self._refusals
            threading.Thread(target=self._pass_on if passes else self._refuse, args=(client,), daemon=True).start()

    def _refuse(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as incoming:
            while len(head := incoming.read(8)) == 8:
                length, code = struct.unpack("!II", head)
                incoming.read(length - 8)
                if code in _NO_TLS:
                    client.sendall(b"N")
                    continue
                state, text, *severity = self.answer
                fields = {"S": (*severity, "FATAL")[0], "V": "FATAL", "C": state, "M": text}
                body = b"".join(f"{kind}{value}\0".encode() for kind, value in fields.items()) + b"\0"
                client.sendall(b"E" + struct.pack("!I", len(body) + 4) + body)
                return

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._then or 0)) as server:
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            _copy(client, server)
            back.join()


def _copy(source: socket.socket, to: socket.socket) -> None:
    try:
        while block := source.recv(65536):
            to.sendall(block)
        to.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@contextmanager
def refusing(*answer: str, refusals: int | None = None, then: int | None = None) -> Generator[RefusingServer]:
    """A server that refuses sessions, for the block."""
    server = RefusingServer(*answer, refusals=refusals, then=then)
    try:
        yield server
    finally:
        server.close()
