"""Access to AWS: ledger and registry (DynamoDB), objects (S3), keys (KMS), queues (SQS), the event bus."""
