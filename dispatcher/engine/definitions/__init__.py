"""Definitions: what is registered about workflows and their tasks.

`workflows` reads a whole entry of a manifest, `tasks` one task, `conditions` its rules, `filters` which events start a run, `edges` the
graph between tasks; `reading` holds how a field is read and refused, `durations` how time is written.
"""

from dispatcher.engine.definitions.batching import Batching
from dispatcher.engine.definitions.conditions import Condition, Group, Parent, Rule, Sleep, UserEvent, compile_condition
from dispatcher.engine.definitions.crons import CRON_NAME, CronTrigger
from dispatcher.engine.definitions.durations import LONGEST, format_duration, parse_duration
from dispatcher.engine.definitions.filters import DefaultFilter
from dispatcher.engine.definitions.flow import Concurrency, RateLimit
from dispatcher.engine.definitions.placement import DesiredLabel, DesiredLabels, dump_desired_labels, parse_desired_labels
from dispatcher.engine.definitions.reading import EVENT_KEY, NAME, DefinitionError
from dispatcher.engine.definitions.tasks import STORED, Limits, TaskDefinition
from dispatcher.engine.definitions.workflows import Definition, checksum, content_checksum, dump, parse_definition, parse_definitions

__all__ = [
    "CRON_NAME",
    "EVENT_KEY",
    "LONGEST",
    "NAME",
    "STORED",
    "Batching",
    "Concurrency",
    "Condition",
    "CronTrigger",
    "DefaultFilter",
    "Definition",
    "DefinitionError",
    "DesiredLabel",
    "DesiredLabels",
    "Group",
    "Limits",
    "Parent",
    "RateLimit",
    "Rule",
    "Sleep",
    "TaskDefinition",
    "UserEvent",
    "checksum",
    "compile_condition",
    "content_checksum",
    "dump",
    "dump_desired_labels",
    "format_duration",
    "parse_definition",
    "parse_definitions",
    "parse_desired_labels",
    "parse_duration",
]  # fmt: skip
