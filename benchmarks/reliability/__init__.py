"""What breaks, what survives it, and how both are counted: the faults behind docs/promises.md."""
