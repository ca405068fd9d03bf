"""Webhooks: what is registered, what arrives, and what becomes of it.

| file | what |
|---|---|
| sources.py | this process's picture of every address that receives |
| receiver.py | one request, from its bytes to its answer |
| payloads.py | what is kept of a request, and what its event carries |
| buckets.py, notes.py | how much is taken in, and what is written down beside the way |
| management.py | making, changing and removing addresses; their secrets |
| deliveries.py | replaying and routing again |
| samples.py, signing.py | requests as senders make them, to try an address with |
"""

from dispatcher.runtime.webhooks.service import Webhooks

__all__ = ["Webhooks"]
