"""The proxy: framing, kept-alive connections, and the gate that holds writes."""

import asyncio
import http.client
import socket
import threading
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

from pipeline.local.export_server import ExportServer
from pipeline.local.process import free_port
from pipeline.local.proxy import WriteGate
from pipeline.local.stack import LocalStack
from tests.conftest import run_directory
from tests.local.conftest import MakeTable

if TYPE_CHECKING:
    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_s3 import S3Client


class ScriptedServer:
    """Answers each connection with raw bytes after reading one request head and its body of known length."""

    def __init__(self, answers: list[bytes]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.connections = 0
        self.heads: list[bytes] = []
        self._answers = list(answers)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while self._answers:
            connection, _ = self._listener.accept()
            self.connections += 1
            with connection, connection.makefile("rb") as reader:
                while self._answers:
                    head = b""
                    while (line := reader.readline()) not in (b"\r\n", b""):
                        head += line
                    if not head:
                        break
                    self.heads.append(head)
                    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                    length = int(lengths[0].split(b":")[1]) if lengths else 0
                    reader.read(length)
                    connection.sendall(self._answers.pop(0))
        self._listener.close()


@pytest.fixture
def scripted() -> Generator[tuple[ScriptedServer, http.client.HTTPConnection]]:
    """A scripted server, and a client connection to a proxy in front of it."""
    answers = [
        b"HTTP/1.1 502 Health\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nx-kept: yes\r\n\r\nabc",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 4\r\n\r\nlast",
    ]
    server = ScriptedServer(answers)
    with run_directory() as folder, ExportServer(folder, server.port) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        yield server, connection
        connection.close()


def test_responses_of_every_framing_pass_on_one_kept_connection(
    scripted: tuple[ScriptedServer, http.client.HTTPConnection],
) -> None:
    server, connection = scripted
    bodies: list[bytes] = []
    sockets: set[int] = set()
    for method, content in (("GET", None), ("POST", b"x" * 200_000), ("DELETE", None), ("GET", None)):
        connection.request(method, "/path?query=1", content, {"X-Given": "1", "Connection": "keep-alive"})
        sockets.add(connection.sock.getsockname()[1])
        response = connection.getresponse()
        bodies.append(response.read())
        if content is not None:
            assert response.getheader("x-kept") == "yes"
    assert bodies == [b"hello world", b"abc", b"", b"last"]
    assert len(sockets) == 1
    assert server.connections == 1
    assert all(b"\r\nx-given: 1\r\n" in head and b"connection:" not in head for head in server.heads[1:])
    assert server.heads[2].startswith(b"POST /path?query=1 HTTP/1.1\r\n")


def test_a_client_that_expects_100_continue_is_answered_at_once(stack: LocalStack) -> None:
    with socket.create_connection(("127.0.0.1", stack.exports.port), timeout=5) as client:
        head = b"PUT /expecting-bucket HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
        client.sendall(head)
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"{}")
        assert client.recv(15) == b"HTTP/1.1 200 OK"[:15]


def test_large_objects_pass_whole(s3: "S3Client", bucket: str) -> None:
    content = bytes(range(256)) * 40_000
    s3.put_object(Bucket=bucket, Key="large object", Body=content)
    assert s3.get_object(Bucket=bucket, Key="large object")["Body"].read() == content
    assert s3.head_object(Bucket=bucket, Key="large object")["ContentLength"] == len(content)


def test_a_server_that_is_down_is_an_error_and_not_a_hang() -> None:
    with run_directory() as folder, ExportServer(folder, free_port()) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=5)
        connection.request("GET", "/")
        response = connection.getresponse()
        assert response.status == 502
        assert b"not running" in response.read()
        connection.close()


def test_many_clients_at_once_are_not_mixed_up(dynamodb: "DynamoDBClient", make_table: MakeTable) -> None:
    table = make_table(None, recovery=False)
    wrong: list[int] = []

    def client(number: int) -> None:
        for step in range(20):
            key = {"Id": {"N": str(number)}}
            dynamodb.put_item(TableName=table, Item={**key, "step": {"N": str(step)}})
            if dynamodb.get_item(TableName=table, Key=key).get("Item", {}).get("step") != {"N": str(step)}:
                wrong.append(number)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert dynamodb.scan(TableName=table, ConsistentRead=True)["Count"] == 10


def test_the_gate_waits_for_writes_under_way_and_holds_new_ones() -> None:
    async def play() -> list[str]:
        gate = WriteGate()
        seen: list[str] = []
        first_may_end = asyncio.Event()

        async def first() -> None:
            async with gate.write():
                seen.append("first begins")
                await first_may_end.wait()
                seen.append("first ends")

        async def hold() -> None:
            async with gate.held():
                seen.append("held")
                await asyncio.sleep(0.02)
                seen.append("released")

        async def second() -> None:
            async with gate.write():
                seen.append("second begins")

        tasks = [asyncio.create_task(first())]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(hold()), asyncio.create_task(second())]
        await asyncio.sleep(0.02)
        assert seen == ["first begins"]
        first_may_end.set()
        await asyncio.gather(*tasks)
        return seen

    assert asyncio.run(play()) == ["first begins", "first ends", "held", "released", "second begins"]
