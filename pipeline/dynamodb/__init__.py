"""The source: exports, scans, stream shards, re-reads by key."""
