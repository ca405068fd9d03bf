"""Memos: steps known by their function and arguments, each made once however often and by however many it is asked for."""

from __future__ import annotations

import hashlib
import marshal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from dis import get_instructions
from functools import lru_cache, partial
from pathlib import Path
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, Final

from handlers_sdk.errors import ConfigError, Interruption
from handlers_sdk.ops import Op
from handlers_sdk.schemas import dump_json

_NAME_MAX: Final = 120
_PARTS_MAX: Final = 500
_DEPTH_MAX: Final = 20
_MARSHAL_WITHOUT_REFERENCES: Final = 2  # which depend on who else holds a value


def key_of(fn: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """What a function called with these is known by. ConfigError where that does not say it."""
    name = _name(fn)
    try:
        arguments = dump_json(list(args), "input")
    except Exception as error:
        raise ConfigError(f"memo of {name}: its arguments are not JSON ({error}); give it a key") from None
    told = b"\0".join([_module(fn).encode(), name.encode(), arguments])
    return f"{name.replace('<locals>.', '')[-_NAME_MAX:]}:{hashlib.sha256(told).hexdigest()[:16]}"


class Memos:
    """The memos of one turn."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], _Memo] = {}

    def ask(self, scope: str, key: str, fn: Callable[..., Any] | None, begin: Callable[[], Op[Any]]) -> Op[Any]:
        """The memo of a key: what was asked for in this scope or one around it, or else what `begin` asks for now.

        `fn` is the function where the key was made of its name: one of that name that may be another is refused with a ConfigError. A memo
        that everybody of its own scope gave up is asked for anew: inner scopes that wait on for the step have no say in that, since replays
        do not hear of them once they are closed.
        """
        seen = _Look().at(fn)
        for around in _outwards(scope):
            memo = self._known.get((around, key))
            if memo is not None and memo.is_wanted:
                if fn is not None and not _alike(memo.seen, seen):
                    raise ConfigError(
                        f"memo of {_name(fn)}: another function of that name, or one that has captured something else, has been called "
                        'with the same arguments, or it cannot be told; give each a key: ctx.memo(…, key="…")'
                    )
                return memo.share(self._forget_one if around == scope else None)
        memo = self._known[scope, key] = _Memo(begin(), seen, (scope, key))
        return memo.share(self._forget_one)

    def forget(self) -> None:
        """The turn is over."""
        self._known.clear()

    def _forget_one(self, memo: _Memo) -> None:
        if self._known.get(memo.at) is memo:
            del self._known[memo.at]


@dataclass(slots=True)
class _Memo:
    """A step, and how many wait for it: all of them, and those of the scope that it belongs to."""

    op: Op[Any]
    seen: Any
    at: tuple[str, str]
    waiting: int = 0
    own: int = 0

    @property
    def is_wanted(self) -> bool:
        """Whether it has a result, or will have one."""
        if not self.op.done():
            return True
        return not self.op.cancelled() and not isinstance(self.op.exception(), Interruption)

    def share(self, forget: Callable[[_Memo], None] | None) -> Op[Any]:
        """One caller's part in it, which can be given up alone; the last one of its own scope, which are given how, forgets it."""
        if self.op.done():
            return self.op
        part: Op[Any] = Op(loop=self.op.get_loop())  # type: ignore[abstract]  # see Op
        part.number = self.op.number
        part.drop = partial(self._left, forget)
        self.waiting += 1
        self.own += forget is not None
        self.op.add_done_callback(partial(_pass_on, part))
        return part

    def _left(self, forget: Callable[[_Memo], None] | None, _: Op[Any]) -> None:
        if self.op.done():  # what it came to is known
            return
        self.waiting -= 1
        if forget is not None:
            self.own -= 1
            if not self.own:
                forget(self)
        if not self.waiting:
            self.op.cancel()


def _pass_on(part: Op[Any], op: Op[Any]) -> None:
    part.drop = None
    if part.done():
        return
    if op.cancelled():
        part.cancel()
    elif (error := op.exception()) is not None:
        part.set_exception(error)
    else:
        part.set_result(op.result())


def _outwards(scope: str) -> Iterator[str]:
    """A scope and those around it, as `a#0/b#0/`, `a#0/` and the empty one of the handler itself."""
    while scope:
        yield scope
        scope = scope[: scope.rfind("/", 0, -1) + 1]
    yield ""


def _name(fn: Callable[..., Any]) -> str:
    """The name that tells a function from others of its module. ConfigError where there is none."""
    name, owner = getattr(fn, "__qualname__", None), getattr(fn, "__self__", None)
    if not isinstance(name, str) or name.endswith("<lambda>") or not (owner is None or isinstance(owner, ModuleType)):
        raise ConfigError(
            f"memo of {name or type(fn).__name__}: the name of a lambda, a method, a partial or an object does not say which it is; "
            'give it a key: ctx.memo(…, key="…")'
        )
    return name


def _module(fn: Callable[..., Any]) -> str:
    """A function's module; that of a program by the name it has where it is imported."""
    name = str(getattr(fn, "__module__", None) or "")
    if name != "__main__":
        return name
    main = sys.modules[name]
    return main.__spec__.name if main.__spec__ is not None else Path(str(getattr(main, "__file__", ""))).stem


# ---- which functions are one


@dataclass(slots=True, eq=False)
class _Seen:
    """Something made of parts, as they were when it was looked at: what a function has captured may be changed when it runs."""

    value: Any
    parts: list[Any]


@dataclass(frozen=True, slots=True)
class _Above:
    """What is being looked at already, so many steps further out: a function that calls itself holds itself."""

    steps: int


class _Look:
    """One look at a function and what it holds, which comes to an end."""

    __slots__ = ("_above", "_left")

    def __init__(self) -> None:
        self._above: list[Any] = []
        self._left = _PARTS_MAX

    def at(self, value: Any) -> Any:
        """What tells a value from others: its parts, or itself where it has none, or too many."""
        if not _has_parts(value):
            return value
        for steps, one in enumerate(reversed(self._above)):
            if one is value:
                return _Above(steps)
        if type(value) in _DATA and (digest := _digest(value)) is not None:
            return _Seen(value, [digest])
        if len(self._above) == _DEPTH_MAX or (type(value) in _SIZED and len(value) > self._left):
            return value
        parts = _parts(value)
        self._left -= len(parts)
        self._above.append(value)
        seen = _Seen(value, [self.at(one) for one in parts])
        self._above.pop()
        return seen


_NOTHING_YET: Final = object()
_DATA: Final = frozenset({tuple, list, dict})
_SIZED: Final = _DATA | {set}
_MADE_OF_PARTS: Final = _SIZED | {FunctionType, CellType}


def _has_parts(value: Any) -> bool:
    return type(value) in _MADE_OF_PARTS or _fields(value) is not None


def _fields(value: Any) -> Iterable[str] | None:
    """Of a dataclass or a model, which are what their fields are."""
    fields: Iterable[str] | None = getattr(type(value), "__dataclass_fields__", None) or getattr(type(value), "__pydantic_fields__", None)
    return fields


def _digest(value: Any) -> bytes | None:
    """What tells numbers, texts, and lists and dicts of them from others, however many there are; None where there is something else."""
    try:
        return hashlib.sha256(marshal.dumps(value, _MARSHAL_WITHOUT_REFERENCES)).digest()
    except ValueError:
        return None


def _parts(value: Any) -> list[Any]:
    if type(value) is FunctionType:
        code, own = value.__code__, _set_by(value.__code__)
        cells = zip(code.co_freevars, value.__closure__ or (), strict=True)
        held = [one for name, cell in cells for one in ([cell] if name in own else _parts(cell))]
        return [code, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *held]
    if type(value) is CellType:
        try:
            return [value.cell_contents]
        except ValueError:
            return [_NOTHING_YET]
    if (fields := _fields(value)) is not None:
        return [type(value), *[getattr(value, name, _NOTHING_YET) for name in fields]]
    if type(value) is dict:
        return [*value, *value.values()]
    return [frozenset(value)] if type(value) is set else list(value)


@lru_cache(maxsize=256)
def _set_by(code: CodeType) -> frozenset[str]:
    """What a function sets of the variables around it: one it shares with another is the same, whatever it holds by then."""
    names = {one.argval for one in get_instructions(code) if one.opname in ("STORE_DEREF", "DELETE_DEREF")}
    return frozenset(names.union(*[_set_by(one) for one in code.co_consts if isinstance(one, CodeType)]))


def _alike(one: Any, other: Any) -> bool:
    """Whether two things that were looked at are the same, or equal in all their parts."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, _Seen):
        if one.value is other.value:
            return True
        return type(one.value) is type(other.value) and len(one.parts) == len(other.parts) and all(map(_alike, one.parts, other.parts))
    try:
        return hash(one) == hash(other) and bool(one == other)
    except Exception:  # it has no hash, and may have been changed since; or cannot say
        return False
