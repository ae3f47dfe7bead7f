"""HTTP/1.1 messages on asyncio streams, as far as a proxy needs them: heads are parsed, bodies are framed and relayed.

Invariant: a body is relayed byte for byte with the framing that its head announced, so that both connections stay in
step and can be kept alive.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

HEAD_LIMIT = 256 * 1024
PIECE_BYTES = 64 * 1024
# Headers that speak about one connection only and must not be relayed (RFC 9110, 7.6.1).
PER_CONNECTION = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"expect", b"te"})


class MessageError(Exception):
    """The peer sent something that is not an HTTP/1.1 message."""


@dataclass(frozen=True)
class Head:
    """A start line and its headers, names in lower case, in the order they came."""

    start: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    def value(self, name: bytes) -> bytes:
        """The last value of a header, empty if absent."""
        return next((value for key, value in reversed(self.headers) if key == name), b"")

    @property
    def target(self) -> str:
        """The operation of an AWS JSON request (`DynamoDB_20120810.PutItem`), empty if it is none."""
        return self.value(b"x-amz-target").decode("latin-1")

    @property
    def keeps_alive(self) -> bool:
        """Whether the connection stays usable after this message."""
        connection = self.value(b"connection").lower()
        return connection != b"close" and (b"HTTP/1.1" in self.start or connection == b"keep-alive")

    @property
    def status(self) -> int:
        """The status code of a response."""
        return int(self.start.split(b" ", 2)[1])

    def relayed(self, extra: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
        """The head as it goes to the other side."""
        kept = (pair for pair in self.headers if pair[0] not in PER_CONNECTION)
        lines = [self.start, *(name + b": " + value for name, value in (*kept, *extra))]
        return b"\r\n".join(lines) + b"\r\n\r\n"


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """The next head, or None when the peer closed the connection between messages."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise MessageError("the connection was closed inside a message head") from error
        return None
    except asyncio.LimitOverrunError as error:
        raise MessageError("a message head is too long") from error
    start, *lines = raw[:-4].split(b"\r\n")
    pairs = (line.partition(b":") for line in lines)
    return Head(start, tuple((name.strip().lower(), value.strip()) for name, _, value in pairs))


async def relay_body(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: Head, *, to_end: bool = False
) -> None:
    """Copy a body as framed by `head`; `to_end`: without framing it lasts until the connection closes
    (responses).
    """
    if b"chunked" in head.value(b"transfer-encoding").lower():
        await _relay_chunks(reader, writer)
    elif length := head.value(b"content-length"):
        await _relay_exactly(reader, writer, int(length))
    elif to_end:
        while piece := await reader.read(PIECE_BYTES):
            writer.write(piece)
            await writer.drain()


async def read_body(reader: asyncio.StreamReader, head: Head) -> bytes:
    """A whole body of known length, for requests that are answered here."""
    if b"chunked" in head.value(b"transfer-encoding").lower():
        raise MessageError("an export request must state its content length")
    return await reader.readexactly(int(head.value(b"content-length") or b"0"))


async def _relay_exactly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int) -> None:
    while length > 0:
        piece = await reader.read(min(length, PIECE_BYTES))
        if not piece:
            raise MessageError("the connection was closed inside a message body")
        writer.write(piece)
        length -= len(piece)
        if length:
            await writer.drain()


async def _relay_chunks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        size_line = await reader.readuntil(b"\r\n")
        writer.write(size_line)
        size = int(size_line.split(b";", 1)[0], 16)
        if size == 0:
            break
        await _relay_exactly(reader, writer, size + 2)
        await writer.drain()
    while (trailer := await reader.readuntil(b"\r\n")) != b"\r\n":
        writer.write(trailer)
    writer.write(trailer)
