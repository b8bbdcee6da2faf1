"""Options of a command line that asks for an adapter, whichever command it is."""

from __future__ import annotations

import argparse
from typing import Any


def add_adapter(group: argparse._ArgumentGroup) -> None:
    """The adapter's kind, and all that a kind may take (`export.kinds`)."""
    group.add_argument("--adapter", default="lora", metavar="KIND", help="what trains (default: lora)")
    group.add_argument("--rank", type=int, default=8, metavar="R", help="rank of its factors (default: 8)")
    group.add_argument("--alpha", type=float, default=16.0, metavar="A", help="scaled by A / R (default: 16)")
    group.add_argument("--targets", type=names, default=(), metavar="A,B,...", help="modules (default: the family's)")
    group.add_argument("--first", type=int, default=0, metavar="K", help="first blocks that train, for layers")
    group.add_argument("--last", type=int, default=0, metavar="K", help="last blocks that train, for layers")
    group.add_argument("--length", type=int, default=0, metavar="N", help="tokens of a prompt or a prefix")


def adapter_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, named as in a configuration's table of the adapter."""
    options = ("rank", "alpha", "targets", "first", "last", "length")
    return {"kind": arguments.adapter, **{name: getattr(arguments, name) for name in options}}


def names(text: str) -> tuple[str, ...]:
    """Of `A,B,...`."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
