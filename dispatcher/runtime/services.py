"""What the edges (HTTP, command line) may call."""

from __future__ import annotations

from dataclasses import dataclass

from dispatcher.clock import Clock
from dispatcher.runtime.asides import Asides
from dispatcher.runtime.blobs import Blobs
from dispatcher.runtime.bulk import Bulk
from dispatcher.runtime.callbacks import Callbacks
from dispatcher.runtime.cancellation import Cancellation
from dispatcher.runtime.capacity import Capacity
from dispatcher.runtime.crons import Crons
from dispatcher.runtime.directory import Directory
from dispatcher.runtime.durable import Durable
from dispatcher.runtime.explaining import Explaining
from dispatcher.runtime.filters import Filters
from dispatcher.runtime.gates import Gates
from dispatcher.runtime.intake import Intake
from dispatcher.runtime.limits import Limits
from dispatcher.runtime.metrics import Metrics
from dispatcher.runtime.pausing import Pausing
from dispatcher.runtime.rates import Rates
from dispatcher.runtime.registration import Registration
from dispatcher.runtime.renewals import Renewals
from dispatcher.runtime.replays import Replays
from dispatcher.runtime.schedules import Schedules
from dispatcher.runtime.search import Search
from dispatcher.runtime.settlement import Settlement
from dispatcher.runtime.streams import Streams
from dispatcher.runtime.timetable import Timetable
from dispatcher.runtime.unschedulable import Unschedulable
from dispatcher.runtime.waiters import Waiters
from dispatcher.runtime.webhooks import Webhooks
from dispatcher.settings import Settings
from dispatcher.store.database import Database


@dataclass(slots=True, repr=False)  # it would write out the whole program
class Services:
    """The parts of a running dispatcher that edges use."""

    settings: Settings
    clock: Clock
    database: Database
    intake: Intake
    waiters: Waiters
    cancellation: Cancellation
    registration: Registration
    callbacks: Callbacks
    directory: Directory
    metrics: Metrics
    settlement: Settlement
    capacity: Capacity
    webhooks: Webhooks
    durable: Durable
    filters: Filters
    replays: Replays
    bulk: Bulk
    streams: Streams
    search: Search
    pausing: Pausing
    asides: Asides
    renewals: Renewals
    unschedulable: Unschedulable
    crons: Crons
    schedules: Schedules
    timetable: Timetable
    gates: Gates
    rates: Rates
    limits: Limits
    explaining: Explaining
    blobs: Blobs
