"""/v1/expressions/debug: what an expression gives, before anything depends on it."""

from __future__ import annotations

import asyncio
from typing import Any, Final, Literal

import msgspec

from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.clock import monotonic
from dispatcher.engine.expressions import Expression, ExpressionCode, ExpressionError

Kind = Literal["event_key", "scope", "filter"]

# What an expression of each kind gives, and how many macros may go through lists in it.
_KINDS: Final[dict[Kind, tuple[type[Any], int]]] = {"event_key": (str, 0), "scope": (str, 0), "filter": (bool, 4)}


class DebugBody(msgspec.Struct, forbid_unknown_fields=True):
    """An expression, what it is for, and the values it reads, by their names: {"input": {…}, "headers": {…}}."""

    expression: str
    kind: Kind = "filter"
    variables: dict[str, Any] = {}


class ExpressionFault(msgspec.Struct, frozen=True):
    """Why it has no result. `position` counts characters of the expression from 0."""

    code: ExpressionCode
    message: str
    position: int | None
    hint: str


class Debugged(msgspec.Struct, frozen=True):
    """A result, or an error. `steps` is what it cost, of 20,000; `plain` tells that it needs no engine."""

    result: str | bool | None = None
    error: ExpressionFault | None = None
    steps: int = 0
    plain: bool = False
    warnings: tuple[str, ...] = ()


async def debug_expression(call: Call) -> Answer:
    """Evaluate an expression on given values. One that cannot be read, or fails on them, is answered 200 with its `error`."""
    body: DebugBody = await call.json(_BODY)
    return json_answer(200, await asyncio.to_thread(_debugged, body))  # compiling and evaluating may take 100 ms together


def _debugged(body: DebugBody) -> Debugged:
    returns, macros = _KINDS[body.kind]
    try:
        expression: Expression[Any] = Expression(body.expression, returns=returns, macros=macros, names=body.variables, clock=monotonic)
    except ExpressionError as error:
        return Debugged(error=_fault(error))
    try:
        outcome = expression.evaluate(body.variables)
    except ExpressionError as error:
        return Debugged(error=_fault(error), plain=expression.is_plain, warnings=expression.warnings)
    return Debugged(outcome.value, None, outcome.steps, expression.is_plain, expression.warnings)


def _fault(error: ExpressionError) -> ExpressionFault:
    return ExpressionFault(error.code, error.message, error.position, error.hint)


_BODY: Final = msgspec.json.Decoder(DebugBody)
_BAD_BODY: Final = ("invalid_json", "invalid_value", "unknown_field", "too_deep", "nul_character", "number_out_of_range", "invalid_utf8")

ROUTES: Final = (
    Route(
        "POST", "/v1/expressions/debug", debug_expression, "events:read", {200: Debugged}, body=DebugBody,
        problems=(*_BAD_BODY, "body_too_large", "unsupported_media_type"),
    ),
)  # fmt: skip
