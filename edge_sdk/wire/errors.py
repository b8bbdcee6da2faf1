"""Errors of the wire, by who is at fault.

WireError             the bytes are wrong: a peer, a disk or a network sent something that must not be used
├── DecodeError       not the message, manifest or tensor file it claims to be
├── TooLargeError     over a stated bound; refused before it is read
├── IntegrityError    its size or SHA-256 is not the promised one
├── MaskError         a step of a secure sum that must not be taken: it would reveal more than the sum, or nothing
└── SignatureError    not signed by whom it has to be, or signed for another occasion
TransportError        the network is at fault: no broker, or the connection went away
"""


def os_error_line(error: OSError) -> str:
    """What could not be used, and why, without Python's way to write it; the file that was meant, not a draft of it."""
    name = error.filename2 or error.filename
    return f"{name}: {error.strerror}" if name and error.strerror else str(error)


def why_unreadable(error: OSError | ValueError) -> str:
    """Why a text file, whose name was said already, cannot be read or parsed."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text (byte {error.object[error.start]:#04x})"
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def last_line(said: str, otherwise: str) -> str:
    """The last of a process's words, which says why it ended; `otherwise` where it said nothing."""
    return (said.strip().splitlines() or [otherwise])[-1].strip()


class WireError(Exception):
    """Bytes that must not be used; the message says which bound or promise they broke."""


class DecodeError(WireError):
    """Bytes that are not what they claim to be."""


class TooLargeError(WireError):
    """Bytes over a stated bound, refused before they are read."""


class IntegrityError(WireError):
    """Bytes whose size or SHA-256 is not the promised one."""


class MaskError(WireError):
    """A step of a secure sum that must not be taken: it would reveal more than the sum, or leads nowhere."""


class SignatureError(WireError):
    """A message that is not signed by whom it has to be, or that was signed for another occasion."""


class TransportError(Exception):
    """The broker cannot be reached, or the connection went away."""
