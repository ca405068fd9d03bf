"""cel-python's evaluator, hardened: values, operators, functions and macros of our own, and every step paid for.

What of it is replaced, and why:

* `_visit_tree`, through which every node passes, counts a step and turns a Fault into an error value; the operators of the language
  carry those, or absorb them.
* Its operators follow Python where the specification does not: `1 == '1'` and `null < 1` fail in odd ways, 1 + 1.0 has a result, `has()`
  hides every error, lists are compared without end. Its macros know `reduce` and `min`, which are not of the language.
* Its names are copied, with every standard type, for each evaluation, which takes longer than most expressions.
* Its messages and its log hold whole values, of a body or of all variables. Ours hold their types.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from celpy.evaluation import Activation, CELEvalError, Evaluator
from lark import Tree

from dispatcher.engine.expressions.faults import ExpressionError, Fault, Meter, as_error
from dispatcher.engine.expressions.functions import FUNCTIONS
from dispatcher.engine.expressions.grammar import MACROS, Node, Program, arguments, macro_variable
from dispatcher.engine.expressions.operators import BINARY, invert, negate
from dispatcher.engine.expressions.values import TypeName, admit, article, has, index, kind_of, select


class Failure(CELEvalError):  # noqa: N818 - a value
    """A Fault as a value within the evaluation, with the place it comes from."""

    def __init__(self, fault: Fault, position: int | None) -> None:
        super().__init__(str(fault))
        self.fault = fault
        self.position = position


def evaluate(program: Program, variables: Mapping[str, Any], meter: Meter) -> Any:
    """What the program gives. Raises ExpressionError."""
    try:
        value = _Evaluator(program.tree, _Scope(variables, meter)).visit(program.tree)
    except RecursionError:
        raise ExpressionError("budget", "it nests too deeply for where it is evaluated") from None
    if isinstance(value, Failure):
        raise as_error(value.fault, value.position)
    if isinstance(value, CELEvalError):
        raise ExpressionError("eval", str(value.args[0]) if value.args else "it has no result")
    return value


class _Scope(Activation):
    """The names an expression sees."""

    def __init__(self, variables: Mapping[str, Any], meter: Meter) -> None:
        self.variables = dict(variables)
        self.meter = meter

    def resolve_variable(self, name: str) -> Any:
        """The value of a variable; a name that is none was found to be that of a type."""
        return admit(self.variables[name]) if name in self.variables else TypeName(name)

    def resolve_function(self, name: str) -> Any:
        """What cel-python's evaluator still asks for: how to look into a map or a list."""
        return {"_[_]": self._looked_up}[name]

    def _looked_up(self, container: Any, key: Any) -> Any:
        for value in (container, key):
            if isinstance(value, CELEvalError):
                return value
        return index(container, key, self.meter)

    def __repr__(self) -> str:
        return "the variables"


CALL_STEPS: Final = 4
"""What a call costs beside its arguments: functions take longer than operators."""


class _Silence:
    """In the place of cel-python's log."""

    def debug(self, *values: object) -> None:
        """Say nothing: bodies are none of a log's business."""

    info = error = debug


