"""Ids: a prefix that names the kind, and a ULID (48 bits of milliseconds, 80 random bits) in lower-case Crockford base 32.

They sort by creation time as text, so the id is also the order of arrival and, for history, says which partitions can hold it.
"""

from __future__ import annotations

import hashlib
import os
import random
from datetime import UTC, datetime

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = tuple(a + b for a in _ALPHABET for b in _ALPHABET)
_VALUE = {letter: value for value, letter in enumerate(_ALPHABET)}
ULID_LENGTH = 26
NODE_LIMIT = 32_767
_STEP = 1 << 32


def _encode(value: int, pairs: int) -> str:
    """`pairs` two-letter groups of the lowest bits of `value`, most significant first."""
    return "".join([_PAIRS[(value >> shift) & 1023] for shift in range((pairs - 1) * 10, -1, -10)])


class IdMaker:
    """Makes ids that sort in the order they were made within this process, even inside one millisecond."""

    def __init__(self) -> None:
        self._millis = -1
        self._head = ""
        self._tail = 0

    def ulid(self, now: datetime) -> str:
        """26 letters; later calls sort after earlier ones as long as `now` does not run backwards."""
        millis = int(now.timestamp() * 1000)
        if millis > self._millis:
            self._millis = millis
            self._head = _encode(millis, 5)
            self._tail = int.from_bytes(os.urandom(10), "big") >> 1
        else:
            # A random step keeps ids of one millisecond in order, and two processes apart. Ids are names, not secrets.
            self._tail += random.randrange(1, _STEP)  # noqa: S311
        return self._head + _encode(self._tail, 8)

    def make(self, prefix: str, now: datetime) -> str:
        """`prefix_<ulid>`, e.g. `run_01ja3z9k8q…`."""
        return f"{prefix}_{self.ulid(now)}"


def created_at(identifier: str) -> datetime | None:
    """The millisecond an id was made, or None if the text is no id of ours."""
    _, _, ulid = identifier.partition("_")
    ulid = ulid[:ULID_LENGTH]
    if len(ulid) != ULID_LENGTH or any(letter not in _VALUE for letter in ulid):
        return None
    millis = 0
    for letter in ulid[:10]:
        millis = millis * 32 + _VALUE[letter]
    if millis >= 1 << 47:
        return None
    return datetime.fromtimestamp(millis / 1000, UTC)


def task_id(run_id: str, node: int) -> str:
    """A task run's id: its run's ULID, and which node of the run it is when there are several."""
    return f"tsk_{run_id[4:]}-{node}" if node else f"tsk_{run_id[4:]}"


def parse_task_id(identifier: str) -> tuple[str, int] | None:
    """(run id, node) of a task run id, or None if it is not one."""
    if not identifier.startswith("tsk_"):
        return None
    ulid, dash, node = identifier[4:].partition("-")
    if created_at(f"run_{ulid}") is None or len(ulid) != ULID_LENGTH:
        return None
    if not dash:
        return f"run_{ulid}", 0
    if not node.isascii() or not node.isdigit() or node.startswith("0") or not 0 < int(node) <= NODE_LIMIT:
        return None
    return f"run_{ulid}", int(node)


def seed(tenant_id: int, run_id: str, node: int) -> str:
    """What a durable task's randomness is made of: the same for all of its life, and after."""
    return hashlib.sha256(f"{tenant_id}/{task_id(run_id, node)}".encode()).hexdigest()[:32]


def attempt_id(run_id: str, node: int, number: int) -> str:
    """An attempt's id: its task run's, and its number."""
    return f"att_{task_id(run_id, node)[4:]}_{number}"
