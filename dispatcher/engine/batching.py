"""When a batch goes: as soon as it is full, or when the first of it has waited long enough, while no more of its group run than may."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from dispatcher.engine.definitions import Batching, Definition
from dispatcher.engine.definitions.flow import compile_key
from dispatcher.engine.expressions import ExpressionError
from dispatcher.engine.flow import FlowError

_PLAIN = 100  # characters of a key that stands in the index as it is


@dataclass(frozen=True, slots=True)
class Gathered:
    """What waits of one group, counted up to the size of a batch: how many, the oldest of them, and how many batches of it run."""

    waiting: int
    oldest: datetime
    running: int


def goes_at(batching: Batching, gathered: Gathered) -> datetime | None:
    """From when on the next batch may go; None while too many of its group run."""
    if batching.group_max_runs is not None and gathered.running >= batching.group_max_runs:
        return None
    return gathered.oldest if gathered.waiting >= batching.max_size else gathered.oldest + batching.interval


def group_of(definition: Definition, input: object, metadata: object) -> str | None:
    """The group a new task is batched in; None where it is run alone. Raises FlowError for a key that cannot be told."""
    batching = definition.tasks[0].batch
    if batching is None:
        return None
    if batching.group_key is None:
        return ""
    given = metadata if metadata is not None else {}
    try:
        key = compile_key(batching.group_key).evaluate({"input": input, "additional_metadata": given, "metadata": given}).value
    except ExpressionError as error:
        raise FlowError("batch group_key", batching.group_key, str(error)) from None
    return key if len(key) <= _PLAIN else f"{key[:_PLAIN]}~{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}"
