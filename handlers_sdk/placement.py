"""Where tasks run: what they ask of the labels of an endpoint, how many of its slots they fill, whether a run stays where it began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from handlers_sdk.errors import ConfigError


class StickyStrategy(StrEnum):
    """Whether all tasks of a run go to the endpoint it began at: if that can take them (SOFT), or in any case (HARD)."""

    SOFT = "SOFT"
    HARD = "HARD"


class WorkerLabelComparator(StrEnum):
    """How an endpoint's label is compared with the desired value; all but the first two compare numbers."""

    EQUAL = "EQUAL"
    NOT_EQUAL = "NOT_EQUAL"
    GREATER_THAN = "GREATER_THAN"
    GREATER_THAN_OR_EQUAL = "GREATER_THAN_OR_EQUAL"
    LESS_THAN = "LESS_THAN"
    LESS_THAN_OR_EQUAL = "LESS_THAN_OR_EQUAL"


@dataclass(frozen=True, slots=True)
class DesiredWorkerLabel:
    """What a task asks of one label of the endpoint it runs at.

    A `required` one leaves out every endpoint that does not satisfy it; any other adds its `weight` to those that do, and the endpoint
    with the greatest sum is taken. `key` may be left out where the labels are given as a mapping.
    """

    key: str = ""
    value: str | int | float | bool = ""
    comparator: WorkerLabelComparator = WorkerLabelComparator.EQUAL
    required: bool = False
    weight: int = 100

    def __post_init__(self) -> None:
        plain = self.comparator in (WorkerLabelComparator.EQUAL, WorkerLabelComparator.NOT_EQUAL)
        if not plain and isinstance(self.value, str | bool):
            raise ConfigError(f"label {self.key!r}: {self.comparator} compares numbers, not {self.value!r}")

    def entry(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {"value": self.value, "comparator": str(self.comparator), "required": self.required, "weight": self.weight}


LabelsForm = Sequence[DesiredWorkerLabel] | Mapping[str, DesiredWorkerLabel] | None


def label_entries(labels: LabelsForm) -> dict[str, dict[str, Any]]:
    """Desired labels as the manifest and a call have them. ConfigError for one without a key."""
    if not labels:
        return {}
    named = labels.items() if isinstance(labels, Mapping) else [(label.key, label) for label in labels]
    entries = {key or label.key: label.entry() for key, label in named}
    if "" in entries:
        raise ConfigError("a DesiredWorkerLabel needs its key")
    return entries


@dataclass(frozen=True, slots=True)
class Placement:
    """What a task asks of the endpoint it runs at."""

    labels: Mapping[str, dict[str, Any]]
    slot_cost: int = 1

    @classmethod
    def of(cls, labels: LabelsForm, slot_cost: int) -> Placement:
        """As decorators take it."""
        if slot_cost < 1:
            raise ConfigError(f"slot_cost={slot_cost} must be at least 1")
        return cls(label_entries(labels), slot_cost)

    def entry(self) -> dict[str, Any]:
        """What the manifest says of it; nothing where it asks nothing."""
        said: dict[str, Any] = {"desired_labels": dict(self.labels)} if self.labels else {}
        return said | ({"slot_cost": self.slot_cost} if self.slot_cost != 1 else {})


ANYWHERE: Final = Placement({})
