"""Object stores, mainly for exports: S3, or a folder with a copy.

Invariant: `read` and `open` return the object's bytes exactly, from first to last, or raise. If a connection breaks,
reading resumes at the same byte, and the reader does not notice (the MD5 would show an error).
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

from botocore import exceptions as sdk

from pipeline.core.errors import ConfigurationError, TerminalError, TransientError
from pipeline.dynamodb.errors import error_code, translate, translating

if TYPE_CHECKING:
    from collections.abc import Iterator

    from botocore.response import StreamingBody
    from types_boto3_s3.client import S3Client
    from types_boto3_s3.type_defs import CopySourceTypeDef

_BROKEN_OFF = (
    sdk.ResponseStreamingError,
    sdk.IncompleteReadError,
    sdk.ReadTimeoutError,
    sdk.ConnectionClosedError,
    ConnectionError,
)
_ATTEMPTS_WITHOUT_PROGRESS = 4
_UNFINISHED = ".unfinished"


class MissingObjectError(TerminalError):
    """The object does not exist."""

    def __init__(self, location: str) -> None:
        super().__init__(
            f"reading {location}: there is no such object",
            hint="check the location; if the export's files were moved, copy all of them and keep the folder's layout",
        )


class ObjectBody(Protocol):
    """An object being read from front to back."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, none only at the end."""
        ...

    def close(self) -> None:
        """Close the connection or file."""
        ...


