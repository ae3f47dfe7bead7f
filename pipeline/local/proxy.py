"""A reverse proxy in front of ministack that can hold DynamoDB writes for a moment and answer some operations itself.

Invariant: everything not answered here passes unchanged and in order. While the gate is held, no DynamoDB write that
came through the proxy is under way, so there is a moment after some writes and before all others.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from pipeline.local.http_messages import HEAD_LIMIT, Head, MessageError, read_body, read_head, relay_body
from pipeline.local.process import LOOPBACK

# ministack closes idle connections after 75 s. We drop ours well before that, so that a request never meets a closing
# one.
IDLE_SECONDS = 30.0

WRITE_OPERATIONS = frozenset(
    f"DynamoDB_20120810.{name}"
    for name in (
        "PutItem",
        "UpdateItem",
        "DeleteItem",
        "BatchWriteItem",
        "TransactWriteItems",
        "ExecuteStatement",
        "BatchExecuteStatement",
        "ExecuteTransaction",
    )
)

# An operation answered here: request headers and body in, status and JSON body out.
Answer = Callable[[Head, bytes], Awaitable[tuple[int, bytes]]]


class WriteGate:
    """Lets any number of writes through at once, until it is held. Then new ones wait, and so does the holder for
    those under way.
    """

    def __init__(self) -> None:
        """An open gate, bound to the running event loop on first use."""
        self._open = asyncio.Event()
        self._open.set()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._holding = asyncio.Lock()
        self._under_way = 0

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[None]:
        """One write passing through."""
        await self._open.wait()
        self._under_way += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._quiet.set()

    @asynccontextmanager
    async def held(self) -> AsyncGenerator[None]:
        """Inside, no write is under way and none begins."""
        async with self._holding:
            self._open.clear()
            try:
                await self._quiet.wait()
                yield
            finally:
                self._open.set()


class Upstream:
    """Kept-alive connections to the server behind the proxy."""

    def __init__(self, port: int) -> None:
        """Connections are made when needed."""
        self._port = port
        self._idle: deque[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = deque()

    async def connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """An idle connection young enough, or a new one."""
        while self._idle:
            since, reader, writer = self._idle.pop()
            if time.monotonic() - since < IDLE_SECONDS and not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(LOOPBACK, self._port, limit=HEAD_LIMIT)

    def give_back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Keep a connection whose last message was read to its end."""
        self._idle.append((time.monotonic(), reader, writer))


class Proxy:
    """Serves clients; `answers` maps the operations handled here."""

    def __init__(self, upstream_port: int, answers: Mapping[str, Answer], gate: WriteGate) -> None:
        """Nothing is opened yet; pass `serve_client` to `asyncio.start_server`."""
        self._upstream = Upstream(upstream_port)
        self._answers = answers
        self._gate = gate

    async def serve_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one client connection until it closes."""
        try:
            while (head := await read_head(reader)) is not None:
                if not await self._serve_request(head, reader, writer):
                    break
        except (MessageError, ConnectionError, asyncio.IncompleteReadError, ValueError):
            # The client, or the server in the middle of an answer, broke the connection: all we can do is close it.
            pass
        finally:
            writer.close()

    async def _serve_request(self, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; the result says whether the connection stays open."""
        if head.value(b"expect").lower() == b"100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        answer = self._answers.get(head.target)
        if answer is not None:
            status, body = await answer(head, await read_body(reader, head))
            writer.write(json_response(status, body))
            await writer.drain()
            return head.keeps_alive
        if head.target in WRITE_OPERATIONS:
            async with self._gate.write():
                return await self._forward(head, reader, writer)
        return await self._forward(head, reader, writer)

    async def _forward(self, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            up_reader, up_writer = await self._upstream.connection()
        except OSError:
            writer.write(
                json_response(502, b'{"__type":"ServiceUnavailable","message":"the local AWS stack is not running"}')
            )
            await writer.drain()
            return False
        finished = False
        try:
            up_writer.write(head.relayed())
            await relay_body(reader, up_writer, head)
            await up_writer.drain()
            response = await self._relay_response(head, up_reader, writer)
            finished = response.keeps_alive and _has_framing(response)
        finally:
            if finished:
                self._upstream.give_back(up_reader, up_writer)
            else:
                up_writer.close()
        return head.keeps_alive and _has_framing(response)

    async def _relay_response(
        self, request: Head, up_reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Head:
        response = await read_head(up_reader)
        while response is not None and response.status < 200:
            response = await read_head(up_reader)
        if response is None:
            raise MessageError("the server closed the connection without an answer")
        stays = request.keeps_alive and _has_framing(response)
        writer.write(response.relayed(() if stays else ((b"connection", b"close"),)))
        if not request.start.startswith(b"HEAD ") and response.status not in (204, 304):
            await relay_body(up_reader, writer, response, to_end=True)
        await writer.drain()
        return response


def _has_framing(response: Head) -> bool:
    """Whether the response shows where it ends, without the end of the connection."""
    return bool(response.value(b"content-length") or response.value(b"transfer-encoding")) or response.status in (
        204,
        304,
    )


def json_response(status: int, body: bytes) -> bytes:
    """A whole response in the AWS JSON protocol."""
    reason = {200: b"OK", 400: b"Bad Request", 500: b"Internal Server Error", 502: b"Bad Gateway"}[status]
    head = b"HTTP/1.1 %d %s\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: %d\r\n\r\n"
    return head % (status, reason, len(body)) + body
