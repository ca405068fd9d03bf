"""Delivery: put attempts on the wire and say what came back. It classifies, it never decides.

`Courier` is the whole of it for the rest of the dispatcher; `EgressPolicy` is made from settings, `check_url` and `check_headers` judge
what an endpoint is registered with.
"""

from dispatcher.delivery.discovery import DiscoveryError, EndpointLimits, Manifest
from dispatcher.delivery.egress import EgressPolicy, EgressRefused, check_url
from dispatcher.delivery.envelope import rfc3339
from dispatcher.delivery.exchange import CourierBounds
from dispatcher.delivery.headers import HeaderRefused, check_headers
from dispatcher.delivery.message import BatchLimits, Push, Receipt, Target
from dispatcher.delivery.push import Courier

__all__ = [
    "BatchLimits",
    "Courier",
    "CourierBounds",
    "DiscoveryError",
    "EgressPolicy",
    "EgressRefused",
    "EndpointLimits",
    "HeaderRefused",
    "Manifest",
    "Push",
    "Receipt",
    "Target",
    "check_headers",
    "check_url",
    "rfc3339",
]
