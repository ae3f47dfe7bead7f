"""Links into the AWS console use the ARN's own Region and partition. Without an ARN there is no link."""

from __future__ import annotations

import pytest

from dagster_project.console import Links, export_links, source_links
from pipeline.dynamodb.streams.event_sources import EventSourceMapping

EXPORT = "arn:{}:dynamodb:{}:111122223333:table/Employees/export/01715685260608-c488b4e1"


def urls(links: Links) -> dict[str, object]:
    return {name: value.value for name, value in links.items()}


@pytest.mark.parametrize(
    ("partition", "region", "host"),
    [
        ("aws", "eu-west-1", "eu-west-1.console.aws.amazon.com"),
        ("aws-cn", "cn-north-1", "console.amazonaws.cn"),
        ("aws-us-gov", "us-gov-west-1", "console.amazonaws-us-gov.com"),
    ],
)
def test_an_export_is_in_its_own_region(partition: str, region: str, host: str) -> None:
    links = urls(export_links(EXPORT.format(partition, region), "bucket", "dynaurora/AWSDynamoDB/1"))
    assert links["console"] == f"https://{host}/dynamodbv2/home?region={region}#exports"
    assert links["console_s3"] == (
        f"https://{host.removeprefix('eu-west-1.')}/s3/buckets/bucket?prefix=dynaurora/AWSDynamoDB/1/"
    )


@pytest.mark.parametrize("arn", [None, "", "no arn", EXPORT.format("aws-iso", "us-iso-east-1")])
def test_without_an_arn_there_is_no_link(arn: str | None) -> None:
    assert export_links(arn, None, "") == {}
    assert source_links(arn or "", None) == {}


def test_an_alias_and_a_second_reader_have_their_own_links() -> None:
    function = "arn:aws:lambda:eu-west-1:111122223333:function:"
    readers = [EventSourceMapping(n, "Enabled", f"{function}{n}", "LATEST", None, "") for n in ("one:live", "two")]
    links = urls(source_links("arn:aws:dynamodb:eu-west-1:111122223333:table/a.b", readers))
    home = "https://eu-west-1.console.aws.amazon.com/lambda/home?region=eu-west-1#/functions"
    assert links["console_function"] == f"{home}/one"
    assert links["console_event_source_mapping"] == f"{home}/one/aliases/live?tab=configure"
    assert links["console_function_2"] == f"{home}/two"
    assert str(links["console_log_group_2"]).endswith("log-group/$252Faws$252Flambda$252Ftwo")
    assert str(links["console_table"]).endswith("#table?name=a.b")
