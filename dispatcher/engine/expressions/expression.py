"""One expression: checked when it is made, evaluated when it is called."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final, Generic, TypeVar

from dispatcher.engine.expressions.faults import MAX_RESULT, ExpressionError, Fault, Meter, as_error
from dispatcher.engine.expressions.lexer import Lexed, Token, lex
from dispatcher.engine.expressions.plain import Reader, plain
from dispatcher.engine.expressions.values import Uint, article

T = TypeVar("T", str, bool, int)

KEPT: Final = 256
"""Compiled expressions that are kept, by their text."""
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NAMES: Final = {str: "a string", bool: "a bool", int: "an int"}


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What an evaluation gave, and its steps."""

    value: T
    steps: int


class Expression(Generic[T]):
    """A CEL expression that gives a str, a bool or an int, exactly: no bool for an int, no number for a string.

    `macros` bounds how many of `all`, `exists`, `exists_one`, `map` and `filter` it may hold: 0 where its cost must grow with its length
    alone (event keys, scopes), 4 for filters. `names` are the variables its caller binds; another name is refused at once instead of when
    it is called. `clock` gives seconds; with one an evaluation ends after 100 ms, without after 20,000 steps only.

    Making one raises ExpressionError, as does calling it: `Expression("'github:' + input.action", returns=str)(input=body)`. The values of
    variables are parsed JSON, which is neither copied nor changed. A string has 1 to 512 characters and no control characters.
    """

    __slots__ = ("_clock", "_compiled", "_returns")

    def __init__(
        self,
        source: str,
        *,
        returns: type[T],
        macros: int = 0,
        names: Iterable[str] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._compiled = compiled = _compile(source)
        self._returns: type[T] = returns
        self._clock = clock
        if compiled.macros > macros:
            allowed = f"at most {macros} of them are taken here" if macros else "none of them is taken here"
            raise ExpressionError("too_large", f"it goes through lists {compiled.macros} times (all, exists, map, filter); {allowed}")
        if names is not None:
            compiled.check_names(names)

    @property
    def source(self) -> str:
        """The text it was made of."""
        return self._compiled.lexed.source

    @property
    def is_plain(self) -> bool:
        """Whether it is answered without the engine."""
        return self._compiled.is_plain

    @property
    def is_constant(self) -> bool:
        """Whether it reads no variable, so that it always gives the same."""
        return not self._compiled.names

    @property
    def loops(self) -> bool:
        """Whether it goes through lists, so that what it costs depends on what it reads."""
        return self._compiled.macros > 0

    @property
    def size(self) -> int:
        """Its tokens: what one without loops costs grows with them."""
        return len(self._compiled.lexed.tokens)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed, and never what was meant."""
        return tuple(_warnings(self._compiled.lexed.tokens))

    def __call__(self, **variables: Any) -> T:
        return self.evaluate(variables).value

    def evaluate(self, variables: Mapping[str, Any], clock: Callable[[], float] | None = None) -> Outcome[T]:
        """The value, and what it cost, its time counted by `clock` where it was made without one. Raises ExpressionError."""
        meter = Meter(self._clock or clock)
        value = self._compiled.evaluate(variables, meter)
        if type(value) is not self._returns:
            wanted = _NAMES[self._returns]
            raise ExpressionError("wrong_type", f"it gives {article(value)}, not {wanted}", hint=_advice(value, self._returns))
        if isinstance(value, str):
            _check_text(value)
        return Outcome(value, meter.steps)


@dataclass(frozen=True, slots=True)
class _Compiled:
    """What is the same for every use of a text: how it is read, the names it reads, and the macros in it."""

    lexed: Lexed
    read: Reader
    names: frozenset[str]
    macros: int = 0
    is_plain: bool = True

    def check_names(self, bound: Iterable[str]) -> None:
        """Raises ExpressionError at the first name that is not bound."""
        known = frozenset(bound)
        if unbound := self.names - known:
            places = [at for at, token in enumerate(self.lexed.tokens) if token.kind == "name" and token.text in unbound]
            raise _unknown(self.lexed.tokens, places[0], known)

    def evaluate(self, variables: Mapping[str, Any], meter: Meter) -> Any:
        """What it gives, of whatever type. Raises ExpressionError and nothing else."""
        if not self.names <= variables.keys():
            self.check_names(variables)
        try:
            return self.read(variables, meter)
        except Fault as fault:
            raise as_error(fault) from None
        except ExpressionError:
            raise
        except Exception as error:  # no body may be lost to a mistake of ours, or of cel-python's
            raise ExpressionError("eval", f"it cannot be evaluated: {type(error).__name__}") from error


@lru_cache(maxsize=KEPT)
def _compile(source: str) -> _Compiled:
    lexed = lex(source)
    simple = plain(lexed.tokens)
    if simple is not None:
        return _Compiled(lexed, simple.read, simple.names)
    return _with_engine(lexed)


def _with_engine(lexed: Lexed) -> _Compiled:
    """Compiled by cel-python, which is imported, and its parser made, when the first expression needs it."""
    from dispatcher.engine.expressions.evaluator import evaluate
    from dispatcher.engine.expressions.grammar import compile_tree

    program = compile_tree(lexed)
    return _Compiled(lexed, partial(evaluate, program), program.names, program.macros, is_plain=False)


def load_engine() -> None:
    """Import cel-python and make its parser, which takes a second on a cold start, now instead of in the first expression that needs it."""
    _compile("1 == 1")


# ---- in words


def _unknown(tokens: tuple[Token, ...], at: int, known: frozenset[str]) -> ExpressionError:
    token = tokens[at]
    hint = f"there are {', '.join(sorted(known))}" if known else "no variables are known here"
    before = [earlier.text for earlier in tokens[max(at - 4, 0) : at]]
    if before[-1:] == ["-"] and "." in before:
        hint = "a name with a hyphen is written in brackets, as in headers['x-github-event']"
    return ExpressionError("syntax", f"there is no {token.text}", position=token.start, hint=hint)


def _warnings(tokens: tuple[Token, ...]) -> Iterator[str]:
    for name, bracket, key in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if name.text == "headers" and bracket.text in ("[", ".") and isinstance(key.value or key.text, str):
            text = key.value if isinstance(key.value, str) else key.text
            if text != text.lower():
                yield f"headers are lower-cased: {text!r} is never there, {text.lower()!r} may be"


def _advice(value: Any, wanted: type) -> str:
    if wanted is str and type(value) in (int, float, Uint):
        return "string(…) makes a string of it"
    if wanted is bool and value is None:
        return "compare it, as in input.x != null"
    return ""


def _check_text(text: str) -> None:
    if not text:
        raise ExpressionError("empty", "it gives an empty string")
    if len(text) > MAX_RESULT:
        raise ExpressionError("too_large", f"it gives {len(text):,} characters; at most {MAX_RESULT} are taken")
    if match := _CONTROL.search(text):
        raise ExpressionError("eval", f"it gives a string with the control character U+{ord(match.group()):04X}")
