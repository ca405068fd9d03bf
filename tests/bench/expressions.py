"""What expressions cost: `python -m tests.bench.expressions` prints µs of processor time for usual ones, ms for hostile ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from dispatcher.engine.expressions import Expression, ExpressionError, load_engine
from dispatcher.engine.expressions import expression as module
from tests.laws.test_expressions import VARIABLES
from tests.laws.test_expressions_hostile import BODY, BOUNDED, COSTLY, UNREADABLE

USUAL: tuple[tuple[str, type], ...] = (
    ("'stripe'", str),
    ("input.user_id", str),
    ("'github:' + headers['x-github-event'] + ':' + input.action", str),
    ("headers['x-github-event'] + (has(input.action) ? ':' + input.action : '')", str),
    ("string(input.number)", str),
    ("input.user_id == '1234'", bool),
    ("output.random_number > 50 && input.Tier in ['gold', 'silver']", bool),
    ("input.pull_request.head.ref.startsWith('feature/') && !input.pull_request.draft", bool),
    ("input.pull_request.title.matches('^(Fix|Revert) ')", bool),
    ("input.pull_request.labels.exists(l, l.name == 'bug')", bool),
)
PAD = {"pad": [{f"k{number}": "v" * 50, "n": number} for number in range(290)]}  # 21 KB of JSON
LARGE: dict[str, Any] = {**VARIABLES, "input": {**VARIABLES["input"], **PAD}}


def micros(call: Callable[[], object], times: int) -> float:
    """The least of five rounds, per call."""
    rounds: list[float] = []
    for _ in range(5):
        start = time.process_time()
        for _ in range(times):
            call()
        rounds.append((time.process_time() - start) / times * 1e6)
    return min(rounds)


def usual(source: str, returns: type) -> str:
    """A row of the table of usual expressions."""
    expression: Expression[Any] = Expression(source, returns=returns, macros=4)

    def compiled() -> None:
        module._compile.cache_clear()
        module._compile(source)

    small, large = micros(lambda: expression(**VARIABLES), 2_000), micros(lambda: expression(**LARGE), 2_000)
    way = "plain " if expression.is_plain else "engine"
    steps = expression.evaluate(VARIABLES).steps
    return f"{way} compile {micros(compiled, 50):6.0f}  small {small:6.1f}  21 KB {large:6.1f}  steps {steps:4d}  {source}"


def hostile(source: str) -> tuple[float, str]:
    """Milliseconds until it is refused or gives something, and which."""
    module._compile.cache_clear()
    start = time.process_time()
    try:
        end = f"{Expression(source, returns=bool, macros=4)(input=BODY)}"
    except ExpressionError as error:
        end = error.code
    return (time.process_time() - start) * 1e3, end


def main() -> None:
    """Print both tables."""
    start = time.process_time()
    load_engine()
    print(f"loading the engine: {(time.process_time() - start) * 1e3:.0f} ms\n\nmicroseconds of processor time")
    for source, returns in USUAL:
        print(usual(source, returns))
    print("\nmilliseconds of processor time")
    bounded = {name: source for name, (source, _) in BOUNDED.items()}
    rows = [(*hostile(source), name) for name, source in {**UNREADABLE, **COSTLY, **bounded}.items()]
    for spent, end, name in sorted(rows, reverse=True):
        print(f"{spent:7.2f}  {end:10} {name}")


if __name__ == "__main__":
    main()
