"""Memos: steps known by their function and arguments, each made once however often and by however many it is asked for."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
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
_DEPTH: Final = 3
_PLAIN: Final = (str, int, float, bool, bytes, type(None))


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

        `fn` is the function where the key was made of its name: another one of that name is refused with a ConfigError. A memo that
        everybody of its own scope gave up is asked for anew: inner scopes that wait on for the step have no say in that, since replays do
        not hear of them once they are closed.
        """
        made_of = _made_of(fn)
        for around in _outwards(scope):
            memo = self._known.get((around, key))
            if memo is not None and memo.is_wanted:
                if fn is not None and not _alike(memo.made_of, made_of):
                    raise ConfigError(
                        f"memo of {_name(fn)}: another function of that name, or one that has captured something else, has been called "
                        'with the same arguments; give each a key: ctx.memo(…, key="…")'
                    )
                return memo.share(self._forget_one if around == scope else None)
        memo = self._known[scope, key] = _Memo(begin(), made_of, (scope, key))
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
    made_of: Any
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


class _Unsaid:
    """What is captured and says nothing of which function it is: an object, which the function may change as it runs."""


_UNSAID: Final = _Unsaid()


@dataclass(slots=True, eq=False)
class _Made:
    """What tells a function from others of the same definition: its code, and plain values and functions that it has captured."""

    fn: FunctionType
    parts: list[Any]


def _made_of(value: Any, depth: int = _DEPTH) -> Any:
    """A function, or what it holds, as that is now."""
    if isinstance(value, FunctionType):
        if not depth:
            return _UNSAID
        code, cells = value.__code__, value.__closure__ or ()
        held = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        held += [_content(cell) for name, cell in zip(code.co_freevars, cells, strict=True) if name not in _rebound(code)]
        return _Made(value, [_made_of(one, depth - 1) for one in held])
    if type(value) is tuple:
        return [_made_of(one, depth - 1) for one in value] if depth else _UNSAID
    return value if type(value) in _PLAIN else _UNSAID


@lru_cache(maxsize=256)
def _rebound(code: CodeType) -> frozenset[str]:
    """What a function sets of the variables around it, in which it finds something else when it has run."""
    names = {one.argval for one in get_instructions(code) if one.opname in ("STORE_DEREF", "DELETE_DEREF")}
    return frozenset(names.union(*[_rebound(one) for one in code.co_consts if isinstance(one, CodeType)]))


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing yet
        return _UNSAID


def _alike(one: Any, other: Any) -> bool:
    if one is other or one is _UNSAID or other is _UNSAID:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, _Made):
        return one.fn is other.fn or (one.fn.__code__ == other.fn.__code__ and _alike(one.parts, other.parts))
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    return bool(one == other)
