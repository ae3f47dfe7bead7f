"""What drivers may log: nothing that names a host, a user or a database, and no body of a request or an answer.

psycopg's warnings print the connection, with host, user and database, and the server's text, which quotes values. At
DEBUG the AWS SDK prints answers, including a secret's, and requests, with keys and items.

Invariant: this holds whatever level the root logger or Dagster's settings have. It is set up wherever a driver is used:
in the Lambda function, the command line and Dagster.
"""

from __future__ import annotations

import logging

_SDK = ("boto3", "botocore", "s3transfer", "urllib3")


class _WithoutValues(logging.Filter):
    """Lets warnings pass as their template, without the values that would be filled in."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return False
        if record.args:
            record.msg, record.args = f"{record.msg} (details left out)", None
        record.exc_info = record.exc_text = record.stack_info = None
        return True


_without_values = _WithoutValues()


def hold() -> None:
    """Restrict the loggers of the loaded drivers, one by one, because a filter does not apply to the loggers below.

    Idempotent; a stricter level stays.
    """
    for name in (*_SDK, *list(logging.Logger.manager.loggerDict)):
        driver, logger = name.partition(".")[0], logging.getLogger(name)
        if driver == "psycopg":
            logger.addFilter(_without_values)  # added again it counts once
        elif driver in _SDK and logger.level < logging.INFO and (name in _SDK or logger.level):
            logger.setLevel(logging.INFO)
