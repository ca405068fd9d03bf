"""Expressions in CEL, the Common Expression Language: which key an event has, which filter it passes, which limit it counts for.

They are written by users and read bodies written by strangers, on the way of every delivery. So what may be written is bounded before
it is parsed (`lexer`, `grammar`), what it may cost is counted while it is evaluated (`faults.Meter`), and what it gives is checked
(`Expression`). The engine is cel-python, which no other package imports; what is simple does without it (`plain`).
"""

from dispatcher.engine.expressions.expression import Expression, Outcome, load_engine
from dispatcher.engine.expressions.faults import ExpressionCode, ExpressionError

__all__ = ["Expression", "ExpressionCode", "ExpressionError", "Outcome", "load_engine"]