class ObjectStore(Protocol):
    """Objects by bucket and key."""

    def read(self, bucket: str, key: str) -> bytes:
        """Return a small object whole. Raises MissingObjectError."""
        ...

    def open(self, bucket: str, key: str) -> ObjectBody:
        """Open an object of any size. Raises MissingObjectError."""
        ...

    def keys(self, bucket: str, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with `prefix`, in their order."""
        ...

    def write(self, bucket: str, key: str, content: bytes) -> None:
        """Write an object whole, or not at all; an object with that key is replaced."""
        ...

    def move(self, bucket: str, key: str, to: str) -> None:
        """Give an object another key. An interrupted move leaves it under both."""
        ...


def split_location(location: str) -> tuple[str, str]:
    """Split `s3://bucket/key` or `file:///folder/file` into bucket and key (a folder's bucket is empty).

    Raises ConfigurationError if it is neither.
    """
    if location.startswith("s3://"):
        bucket, _, key = location.removeprefix("s3://").partition("/")
        if bucket and key:
            return bucket, key
    elif location.startswith("file:///"):
        return "", unquote(urlsplit(location).path).lstrip("/")
    raise ConfigurationError(
        f"reading the location {location}: it is neither s3://bucket/key nor file:///folder/file",
        hint="give the whole location of the export's manifest-summary.json",
    )


def join_location(bucket: str, key: str) -> str:
    """Return what `split_location` splits, for people to read."""
    return f"s3://{bucket}/{key}" if bucket else f"file:///{key}"


class FolderObjects:
    """Objects in a folder of this machine: the key is the path from the root of the file system."""

    def read(self, bucket: str, key: str) -> bytes:
        """Return a small object whole."""
        with self.open(bucket, key) as file:
            return file.read()

    def open(self, bucket: str, key: str):  # noqa: ANN201  inferred: a buffered reader, which is an ObjectBody
        """Open an object of any size."""
        try:
            return Path("/", bucket, key).open("rb")
        except (FileNotFoundError, NotADirectoryError):
            raise MissingObjectError(join_location(bucket, key)) from None
        except OSError as error:
            raise TerminalError(f"reading {join_location(bucket, key)}: {error.strerror}") from None

    def keys(self, bucket: str, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with `prefix`, in their order."""
        folder = Path("/", bucket, prefix.rpartition("/")[0])
        found = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(_UNFINISHED))
        yield from sorted(key for path in found if (key := str(path)[1:]).startswith(prefix))

    def write(self, bucket: str, key: str, content: bytes) -> None:
        """Write an object whole, or not at all."""
        path = Path("/", bucket, key)
        unfinished = path.with_name(path.name + _UNFINISHED)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(content)
            unfinished.replace(path)
        except OSError as error:
            raise TerminalError(f"writing {join_location(bucket, key)}: {error.strerror}") from None

    def move(self, bucket: str, key: str, to: str) -> None:
        """Give an object another key."""
        target = Path("/", bucket, to)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            Path("/", bucket, key).replace(target)
        except FileNotFoundError:
            raise MissingObjectError(join_location(bucket, key)) from None
        except OSError as error:
            raise TerminalError(f"moving {join_location(bucket, key)}: {error.strerror}") from None


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How objects are written. Empty options leave the bucket's own defaults."""

    sse: str | None = None
    """AES256 or aws:kms."""
    kms_key: str | None = None
    owners: Mapping[str, str] = field(default_factory=dict[str, str])
    """Accounts that buckets must belong to, by bucket."""

    def members(self, bucket: str) -> dict[str, Any]:
        """Return the members of a PutObject or CopyObject."""
        asked = {
            "ServerSideEncryption": self.sse,
            "SSEKMSKeyId": self.kms_key,
            "ExpectedBucketOwner": self.owners.get(bucket),
        }
        return {name: value for name, value in asked.items() if value}


class S3Objects:
    """Objects in S3."""

    def __init__(self, client: S3Client, options: WriteOptions | None = None) -> None:
        self._client = client
        self._options = options or WriteOptions()

    def read(self, bucket: str, key: str) -> bytes:
        """Return a small object whole."""
        body = self.open(bucket, key)
        try:
            parts: list[bytes] = []
            while part := body.read(1 << 20):
                parts.append(part)
            return b"".join(parts)
        finally:
            body.close()

    def open(self, bucket: str, key: str) -> S3Body:
        """Open an object of any size."""
        return S3Body(self._client, bucket, key)

    def keys(self, bucket: str, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with `prefix`, in their order."""
        with translating(f"listing s3://{bucket}/{prefix}"):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
                for entry in page.get("Contents", []):
                    yield entry.get("Key", "")

    def write(self, bucket: str, key: str, content: bytes) -> None:
        """Write an object whole, or not at all."""
        with translating(f"writing {join_location(bucket, key)}"):
            self._client.put_object(Bucket=bucket, Key=key, Body=content, **self._options.members(bucket))

    def move(self, bucket: str, key: str, to: str) -> None:
        """Give an object another key: a copy, then a delete."""
        with translating(f"moving {join_location(bucket, key)}"):
            source: CopySourceTypeDef = {"Bucket": bucket, "Key": key}
            self._client.copy_object(Bucket=bucket, Key=to, CopySource=source, **self._options.members(bucket))
            self._client.delete_object(Bucket=bucket, Key=key)


class S3Body:
    """One S3 object read from front to back, resumed with a range request when the connection breaks."""

    def __init__(self, client: S3Client, bucket: str, key: str) -> None:
        self._client, self._bucket, self._key = client, bucket, key
        self._position = 0
        self._etag = ""
        self._body = self._request()

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, none only at the end. Raises TransientError if the connection keeps breaking."""
        broken = 0
        while True:
            try:
                if broken:
                    self._body.close()
                    self._body = self._request()
                part = self._body.read(size)
            except (*_BROKEN_OFF, TransientError):
                broken += 1
                if broken == _ATTEMPTS_WITHOUT_PROGRESS:
                    raise TransientError(
                        f"{self._doing}: the connection broke off at byte {self._position}, {broken} times in a row",
                        hint="try again; it usually passes",
                    ) from None
                time.sleep(random.uniform(0, 0.1 * 2**broken))  # noqa: S311  jitter, no secret
            else:
                self._position += len(part)
                return part

    def close(self) -> None:
        """Close the connection."""
        self._body.close()

    @property
    def _doing(self) -> str:
        return f"reading {join_location(self._bucket, self._key)}"

    def _request(self) -> StreamingBody:
        try:
            if self._position:
                answer = self._client.get_object(
                    Bucket=self._bucket, Key=self._key, Range=f"bytes={self._position}-", IfMatch=self._etag
                )
            else:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._key)
        except sdk.ClientError as error:
            if error_code(error) in {"NoSuchKey", "404"}:
                raise MissingObjectError(join_location(self._bucket, self._key)) from None
            if error_code(error) in {"PreconditionFailed", "412"}:
                raise TerminalError(f"{self._doing}: the object was replaced while it was being read") from None
            raise translate(error, self._doing) from None
        except sdk.BotoCoreError as error:
            raise translate(error, self._doing) from None
        self._etag = answer["ETag"]
        return answer["Body"]
