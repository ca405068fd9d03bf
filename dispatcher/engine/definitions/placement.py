"""Where a task may run: labels it asks of an endpoint, how many slots it fills, whether a run stays where it began.

Labels are texts, numbers or booleans. A required one leaves out every endpoint that does not satisfy it; any other adds its weight to
those that do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from dispatcher.engine.definitions.reading import DefinitionError, Reader

Label = str | int | float | bool
Comparator = Literal["EQUAL", "NOT_EQUAL", "GREATER_THAN", "GREATER_THAN_OR_EQUAL", "LESS_THAN", "LESS_THAN_OR_EQUAL"]
Sticky = Literal["soft", "hard"]

COMPARATORS: Final[tuple[Comparator, ...]] = get_args(Comparator)
MOST_LABELS: Final = 20
MOST_LABEL: Final = 200
MOST_SLOT_COST: Final = 1_000
WEIGHT: Final = 100
_MOST_WEIGHT: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class DesiredLabel:
    """What a task asks of one label of an endpoint."""

    value: Label
    comparator: Comparator = "EQUAL"
    required: bool = False
    weight: int = WEIGHT


DesiredLabels = Mapping[str, DesiredLabel]


def parse_desired_labels(value: object, at: str) -> dict[str, DesiredLabel]:
    """Desired labels as a manifest or a trigger writes them: `{"gpu": {"value": 1, "comparator": "GREATER_THAN", "required": true}}`."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MOST_LABELS:
        raise DefinitionError(at, f"an object of at most {MOST_LABELS} labels")
    return {_name(name, at): _desired(wanted, f"{at}.{name}") for name, wanted in sorted(value.items())}


def _name(name: object, at: str) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= MOST_LABEL or not name.isprintable():
        raise DefinitionError(at, f"the name of a label is text of 1 to {MOST_LABEL} printable characters")
    return name


def _desired(value: object, at: str) -> DesiredLabel:
    if not isinstance(value, dict):
        value = {"value": value}
    reader = Reader(value, at, {"value", "comparator", "required", "weight"})
    wanted, comparator = reader.get("value"), reader.choice("comparator", "EQUAL", *COMPARATORS)
    if not isinstance(wanted, str | int | float | bool) or (isinstance(wanted, str) and len(wanted) > MOST_LABEL):
        raise reader.refuse("value", f"a text of at most {MOST_LABEL} characters, a number or a boolean")
    if comparator not in ("EQUAL", "NOT_EQUAL") and (isinstance(wanted, str | bool)):
        raise reader.refuse("value", f"{comparator} compares numbers")
    weight = reader.whole("weight", WEIGHT, -_MOST_WEIGHT, _MOST_WEIGHT)
    return DesiredLabel(wanted, next(c for c in COMPARATORS if c == comparator), reader.flag("required"), weight)


def dump_desired_labels(labels: DesiredLabels) -> dict[str, dict[str, Any]]:
    """The labels as `parse_desired_labels` reads them."""
    return {
        name: {"value": one.value, "comparator": one.comparator, "required": one.required, "weight": one.weight}
        for name, one in sorted(labels.items())
    }


def read_sticky(reader: Reader) -> Sticky | None:
    """`soft` or `hard`, in any case of letters."""
    value = reader.get("sticky")
    if value is None:
        return None
    word = value.lower() if isinstance(value, str) else value
    if word not in ("soft", "hard"):
        raise reader.refuse("sticky", 'takes "soft" or "hard"')
    return "hard" if word == "hard" else "soft"
