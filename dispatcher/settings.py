"""Every bound and every choice an operator has, in one place, read once from the environment.

Names in the environment are the field names in capitals behind `DISPATCHER_`, e.g. `DISPATCHER_MAX_BODY_BYTES`;
`database_url` is also read from `DATABASE_URL`. Durations are seconds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

_MOST_DAYS = 36_500
_LONGEST_ATTEMPT = 24 * 86_400  # what the store counts in milliseconds


class SettingsError(Exception):
    """A setting that cannot be used; the message names the variable and says what it takes."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Configuration of one dispatcher process. Each field's comment is its documentation."""

    # --- where things are
    database_url: str = ""  # Postgres to use; empty starts the embedded one in `data_dir`
    data_dir: str = ".dispatcher"  # the embedded Postgres and the development key live here
    host: str = "127.0.0.1"  # address the HTTP server binds
    port: int = 8400  # port the HTTP server binds
    api_url: str = ""  # public base URL of this server, as endpoints reach it; empty: http://host:port
    master_key: str = ""  # base64 of 32 bytes that seal secrets at rest; required by `serve`, made by `dev`
    dev: bool = False  # development: loopback only, no tokens needed, private destinations allowed

    # --- what endpoints may be
    egress_allow: str = ""  # private destinations endpoints may have: comma-separated CIDR[:port]
    allow_http: bool = False  # whether endpoints may be plain http (always so in development)

    # --- database
    database_connections: int = 12  # connections for intake and reads
    database_reserve: int = 4  # connections kept for outcomes and heartbeats, so that intake cannot starve them
    database_timeout: float = 5.0  # seconds any acquire or statement may take

    # --- intake
    max_body_bytes: int = 1_048_576  # body of one request
    max_bulk_bytes: int = 16_777_216  # body of one bulk request
    max_bulk_items: int = 1_000  # runs or events in one bulk request
    max_metadata_bytes: int = 16_384  # metadata of one run or event
    max_json_depth: int = 64  # nesting of any JSON accepted
    max_fan_out: int = 1_000  # runs one event may start
    max_fan_out_bytes: int = 268_435_456  # input those may have together
    max_filters: int = 10_000  # filters of events one tenant may have
    filter_seconds: float = 1.0  # evaluation the filters of one event may take together; those left then count as failed
    filter_queue: int = 1_000  # events of one tenant that may wait for costly filters before others are refused with 503
    max_bulk_runs: int = 100_000  # runs one bulk cancel or replay may match
    bulk_chunk: int = 500  # runs of a bulk action that are written together
    max_crons: int = 10_000  # crons one tenant may have
    max_bulk_schedules: int = 10_000  # schedules one bulk update or delete may match
    cron_grace: float = 60.0  # how late a tick may be found by a dispatcher that was running when it came, and still counts as on time
    cron_tolerance: float = 2.0  # the same for one that was not: later ones were missed, and the policy of the cron decides
    misfire_grace: float = 3_600.0  # how late a schedule still runs that says nothing else
    schedule_tolerance: float = 5.0  # how far in the past a schedule may lie when it is made, because clocks differ
    intake_queue: int = 20_000  # runs waiting for their commit before new ones are refused with 503
    intake_batch: int = 1_000  # runs written in one statement
    idempotency_ttl: float = 86_400.0  # how long an idempotency key is remembered unless the call says otherwise
    max_wait: float = 60.0  # longest `?wait=` one request may ask for

    # --- webhooks
    webhook_body_bytes: int = 1_048_576  # body of one request to a webhook that says nothing else; a webhook may ask for ten times that
    webhook_rate: float = 50.0  # deliveries a second a webhook takes that says nothing else; each live dispatcher takes its share
    webhook_burst: int = 100  # deliveries it takes at once, shared in the same way
    webhook_dedupe_ttl: float = 604_800.0  # how long the sender's id of a delivery is remembered; longer than any sender goes on trying
    webhook_repeat_ttl: float = 300.0  # how long the same body counts as a repetition where the sender gives no id
    webhook_refused_rate: float = 5.0  # refused requests a second that are written down for a webhook; others are only counted
    webhook_refused_burst: int = 50  # refused requests that are written down at once

    # --- delivery
    max_in_flight: int = 5_000  # attempts this process keeps open at once
    slot_patience: float = 2.0  # how long a task that fills several slots is passed over before free slots are saved for it
    default_slots: int = 100  # concurrent attempts of an endpoint that names no number
    default_durable_slots: int = 100  # concurrent turns of durable tasks, apart from those, of an endpoint that names no number
    batch_items: int = 100  # most tasks in one batch request, whatever the endpoint offers
    batch_bytes: int = 1_000_000  # most bytes in one batch request
    max_response_bytes: int = 4_194_304  # largest answer read from an endpoint
    max_blob_bytes: int = 16_777_216  # largest value that travels by reference
    inline_bytes: int = 1_000_000  # what is larger is sent by reference to endpoints that take references
    blob_ttl: float = 86_400.0  # how long an uploaded value waits to be used; never less than an attempt may take
    response_excerpt_bytes: int = 4_096  # how much of an answer an attempt keeps
    execution_timeout: float = 60.0  # of a task that names none
    schedule_timeout: float = 300.0  # longest wait in the queue of a task that names none
    max_execution_timeout: float = 86_400.0  # of any task, extensions included; at most 24 days
    cancel_grace: float = 10.0  # time a cancelled handler that can hear of it has to end by itself
    max_retries: int = 100  # a handler may ask for
    infra_retries: int = 10  # times an attempt may be lost before its task fails
    misconfig_ttl: float = 3_600.0  # how long tasks wait for a broken endpoint before they fail
    pushback_ttl: float = 86_400.0  # how long tasks wait for an endpoint that keeps asking for less
    breaker_failures: int = 5  # consecutive unreachable attempts that open an endpoint's circuit
    probe_seconds: float = 5.0  # first wait before an open circuit is probed; doubles up to `probe_max_seconds`
    probe_max_seconds: float = 60.0  # longest wait between probes
    secret_overlap: float = 86_400.0  # how long an endpoint's old secret keeps signing after a rotation

    # --- durable tasks
    journal_entries: int = 100_000  # entries in the log of one durable task
    journal_bytes: int = 33_554_432  # bytes in it
    turn_ops: int = 10_000  # operations recorded at once
    log_inline_bytes: int = 65_536  # a log no larger is sent whole with each turn; of a larger one only what is new
    wait_scan: int = 1_000  # stored events a wait with an expression looks back at, newest first
    inbox_message_bytes: int = 262_144  # largest message to a running task
    child_key_ttl: float = 2_592_000.0  # how long a task that is retried finds the children it has started by their keys

    # --- keeping
    heartbeat: float = 3.0  # seconds between a dispatcher's signs of life
    lease: float = 15.0  # a dispatcher silent for so long is dead, and its attempts are lost
    poll: float = 1.0  # longest any loop goes without looking, hint or no hint
    retention_days: int = 30  # days finished runs are kept
    log_lines_per_attempt: int = 10_000  # log lines kept of one attempt
    log_line_bytes: int = 16_384  # longest log line kept whole
    stream_chunks_per_attempt: int = 10_000  # pieces of streams kept of one attempt
    stream_bytes_per_attempt: int = 16_777_216  # bytes those may have together
    search_rows: int = 10_000  # rows one page of a search may look at; a page that stops there continues with its cursor
    search_seconds: float = 0.1  # and how long it may look; whichever comes first

    # --- following
    stream_heartbeat: float = 15.0  # seconds of silence after which followers of a stream or a log are sent a comment
    stream_stall: float = 30.0  # a follower that takes nothing for so long is let go
    stream_buffer_bytes: int = 1_048_576  # the latest of a stream that a process keeps in memory for all its followers
    max_stream_readers: int = 5_000  # followers one process serves at once

    def base_url(self) -> str:
        """Where endpoints find this server."""
        return self.api_url.rstrip("/") or f"http://{self.host}:{self.port}"


