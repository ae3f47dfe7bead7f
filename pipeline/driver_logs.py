"""What drivers may log: nothing that names a host, a user or a database, and no body of a request or an answer.

psycopg's warnings print the connection, with host, user and database, and the server's text, which quotes values. At
DEBUG the AWS SDK prints answers, a secret's among them, and requests, with keys and items.

Invariant: this holds whatever level the root logger or Dagster's settings have: it is done where a driver is used, in
the Lambda, the command line and Dagster alike.
"""

from __future__ import annotations

import logging

_SDK = ("boto3", "botocore", "s3transfer", "urllib3")


class _WithoutValues(logging.Filter):
    """Lets warnings pass as their template, without what would be filled in."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return False
        if record.args:
            record.msg, record.args = f"{record.msg} (details left out)", None
        record.exc_info = record.exc_text = record.stack_info = None
        return True


_without_values = _WithoutValues()


def hold() -> None:
    """Hold the loggers of the drivers that are loaded, each by itself: a filter is not passed on to the loggers below.

    Idempotent; a level that is stricter stays.
    """
    for name in (*_SDK, *list(logging.Logger.manager.loggerDict)):
        driver, logger = name.partition(".")[0], logging.getLogger(name)
        if driver == "psycopg":
            logger.addFilter(_without_values)  # added again it counts once
        elif driver in _SDK and logger.level < logging.INFO and (name in _SDK or logger.level):
            logger.setLevel(logging.INFO)
