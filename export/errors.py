"""Errors of export, by who is at fault.

ExportError               what was asked for cannot be done; the message is one line and says what to do
├── UnsupportedError      the model is of a family, or for a task, that export does not know
└── ParityError           the graphs do not compute what the model computes: a defect of ours, or of the runtime
"""


class ExportError(Exception):
    """Wrong input, in one line that says what is wrong and what to do."""


class UnsupportedError(ExportError):
    """A family or task that export does not know; the message names those it knows."""


class ParityError(ExportError):
    """Exported graphs and model disagree; the message names the worst tensor and its error."""
