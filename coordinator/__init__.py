"""The coordinator: decides rounds, keeps the ledger, validates and aggregates deltas. Never loads torch."""
