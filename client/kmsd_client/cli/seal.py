"""Seal the daemon: it wipes all keys, and serves nobody until it is unsealed or started again. For administrators."""

from __future__ import annotations

import argparse

from kmsd.api.administration import SEAL, SealRequest
from kmsd_client import Client


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Seal; a daemon that is sealed stays so."""
    with Client(options.socket) as client:
        client.call(SEAL, SealRequest())
    print("kmsd is sealed")
