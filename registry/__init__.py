"""What was tried, what was published, what may be served: MLflow tracking, releases, the gate and the ledger."""
