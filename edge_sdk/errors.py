"""Errors of the device, by who is at fault.

EdgeError
├── ConfigError       the person who wrote the configuration, or called us with numbers that cannot be
├── DataError         the private data: missing, empty, or not what its kind says
├── ArtifactError     the artifact cannot be used on this device
└── TrainingError     a task was begun and cannot be finished
    ├── OverBudget    more memory than the budget, with the measured bytes
    └── NonFinite     a loss or gradient that is not a number

Bytes that must not be used raise `edge_sdk.wire.errors.WireError`.
"""


class EdgeError(Exception):
    """Anything that a person at the device has to know, in one line."""


class ConfigError(EdgeError):
    """A configuration or an argument that cannot be."""


class DataError(EdgeError):
    """The private data is missing, empty, or not what its kind says."""


class ArtifactError(EdgeError):
    """The artifact cannot be used on this device."""


class TrainingError(EdgeError):
    """A task was begun and cannot be finished."""


class OverBudget(TrainingError):  # noqa: N818 - named after the answer it becomes
    """Memory, `measured_bytes`, above the budget, `budget_bytes`; resident unless `what` says otherwise."""

    def __init__(self, measured_bytes: int, budget_bytes: int, what: str = "resident") -> None:
        """Say both numbers."""
        super().__init__(f"{measured_bytes / 1e6:.0f} MB {what}, the budget is {budget_bytes / 1e6:.0f} MB")
        self.measured_bytes = measured_bytes
        self.budget_bytes = budget_bytes


class NonFinite(TrainingError):  # noqa: N818 - named after the answer it becomes
    """A loss or gradient is not a finite number."""