def from_environment(environ: Mapping[str, str] = os.environ, **overrides: Any) -> Settings:
    """Settings from variables; `overrides` (from the command line) win. Raises SettingsError naming the variable."""
    hints = get_type_hints(Settings)
    values: dict[str, Any] = {}
    for field in fields(Settings):
        variable = f"DISPATCHER_{field.name.upper()}"
        text = environ.get(variable)
        if text is None and field.name == "database_url":
            text = environ.get("DATABASE_URL")
        if text is not None:
            values[field.name] = _parse(variable, text, hints[field.name])
    return _checked(replace(Settings(**values), **overrides))


def _parse(variable: str, text: str, kind: type) -> Any:
    try:
        if kind is bool:
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        takes = {bool: "true or false", int: "a whole number", float: "a number of seconds"}[kind]
        raise SettingsError(f"{variable}={text!r} is not {takes}") from None


def _checked(settings: Settings) -> Settings:
    for field in fields(Settings):
        value = getattr(settings, field.name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if not math.isfinite(value) or (value <= 0 and field.name != "port"):
            raise SettingsError(f"DISPATCHER_{field.name.upper()}={value} must be a number greater than zero")
    if settings.retention_days > _MOST_DAYS:
        raise SettingsError(f"DISPATCHER_RETENTION_DAYS={settings.retention_days} must be at most {_MOST_DAYS}: a hundred years")
    for name in ("execution_timeout", "max_execution_timeout", "cancel_grace"):
        if getattr(settings, name) > _LONGEST_ATTEMPT:
            raise SettingsError(f"DISPATCHER_{name.upper()}={getattr(settings, name)} must be at most {_LONGEST_ATTEMPT}: 24 days")
    if settings.lease < 3 * settings.heartbeat:
        raise SettingsError("DISPATCHER_LEASE must be at least three times DISPATCHER_HEARTBEAT, or a slow heartbeat loses live work")
    return settings
