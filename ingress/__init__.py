"""HTTP to record: authenticate, validate, publish, answer. Knows nothing of the consumers."""
