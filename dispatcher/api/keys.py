"""/.well-known/task-keys: the public keys endpoints verify `v1a` signatures with."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from dispatcher.api.auth import DEFAULT_TENANT
from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.errors import problem


class KeysQuery(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Whose keys: a tenant's slug."""

    tenant: str = DEFAULT_TENANT


class Keys(msgspec.Struct, frozen=True):
    """JSON Web Keys; `whpk` is the form Standard Webhooks libraries take, `exp` (unix seconds) the end of a key's life."""

    keys: list[dict[str, Any]]


async def task_keys(call: Call) -> Answer:
    """The public keys of a tenant, those that will sign soon included."""
    tenant = call.services.directory.tenant(call.query.tenant)
    if tenant is None:
        raise problem("not_found", f"there is no tenant {call.query.tenant[:100]!r}")
    return json_answer(200, {"keys": await call.services.registration.task_keys(tenant.id)})


ROUTES: Final = (Route("GET", "/.well-known/task-keys", task_keys, None, {200: Keys}, KeysQuery, problems=("not_found",)),)
