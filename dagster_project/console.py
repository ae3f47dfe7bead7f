"""Links into the AWS console, computed from ARNs alone.

Invariant: account, Region and partition are the ARN's own, never this process's. If no ARN is known yet, because AWS
has not been asked, the link leaves the Region to the browser, which uses the one that was last looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

import dagster as dg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.dynamodb.streams.event_sources import EventSourceMapping

_DOMAINS = {
    "aws": "console.aws.amazon.com",
    "aws-cn": "console.amazonaws.cn",
    "aws-us-gov": "console.amazonaws-us-gov.com",
}

Links = dict[str, dg.MetadataValue]


@dataclass(frozen=True, slots=True)
class Arn:
    """The parts of an ARN that links are made of."""

    partition: str
    region: str
    resource: str
    """What follows the account, such as `table/Employees` or `function:replicator`."""

    @classmethod
    def of(cls, text: str) -> Arn | None:
        """Read an ARN; None if it is not one, or names a partition without a console that we know of."""
        parts = text.split(":", 5)
        if len(parts) != 6 or parts[0] != "arn" or parts[1] not in _DOMAINS or not parts[3]:
            return None
        return cls(parts[1], parts[3], parts[5])

    def home(self, service: str) -> str:
        """Address of a service's page in the ARN's Region."""
        host = _DOMAINS[self.partition]
        host = f"{self.region}.{host}" if self.partition == "aws" else host
        return f"https://{host}/{service}/home?region={self.region}"


def table_by_name(name: str) -> Links:
    """Links to a table if only its name is known."""
    home = f"https://{_DOMAINS['aws']}/dynamodbv2/home"
    return {"console": dg.MetadataValue.url(f"{home}#table?name={quote(name)}")}


def exports_anywhere() -> Links:
    """Link to the list of exports if no Region is known."""
    return {"console": dg.MetadataValue.url(f"https://{_DOMAINS['aws']}/dynamodbv2/home#exports")}


def export_links(export_arn: str | None, bucket: str | None, folder: str) -> Links:
    """Links to an export: in DynamoDB's list of exports, and its folder in S3."""
    links: Links = {}
    arn = Arn.of(export_arn or "")
    if arn is not None:
        links["console"] = dg.MetadataValue.url(f"{arn.home('dynamodbv2')}#exports")
    if bucket:
        host = _DOMAINS[arn.partition if arn else "aws"]
        links["console_s3"] = dg.MetadataValue.url(f"https://{host}/s3/buckets/{bucket}?prefix={quote(folder)}/")
    return links


def source_links(table_arn: str, readers: Sequence[EventSourceMapping] | None) -> Links:
    """Links to a table and to what reads its stream: the function, its event source mapping, its log.

    Several readers are numbered from the second on.
    """
    links: Links = {}
    table = Arn.of(table_arn)
    if table is not None:
        name = table.resource.removeprefix("table/")
        links["console_table"] = dg.MetadataValue.url(f"{table.home('dynamodbv2')}#table?name={quote(name)}")
        links["console_exports"] = dg.MetadataValue.url(f"{table.home('dynamodbv2')}#exports")
    for number, reader in enumerate(readers or (), 1):
        ending = "" if number == 1 else f"_{number}"
        links |= {f"{what}{ending}": link for what, link in _reader_links(reader).items()}
    return links


def _reader_links(reader: EventSourceMapping) -> Links:
    function = Arn.of(reader.function_arn)
    if function is None:
        return {}
    name, _, qualifier = function.resource.removeprefix("function:").partition(":")
    page = f"{function.home('lambda')}#/functions/{quote(name)}"
    of_version = f"/aliases/{quote(qualifier)}" if qualifier and not qualifier.isdigit() else ""
    # CloudWatch's own encoding of a name in the fragment: percent-encoded twice, with $ for %.
    group = quote(quote(f"/aws/lambda/{name}", safe=""), safe="").replace("%", "$")
    return {
        "console_function": dg.MetadataValue.url(page),
        "console_event_source_mapping": dg.MetadataValue.url(f"{page}{of_version}?tab=configure"),
        "console_log_group": dg.MetadataValue.url(f"{function.home('cloudwatch')}#logsV2:log-groups/log-group/{group}"),
    }
