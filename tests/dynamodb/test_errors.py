"""SDK errors become transient, unreachable or terminal; they say what was being done, and never quote parameters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from botocore.exceptions import IncompleteReadError
from botocore.stub import Stubber
from types_boto3_dynamodb.client import DynamoDBClient

from pipeline.core.errors import ConfigurationError, TerminalError, TransientError, UnreachableError
from pipeline.dynamodb.client import client
from pipeline.dynamodb.errors import translating


@pytest.fixture
def stubbed() -> Iterator[tuple[DynamoDBClient, Stubber]]:
    made = client("dynamodb")
    with Stubber(made) as stubber:
        yield made, stubber
    made.close()


def call(made: DynamoDBClient) -> None:
    with translating("reading an item of Employees", table="employees"):
        made.get_item(TableName="Employees", Key={"Id": {"N": "1"}})


@pytest.mark.parametrize(
    ("code", "status", "kind", "hint"),
    [
        ("ProvisionedThroughputExceededException", 400, TransientError, "try again"),
        ("ThrottlingException", 400, TransientError, "try again"),
        ("LimitExceededException", 400, TransientError, "try again"),
        ("InternalServerError", 500, TransientError, "try again"),
        ("SomethingNew", 503, TransientError, "try again"),
        ("ResourceNotFoundException", 400, TerminalError, "check the table's name"),
        ("AccessDeniedException", 400, TerminalError, "grant the role"),
        ("ExpiredTokenException", 400, TerminalError, "check the AWS credentials"),
        ("ValidationException", 400, TerminalError, None),
    ],
)
def test_by_code(
    stubbed: tuple[DynamoDBClient, Stubber], code: str, status: int, kind: type[Exception], hint: str | None
) -> None:
    made, stubber = stubbed
    stubber.add_client_error("get_item", code, "the value 4711 is not wanted", status)
    with pytest.raises(kind) as caught:
        call(made)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"reading an item of Employees: GetItem answered {code}")
    assert "(table employees)" in str(caught.value)
    assert hint is None or hint in str(caught.value)
    assert caught.value.__suppress_context__
    assert ("4711" in str(caught.value)) == (code in {"AccessDeniedException", "LimitExceededException"})


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "AccessDeniedException",
            "User: arn:aws:iam::1:role/r is not authorized to perform: kms:Decrypt on resource k",
        ),
        ("KMSAccessDeniedException", "no"),
        ("InaccessibleEncryptionCredentialsException", "no"),
    ],
)
def test_a_customer_managed_key_is_named_as_the_cause(
    stubbed: tuple[DynamoDBClient, Stubber], code: str, said: str
) -> None:
    made, stubber = stubbed
    stubber.add_client_error("get_item", code, said)
    with pytest.raises(TerminalError, match="grant this process's role kms:Decrypt on it"):
        call(made)


def test_the_sdks_own_refusal_quotes_no_parameter() -> None:
    made = client("dynamodb")
    with pytest.raises(TerminalError, match=r"the AWS SDK refused the call \(ParamValidationError\)") as caught:  # noqa: SIM117
        with translating("reading an item"):
            made.get_item(TableName="Employees", Key={"Id": {"N": 4711}})  # type: ignore[dict-item]
    made.close()
    assert "4711" not in str(caught.value)


def test_nothing_answers_is_unreachable() -> None:
    made = client("dynamodb", "http://127.0.0.1:9")
    with pytest.raises(
        UnreachableError, match=r"AWS could not be reached \(EndpointConnectionError\) .*; check the network"
    ):
        call(made)
    made.close()


def test_a_broken_answer_is_transient() -> None:
    with pytest.raises(TransientError, match="broke off in the answer"), translating("reading"):
        raise IncompleteReadError(actual_bytes=1, expected_bytes=2)


def test_no_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(
        ConfigurationError, match="making a client for dynamodb: the AWS SDK has no Region; set AWS_REG"
    ):
        client("dynamodb")


def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    made = client("dynamodb", "http://127.0.0.1:9")
    with pytest.raises(ConfigurationError, match=r"the AWS SDK has no usable credentials .*; check the AWS"):
        call(made)
    made.close()
