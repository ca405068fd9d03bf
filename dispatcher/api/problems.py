"""/errors: what each problem code means, at the address that problem documents name as their `type`."""

from __future__ import annotations

from typing import Final

import msgspec

from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.errors import CODES, problem


class Explanation(msgspec.Struct, frozen=True):
    """A problem code: the status it comes with, what it says, what to do, and in how many seconds to repeat where that helps."""

    code: str
    status: int
    title: str
    hint: str
    retry_after: int | None


async def explain(call: Call) -> Answer:
    """What a problem code means, and what to do about it."""
    name = call.path["code"]
    code = CODES.get(name)
    if code is None:
        raise problem("not_found", f"there is no problem code {name[:100]!r}")
    return json_answer(200, Explanation(name, code.status, code.title, code.hint, code.retry_after))


ROUTES: Final = (Route("GET", "/errors/{code}", explain, None, {200: Explanation}, problems=("not_found",)),)
