"""All that touches AWS: the ledger and the registry (DynamoDB), binaries and outputs (S3), keys (KMS)."""
