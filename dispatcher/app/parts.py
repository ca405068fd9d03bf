"""What has been joined, for those who set it going."""

from __future__ import annotations

from dataclasses import dataclass

from dispatcher.runtime.batches import Batches
from dispatcher.runtime.capacity import Capacity
from dispatcher.runtime.circuits import Circuits
from dispatcher.runtime.claims import Claims
from dispatcher.runtime.deliveries import Deliveries
from dispatcher.runtime.graphs import Graphs
from dispatcher.runtime.membership import Membership
from dispatcher.runtime.services import Services
from dispatcher.runtime.settlement import Settlement
from dispatcher.runtime.signals import Signals
from dispatcher.runtime.waits import Waits


@dataclass(slots=True)
class Parts:
    """What a running dispatcher is made of: `services` for its edges, and the parts only its loops and its hints know."""

    services: Services
    membership: Membership
    deliveries: Deliveries
    capacity: Capacity
    claims: Claims
    circuits: Circuits
    settlement: Settlement
    signals: Signals
    graphs: Graphs
    waits: Waits
    batches: Batches
