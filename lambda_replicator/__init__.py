"""The Lambda function on a table's stream."""
