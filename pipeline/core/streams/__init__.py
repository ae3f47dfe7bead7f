"""Everything specific to DynamoDB Streams: events, records, positions, failed batches."""
