"""The endpoints' own record: one line per attempt they were sent, appended before anything is done about it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from tests.chaos.ledger import Request


class Witness:
    """Writes lines of `run attempt nonce pid`; O_APPEND, so that processes do not cut each other's lines."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def saw(self, run_id: str, attempt: int) -> str:
        """Note a request; the nonce its result has to carry."""
        nonce = secrets.token_hex(6)
        os.write(self._descriptor, f"{run_id} {attempt} {nonce} {os.getpid()}\n".encode())
        return nonce


def read(path: Path) -> list[Request]:
    """Everything that was noted."""
    if not path.exists():
        return []
    lines = [line.split() for line in path.read_text().splitlines()]
    return [Request(run_id, int(attempt), nonce) for run_id, attempt, nonce, _ in lines]
