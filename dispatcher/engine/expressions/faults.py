"""What may go wrong with an expression, and what one may cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

ExpressionCode = Literal["syntax", "wrong_type", "missing_key", "eval", "budget", "too_large", "empty"]

MAX_SOURCE: Final = 1_024
"""Characters of an expression."""
MAX_TOKENS: Final = 400
"""Names, literals, operators and brackets of an expression: what bounds the time it takes to compile, and the memory it is kept in."""
MAX_NESTING: Final = 32
"""Brackets within brackets, operators within operands; a chain such as `a + b + c` counts once."""
MAX_STEPS: Final = 20_000
"""Nodes looked at, elements compared, and kilobytes of text read, in one evaluation."""
MAX_SECONDS: Final = 0.1
"""How long one evaluation may take by the clock it is given."""
MAX_TEXT: Final = 65_536
"""Characters of a string, or bytes, that an evaluation may make."""
MAX_RESULT: Final = 512
"""Characters of a string that an expression gives: an event key, a scope, the key of a limit."""

_BETWEEN_LOOKS: Final = 256


class ExpressionError(Exception):
    """An expression that cannot be taken, or did not give what it should.

    `code` is stable: `syntax` it cannot be read, `empty` there is nothing in it or in the string it gives, `too_large` a limit of
    length or depth is passed, `wrong_type` it gives something of another type, `missing_key` it reads what is not there, `budget` it
    takes too many steps or too long, `eval` anything else. `position` counts characters from 0; `hint` says what to change.
    """

    def __init__(self, code: ExpressionCode, message: str, *, position: int | None = None, hint: str = "") -> None:
        place = "" if position is None else f" (at character {position + 1})"
        super().__init__(f"{message}{place}{f'; {hint}' if hint else ''}")
        self.code: ExpressionCode = code
        self.message = message
        self.position = position
        self.hint = hint


class Fault(Exception):  # noqa: N818 - a value within an evaluation, which `||` and `&&` may outlive
    """One operation that has no result, while the expression around it still may: `input.a == 1 || true` holds without `a`."""

    def __init__(self, message: str, code: Literal["missing_key", "eval"] = "eval") -> None:
        super().__init__(message)
        self.code: Literal["missing_key", "eval"] = code


def as_error(fault: Fault, position: int | None = None) -> ExpressionError:
    """A Fault that nothing absorbed."""
    hint = "has(…) tells whether something is there" if fault.code == "missing_key" else ""
    return ExpressionError(fault.code, str(fault), position=position, hint=hint)


class Meter:
    """Counts the steps of one evaluation, and looks at the clock every 256 of them.

    Passing a limit raises ExpressionError `budget`, which no operator of the language absorbs. `clock` gives seconds; without one
    only the steps are bounded.
    """

    __slots__ = ("_clock", "_look_at", "_until", "steps")

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self.steps = 0
        self._clock = clock
        self._until = 0.0 if clock is None else clock() + MAX_SECONDS
        self._look_at = _BETWEEN_LOOKS

    def step(self, count: int = 1) -> None:
        """Pay for `count` steps."""
        self.steps += count
        if self.steps >= self._look_at:
            self._look()

    def read(self, size: int) -> None:
        """Pay for going once through `size` characters or bytes: a step for each full 1,024."""
        if size >= 1_024:
            self.step(size >> 10)

    def _look(self) -> None:
        if self.steps > MAX_STEPS:
            raise ExpressionError("budget", f"it takes more than {MAX_STEPS:,} steps", hint="compare fewer or smaller things")
        if self._clock is not None and self._clock() > self._until:
            raise ExpressionError("budget", f"it takes longer than {MAX_SECONDS * 1_000:.0f} ms", hint="compare fewer or smaller things")
        self._look_at = min(self.steps + _BETWEEN_LOOKS, MAX_STEPS + 1)
