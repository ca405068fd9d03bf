"""From tokens to a tree that can be evaluated: cel-python's parser, then one pass that thins the tree and refuses what is not taken.

The parser is made once, when this module is imported, with all its lexers. From then on nothing of it changes, so that threads share it.
It is taken from cel-python's class, not left there, where another would replace it; `celpy.Environment` is never made, because that
sets the recursion limit of the whole process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from celpy.celparser import CELParser
from lark import Lark, Tree
from lark.exceptions import LarkError, UnexpectedInput

from dispatcher.engine.expressions.faults import MAX_NESTING, ExpressionError
from dispatcher.engine.expressions.functions import FUNCTIONS
from dispatcher.engine.expressions.lexer import Lexed, number
from dispatcher.engine.expressions.operators import BINARY
from dispatcher.engine.expressions.values import TYPE_NAMES

Node = Tree[Any]

MACROS: Final = {"all": (2,), "exists": (2,), "exists_one": (2,), "map": (2, 3), "filter": (2,)}
"""The macros that go through a list, and how many arguments each takes."""

MAX_DEPTH: Final = 2 * MAX_NESTING
# cel-python's grammar has a level of the tree for each level of precedence; nearly all hold one child and mean nothing.
_LEVELS: Final = frozenset({
    "expr", "conditionalor", "conditionaland", "relation", "addition", "multiplication", "unary", "member", "paren_expr",
})  # fmt: skip
_PRIMARIES: Final = frozenset({"ident", "ident_arg", "dot_ident", "list_lit", "map_lit"})
_NOT_TAKEN: Final = {"member_object": "messages of protocol buffers are not part of it", "dot_ident_arg": "no function starts with a dot"}


@dataclass(frozen=True, slots=True)
class Program:
    """A tree to evaluate, the names it reads, and how many macros go through a list."""

    tree: Node
    names: frozenset[str]
    macros: int


def compile_tree(lexed: Lexed) -> Program:
    """The tree of an expression. Raises ExpressionError `syntax` with a place, or `too_large`."""
    tree = _parse(lexed)
    depths: dict[int, int] = {}
    macros = 0
    for node in tree.iter_subtrees():  # children come before what holds them, without recursion
        _thin(node)
        _check(node, lexed)
        macros += node.data == "member_dot_arg" and node.children[1] in MACROS
        depths[id(node)] = _depth(node, depths)
        if depths[id(node)] > MAX_DEPTH:
            raise ExpressionError("too_large", f"it nests deeper than {MAX_DEPTH} levels", position=_start(node))
    root = _inner(tree)
    return Program(root, frozenset(_free(root)), macros)


def _made_parser() -> Lark:
    shared, CELParser.CEL_PARSER = CELParser.CEL_PARSER, None
    try:
        CELParser()
        made = CELParser.CEL_PARSER
    finally:
        CELParser.CEL_PARSER = shared
    assert made is not None
    lexers = made.parser.lexer
    for lexer in (*lexers.lexers.values(), lexers.root_lexer):
        assert lexer.scanner  # made when first asked for, and by several threads at once not safely
    return made


_PARSER: Final = _made_parser()


def _parse(lexed: Lexed) -> Node:
    try:
        return _PARSER.parse(lexed.masked)
    except UnexpectedInput as error:
        raise _unexpected(lexed, error) from None
    except LarkError as error:
        raise ExpressionError("syntax", str(error).splitlines()[0]) from None


def _unexpected(lexed: Lexed, error: UnexpectedInput) -> ExpressionError:
    place: int | None = error.pos_in_stream
    at_end = getattr(getattr(error, "token", None), "type", "") == "$END"
    found = None if at_end else next((token for token in lexed.tokens if token.start == place), None)
    if found is None:
        return ExpressionError("syntax", "the expression ends too early", position=len(lexed.source))
    return ExpressionError("syntax", f"{found.text[:40]} does not fit here", position=found.start)


# ---- thinning


def _inner(child: Any) -> Any:
    """What a chain of nodes with one child each holds at its end."""
    while isinstance(child, Tree) and len(child.children) == 1:
        if child.data not in _LEVELS and not (child.data == "primary" and child.children[0].data not in _PRIMARIES):
            break
        child = child.children[0]
    return child


def _thin(node: Node) -> None:
    """Leave out levels that mean nothing; `addition(addition_add(a), b)` becomes `addition_add(a, b)`, and `(a && b) && c` one node."""
    children = [_inner(child) for child in node.children]
    if len(children) == 2 and isinstance(children[0], Tree):
        first = children[0]
        if node.data in ("relation", "addition", "multiplication") and first.data in BINARY:
            node.data, children = first.data, [*first.children, children[1]]
        elif node.data in ("conditionalor", "conditionaland") and first.data == node.data:
            children = [*first.children, children[1]]
    node.data, node.children = str(node.data), children  # a plain string is compared faster than the parser's token


def _depth(node: Node, depths: dict[int, int]) -> int:
    """How deep the evaluation of a node recurses. Operators to the left are a loop there, and so are `a.b.c` and `a ? b : c ? d : e`."""
    trees = [child for child in node.children if isinstance(child, Tree)]
    chained: Node | None = None
    if node.data in BINARY and isinstance(node.children[0], Tree) and node.children[0].data in BINARY:
        chained = node.children[0]
    elif node.data in ("member_dot", "expr"):
        chained = trees[-1] if trees and trees[-1].data == node.data else None
    return max((depths.get(id(child), 1) + (child is not chained) for child in trees), default=1)


# ---- refusing


def _start(node: Node) -> int | None:
    return getattr(node.meta, "start_pos", None)


def _syntax(message: str, position: int | None, hint: str = "") -> ExpressionError:
    return ExpressionError("syntax", message, position=position, hint=hint)


def _check(node: Node, lexed: Lexed) -> None:
    """Refuse what would fail whatever the input; give literals their values."""
    if node.data == "literal":
        node.children = [_literal(node.children[0], lexed)]
    elif node.data in _NOT_TAKEN:
        raise _syntax(_NOT_TAKEN[node.data], _start(node))
    elif node.data == "ident_arg":
        _check_call(node)
    elif node.data == "member_dot_arg":
        _check_method(node)


def _literal(token: Any, lexed: Lexed) -> Any:
    if token.type in ("STRING_LIT", "MLSTRING_LIT", "BYTES_LIT"):
        return lexed.literals[token.start_pos or 0]
    if token.type in ("INT_LIT", "UINT_LIT", "FLOAT_LIT"):
        return number(str(token), token.start_pos or 0)
    return {"true": True, "false": False}.get(str(token))


def arguments(node: Node) -> list[Any]:
    """What stands in the brackets of a call."""
    last = node.children[-1]
    return last.children if isinstance(last, Tree) and last.data == "exprlist" else []


def _check_call(node: Node) -> None:
    name, count = str(node.children[0]), len(arguments(node))
    if name == "has":
        if count != 1 or not isinstance(arguments(node)[0], Tree) or arguments(node)[0].data != "member_dot":
            raise _syntax("has() takes one path with a dot, as in has(input.action)", _start(node))
        return
    function = FUNCTIONS.get(name)
    if function is None or not function.as_function | function.as_method:
        raise _syntax(f"there is no function {name}()", _start(node), f"there are {', '.join(sorted(FUNCTIONS))}")
    if not function.as_function:
        raise _syntax(f"{name}() is called on a value", _start(node), f"as in input.x.{name}(…)")
    if count not in function.as_function:
        raise _syntax(f"{name}() takes {_counted(function.as_function)}, not {count}", _start(node))


def _check_method(node: Node) -> None:
    name, count = str(node.children[1]), len(arguments(node))
    if name in MACROS:
        if count not in MACROS[name]:
            raise _syntax(f"{name}() takes a name and an expression, as in input.list.{name}(x, x.id == 1)", _start(node))
        _variable(node)
        return
    function = FUNCTIONS.get(name)
    if function is None or not function.as_method:
        hint = f"it is called as {name}(…)" if function is not None else f"there are {', '.join(sorted(FUNCTIONS.keys() | MACROS))}"
        raise _syntax(f"there is no method {name}()", _start(node), hint)
    if count + 1 not in function.as_method:
        raise _syntax(f"{name}() takes {_counted(frozenset(number_ - 1 for number_ in function.as_method))}, not {count}", _start(node))


def _counted(counts: frozenset[int]) -> str:
    text = " or ".join(map(str, sorted(counts)))
    return f"{text} argument{'' if counts == {1} else 's'}"


def _variable(node: Node) -> str:
    """The name that a macro gives to the elements of its list."""
    first = arguments(node)[0]
    if isinstance(first, Tree) and first.data == "primary" and first.children[0].data == "ident":
        return str(first.children[0].children[0])
    raise _syntax(f"{node.children[1]}() takes a name first, as in input.list.{node.children[1]}(x, x.id == 1)", _start(node))


macro_variable = _variable


def _free(root: Node) -> Iterator[str]:
    """The names an expression reads from outside."""
    waiting: list[tuple[Any, frozenset[str]]] = [(root, TYPE_NAMES)]
    while waiting:
        node, bound = waiting.pop()
        if not isinstance(node, Tree):
            continue
        if node.data in ("ident", "dot_ident"):
            if str(node.children[0]) not in bound:
                yield str(node.children[0])
        elif node.data == "member_dot_arg" and str(node.children[1]) in MACROS:
            waiting.append((node.children[0], bound))
            waiting.extend((inside, bound | {_variable(node)}) for inside in arguments(node))
        else:
            waiting.extend((child, bound) for child in node.children)