class _Evaluator(Evaluator):
    logger = _Silence()  # type: ignore[assignment]

    def __init__(self, tree: Node, scope: _Scope) -> None:
        super().__init__(tree, scope)
        self.scope = scope
        self.meter = scope.meter

    def _visit_tree(self, tree: Node) -> Any:
        self.meter.step()
        try:
            return getattr(self, tree.data)(tree)
        except Fault as fault:
            return Failure(fault, _start(tree))

    def visit_children(self, tree: Node) -> list[Any]:
        """The values of the children; names are left as they are."""
        return [self._visit_tree(child) if isinstance(child, Tree) else child for child in tree.children]

    def literal(self, tree: Node) -> Any:
        """The value that the grammar put there."""
        return tree.children[0]

    def expr(self, tree: Node) -> Any:
        """`a ? b : c`, of which only one side is looked at."""
        while tree.data == "expr":
            condition = self._visit_tree(tree.children[0])
            if isinstance(condition, CELEvalError):
                return condition
            if not isinstance(condition, bool):
                raise Fault(f"? takes a bool before it, and finds {article(condition)}")
            tree = tree.children[1 if condition else 2]
        return self._visit_tree(tree)

    def conditionalor(self, tree: Node) -> Any:
        """`a || b`: true where one of them is, whatever is wrong with the other."""
        return self._first(map(self._visit_tree, tree.children), wanted=True)

    def conditionaland(self, tree: Node) -> Any:
        """`a && b`: false where one of them is, whatever is wrong with the other."""
        return self._first(map(self._visit_tree, tree.children), wanted=False)

    def _first(self, values: Iterator[Any], *, wanted: bool) -> Any:
        """`wanted`, once a value is; else the first error, or its opposite where there is none."""
        error: CELEvalError | None = None
        for value in values:
            if isinstance(value, CELEvalError):
                error = value if error is None else error
            elif not isinstance(value, bool):
                fault = Fault(f"{'||' if wanted else '&&'} takes bools, and finds {article(value)}")
                error = Failure(fault, None) if error is None else error
            elif value is wanted:
                return wanted
        return error if error is not None else not wanted

    def binary(self, tree: Node) -> Any:
        """`a + b - c == d`, and so on: a loop along the left operands, which are operators themselves."""
        spine = [tree]
        while isinstance(spine[-1].children[0], Tree) and spine[-1].children[0].data in BINARY:
            spine.append(spine[-1].children[0])
        value = self._visit_tree(spine[-1].children[0])
        for node in reversed(spine):
            value = self._applied(node, value)
        return value

    def _applied(self, node: Node, left: Any) -> Any:
        right = self._visit_tree(node.children[1])
        if isinstance(left, CELEvalError) or isinstance(right, CELEvalError):
            return left if isinstance(left, CELEvalError) else right
        try:
            return BINARY[node.data](left, right, self.meter)
        except Fault as fault:
            return Failure(fault, _start(node.children[1]))

    relation_eq = relation_ne = relation_lt = relation_le = relation_gt = relation_ge = relation_in = binary
    addition_add = addition_sub = multiplication_mul = multiplication_div = multiplication_mod = binary

    def member_dot(self, tree: Node) -> Any:
        """`a.b.c`: a loop along the names."""
        names = [tree.children[1]]
        base = tree.children[0]
        while base.data == "member_dot":
            names.append(base.children[1])
            base = base.children[0]
        value = self._visit_tree(base)
        if isinstance(value, CELEvalError):
            return value
        for name in reversed(names):
            self.meter.step()
            value = select(value, str(name))
        return value

    def unary(self, tree: Node) -> Any:
        """`!a` and `-a`."""
        value = self._visit_tree(tree.children[1])
        if isinstance(value, CELEvalError):
            return value
        return (invert if tree.children[0].data == "unary_not" else negate)(value)

    def exprlist(self, tree: Node) -> Any:
        """What stands in brackets, of a call or of a list, or the first error in it."""
        values = self.visit_children(tree)
        return next((value for value in values if isinstance(value, CELEvalError)), values)

    def function_eval(self, name_token: str, exprlist: Iterable[Any] | None = None) -> Any:
        """`f(…)`."""
        return self._called(str(name_token), list(exprlist or ()))

    def _called(self, name: str, values: list[Any]) -> Any:
        for value in values:
            if isinstance(value, CELEvalError):
                return value
        self.meter.step(CALL_STEPS)
        return FUNCTIONS[name].call(self.meter, *values)

    def macro_has_eval(self, exprlist: Node) -> Any:
        """`has(a.b)`: whether the map a has a b. What is wrong with a is wrong with this."""
        base, name = exprlist.children[0].children
        value = self._visit_tree(base)
        return value if isinstance(value, CELEvalError) else has(value, str(name))

    def mapinits(self, tree: Node) -> Any:
        """The inside of a map literal."""
        values = self.visit_children(tree)
        for value in values:
            if isinstance(value, CELEvalError):
                return value
        made: dict[Any, Any] = {}
        for key, value in zip(values[::2], values[1::2], strict=True):
            if kind_of(key) not in ("string", "int", "uint"):
                raise Fault(f"a key of a map is a string or an integer, not {article(key)}")
            if key in made:
                raise Fault("a map has a key twice")
            made[key] = value
        return made

    def member_dot_arg(self, tree: Node) -> Any:
        """`a.f(…)`: a method, or a macro that goes through a list or the keys of a map."""
        name = str(tree.children[1])
        if name not in MACROS:
            value = self._visit_tree(tree.children[0])
            return self._called(name, [value, *map(self._visit_tree, arguments(tree))])
        elements = self._visit_tree(tree.children[0])
        if isinstance(elements, CELEvalError):
            return elements
        if not isinstance(elements, list | dict):
            raise Fault(f"{name}() goes through a list or a map, and finds {article(elements)}")
        variable, *bodies = macro_variable(tree), *arguments(tree)[1:]
        if name in ("all", "exists"):
            tested = (self._with(variable, element, bodies[0]) for element in elements)
            return self._first(tested, wanted=name == "exists")
        found = self._picked(variable, elements, bodies[0] if name != "map" or len(bodies) == 2 else None)
        if isinstance(found, CELEvalError) or name == "filter":
            return found
        return len(found) == 1 if name == "exists_one" else self._mapped(variable, found, bodies[-1])

    def _with(self, variable: str, value: Any, body: Node) -> Any:
        """The body of a macro with its variable bound, for as long as this takes."""
        variables = self.scope.variables
        hidden = variables.get(variable, _UNBOUND)
        variables[variable] = value
        try:
            return self._visit_tree(body)
        finally:
            if hidden is _UNBOUND:
                del variables[variable]
            else:
                variables[variable] = hidden

    def _picked(self, variable: str, elements: Iterable[Any], test: Node | None) -> Any:
        """The elements that pass, or the first error."""
        picked: list[Any] = []
        for element in elements:
            passed = True if test is None else self._with(variable, element, test)
            if isinstance(passed, CELEvalError):
                return passed
            if not isinstance(passed, bool):
                raise Fault(f"the elements of a list are tested with a bool, not {article(passed)}")
            if passed:
                picked.append(element)
        return picked

    def _mapped(self, variable: str, elements: Iterable[Any], body: Node) -> Any:
        mapped: list[Any] = []
        for element in elements:
            value = self._with(variable, element, body)
            if isinstance(value, CELEvalError):
                return value
            mapped.append(value)
        return mapped


_UNBOUND: Final = object()


def _start(node: Node) -> int | None:
    return getattr(node.meta, "start_pos", None)
