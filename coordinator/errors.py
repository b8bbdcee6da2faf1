"""Errors of the coordinator, by who is at fault. Each message is one line: what is wrong, and what to do.

CoordinatorError
├── ConfigError    the configuration: an unknown key, a value out of range
├── JobError       a process that we started (export, evaluation) ended badly
├── BrokerError    no broker could be started here
└── LedgerError    the ledger on disk belongs to another run, or is in use
"""


class CoordinatorError(Exception):
    """Something that the person at the coordinator has to settle."""


class ConfigError(CoordinatorError):
    """The configuration file says something it must not."""


class JobError(CoordinatorError):
    """A process of ours ended badly; the message carries its last line."""


class BrokerError(CoordinatorError):
    """No broker could be started."""


class LedgerError(CoordinatorError):
    """The ledger cannot be used."""
