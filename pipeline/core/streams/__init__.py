"""All that is of DynamoDB Streams alone: events, records, positions, batches that failed."""
