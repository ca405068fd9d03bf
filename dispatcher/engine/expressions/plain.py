"""Expressions that need no engine: literals, paths, sums of both, and `has(path) ? sum : sum`.

These are nearly all event keys and scopes there are, such as `'stripe:' + input.type`. What is not one of them is left to the engine,
and what is one means here what it means there: both use the same functions of `values`, and a test compares them on made-up input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from dispatcher.engine.expressions.faults import Meter
from dispatcher.engine.expressions.lexer import Constant, Token
from dispatcher.engine.expressions.values import MOST_INT, TYPE_NAMES, add, admit, has, index, select

Variables = Mapping[str, Any]
Reader = Callable[[Variables, Meter], Any]

_NOT_NAMES: Final = TYPE_NAMES | {"in"}
_END: Final = Token("operator", "", -1)


@dataclass(frozen=True, slots=True)
class Plain:
    """An expression as a function of its variables, and the names of those."""

    read: Reader
    names: frozenset[str]


def plain(tokens: tuple[Token, ...]) -> Plain | None:
    """The expression, where it is that simple; None where it is for the engine, to evaluate or to refuse."""
    reading = _Reading(tokens)
    try:
        read = reading.choice()
        reading.take("")
    except _NotPlain:
        return None
    return Plain(read, frozenset(reading.names))


class _NotPlain(Exception):  # noqa: N818 - a finding
    pass


class _Reading:
    """Recursive descent over the tokens; brackets nest at most 32 deep, the lexer saw to that."""

    def __init__(self, tokens: tuple[Token, ...]) -> None:
        self.tokens = tokens
        self.at = 0
        self.names: set[str] = set()

    @property
    def next(self) -> Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else _END

    def take(self, text: str) -> None:
        """Pass one operator."""
        if self.next.kind != "operator" or self.next.text != text:
            raise _NotPlain
        self.at += 1

    def found(self, text: str) -> bool:
        """Pass an operator, where it is there."""
        if self.next.kind != "operator" or self.next.text != text:
            return False
        self.at += 1
        return True

    def choice(self) -> Reader:
        """`has(path.name) ? sum : choice`, or a sum."""
        if not (self.next.text == "has" and self.tokens[self.at + 1 : self.at + 2] and self.tokens[self.at + 1].text == "("):
            return self.sum()
        self.at += 2
        root, keys = self.steps()
        if not keys or not isinstance(keys[-1], _Name):
            raise _NotPlain
        for mark in (")", "?"):
            self.take(mark)
        yes = self.sum()
        self.take(":")
        return _choice(_path(root, keys[:-1]), str(keys[-1]), yes, self.choice())

    def sum(self) -> Reader:
        """Items joined by +."""
        first = self.item()
        rest: list[Reader] = []
        while self.found("+"):
            rest.append(self.item())
        if not rest:
            return first
        return _sum(first, tuple(rest))

    def item(self) -> Reader:
        """A literal, a path, or a choice in brackets."""
        token = self.next
        if token.kind == "literal":
            self.at += 1
            if isinstance(token.value, int) and token.value > MOST_INT:
                raise _NotPlain
            return _constant(token.value)
        if self.found("("):
            inner = self.choice()
            self.take(")")
            return inner
        return _path(*self.steps())

    def steps(self) -> tuple[str, list[Any]]:
        """A path: its variable, and the keys on the way; those after a dot are `_Name`."""
        root, keys = self.name(), list[Any]()
        if root in _NOT_NAMES:
            raise _NotPlain
        while True:
            if self.found("."):
                keys.append(_Name(self.name()))
            elif self.found("["):
                keys.append(self.key())
                self.take("]")
            else:
                break
        if self.next.text in ("(", "{"):
            raise _NotPlain  # a call, which this is not for
        self.names.add(root)
        return root, keys

    def name(self) -> str:
        token = self.next
        if token.kind != "name" or token.text == "in":
            raise _NotPlain
        self.at += 1
        return token.text

    def key(self) -> str | int:
        """What stands in [ ]: a string or a number."""
        token = self.next
        if token.kind != "literal" or type(token.value) not in (str, int):
            raise _NotPlain
        self.at += 1
        value = token.value
        assert isinstance(value, str | int)
        return value


class _Name(str):
    """A key that was written after a dot."""

    __slots__ = ()


def _constant(value: Constant) -> Reader:
    def read(variables: Variables, meter: Meter) -> Any:
        return value

    return read


def _path(root: str, keys: list[Any]) -> Reader:
    names = tuple(str(key) for key in keys)
    if not names:
        return lambda variables, _: admit(variables[root])
    if not all(isinstance(key, _Name) for key in keys):
        return lambda variables, meter: _looked_up(variables[root], keys, meter)

    def read(variables: Variables, meter: Meter) -> Any:
        value = variables[root]
        for name in names:
            value = select(value, name)
        return value

    return read


def _looked_up(value: Any, keys: list[Any], meter: Meter) -> Any:
    for key in keys:
        value = select(value, key) if isinstance(key, _Name) else index(value, key, meter)
    return value


def _choice(base: Reader, name: str, yes: Reader, no: Reader) -> Reader:
    return lambda variables, meter: yes(variables, meter) if has(base(variables, meter), name) else no(variables, meter)


def _sum(first: Reader, rest: tuple[Reader, ...]) -> Reader:
    def read(variables: Variables, meter: Meter) -> Any:
        value = first(variables, meter)
        for item in rest:
            value = add(value, item(variables, meter), meter)
        return value

    return read
