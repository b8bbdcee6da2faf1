"""`fedpeat controller`: what is to be done with policies beside running them."""

from __future__ import annotations

import argparse
import pathlib

CONFIG = "coordinator.toml"


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser("controller", help="policies: make a run's decisions again")
    parts = parser.add_subparsers(required=True, metavar="COMMAND")
    command = parts.add_parser("replay", help="each decision of a run in words, and whether the policy makes it again")
    command.add_argument("--config", type=pathlib.Path, default=pathlib.Path(CONFIG), metavar="FILE")
    command.add_argument("--round", type=int, default=None, metavar="N", help="show this round's decisions alone")
    command.set_defaults(run=_replay)


def _replay(arguments: argparse.Namespace) -> int:
    """0 where all decisions that are shown are made again, 1 where one is not. Raises ConfigError, LedgerError."""
    from coordinator.assignment import name_of
    from coordinator.config import load_config
    from coordinator.controller.replay import lines, replay
    from coordinator.errors import ConfigError
    from coordinator.places import ledger_path
    from coordinator.policy.registry import policy_of

    config = load_config(arguments.config)
    path, policy = ledger_path(config), policy_of(config.policy)
    shown = agreed = 0
    for one in replay(path, policy):
        if arguments.round in {None, one.logged.round}:
            print("\n".join(lines(one)))
            shown, agreed = shown + 1, agreed + one.agrees
    if not shown:
        which = "" if arguments.round is None else f" for round {arguments.round}"
        msg = f"{path} has no decision{which} so far"
        raise ConfigError(msg)
    print(f"{agreed} of {shown} decisions are made again by {name_of(policy)}")
    return 0 if agreed == shown else 1
