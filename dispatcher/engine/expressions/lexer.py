r"""From text to tokens, in one pass whose cost grows with the length and nothing else.

This runs before any parser. The grammar of cel-python reads string literals with a pattern that, on one that never closes, takes
twice as long with each escape in it (49 characters: 12 s). So its lexer never sees a literal: each is read here, and in `masked`
stands as `"____"` of the same length, so that a place in one text is the same place in the other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

from dispatcher.engine.expressions.faults import MAX_NESTING, MAX_SOURCE, MAX_TOKENS, ExpressionError
from dispatcher.engine.expressions.values import MOST_INT, MOST_UINT, Uint

Kind = Literal["literal", "name", "operator"]
Constant = str | bytes | int | float | bool | None

# No part can match the same text in two ways, and none gives back what it took (*+), so there is nothing to try twice.
_RAW: Final = r"""[rR](?:\"{3}(?:[^"]|"(?!""))*+\"{3}|'{3}(?:[^']|'(?!''))*+'{3}|"[^"\r\n]*+"|'[^'\r\n]*+')"""
_COOKED: Final = (
    r"""\"{3}(?:[^"\\]|\\[\s\S]|"(?!""))*+\"{3}|'{3}(?:[^'\\]|\\[\s\S]|'(?!''))*+'{3}"""
    r"""|"(?:[^"\\\r\n]|\\[^\r\n])*+"|'(?:[^'\\\r\n]|\\[^\r\n])*+'"""
)
_HEX: Final = "0[xX][0-9a-fA-F]++[uU]?"
_REAL: Final = r"(?:[0-9]++\.[0-9]++|\.[0-9]++)(?:[eE][+-]?[0-9]++)?|[0-9]++[eE][+-]?[0-9]++"
_TOKEN: Final = re.compile(
    rf"""
    (?P<blank>    [ \t\n\f\r]++ | //[^\n]*+ )
  | (?P<string>   [bB]?(?:{_RAW}|{_COOKED}) )
  | (?P<number>   {_HEX}|{_REAL}|[0-9]++[uU]? )
  | (?P<name>     [A-Za-z_][A-Za-z0-9_]*+ )
  | (?P<operator> && | \|\| | [=!<>]= | [-+*/%!<>?:.,()\[\]{{}}] )
    """,
    re.VERBOSE,
)
_ESCAPE: Final = re.compile(r"\\(?:([abfnrtv\\?\"'`])|[xX]([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2}))|\\")
_SIMPLE: Final = dict(zip("abfnrtv\\?\"'`", "\a\b\f\n\r\t\v\\?\"'`", strict=True))
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_CLOSES: Final = {")": "(", "]": "[", "}": "{"}
_WORDS: Final[dict[str, bool | None]] = {"true": True, "false": False, "null": None}
_WORDY: Final = {"and": "write &&", "or": "write ||", "not": "write !", "is": "write =="}
_MISTAKES: Final = {
    "=": "two things are compared with ==",
    "&": "both of two conditions is written &&",
    "|": "one of two conditions is written ||",
    "“": "a string stands in plain quotes, \"…\" or '…'",
    "’": "a string stands in plain quotes, \"…\" or '…'",
}


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the source: its kind, its text, where it starts, and for a literal its value."""

    kind: Kind
    text: str
    start: int
    value: Constant = None


@dataclass(frozen=True, slots=True)
class Lexed:
    """The tokens of an expression, its text with string literals covered, and their values by where they start."""

    source: str
    tokens: tuple[Token, ...]
    masked: str
    literals: dict[int, str | bytes]


def lex(source: str) -> Lexed:
    """The tokens of `source`. Raises ExpressionError for what is too long, too deep, or no token at all."""
    if len(source) > MAX_SOURCE:
        raise ExpressionError("too_large", f"it has {len(source):,} characters; at most {MAX_SOURCE:,} are taken")
    if match := _SURROGATE.search(source):
        raise ExpressionError("syntax", "half of a surrogate pair is no character", position=match.start())
    tokens: list[Token] = []
    masked: list[str] = []
    position = 0
    while position < len(source):
        position = _next(source, position, tokens, masked)
    if not tokens:
        raise ExpressionError("empty", "there is no expression")
    if len(tokens) > MAX_TOKENS:
        raise ExpressionError("too_large", f"it has {len(tokens)} names, values and operators; at most {MAX_TOKENS} are taken")
    _check_brackets(tokens)
    _check_order(tokens)
    literals = {token.start: token.value for token in tokens if isinstance(token.value, str | bytes)}
    return Lexed(source, tuple(tokens), "".join(masked), literals)


def _next(source: str, position: int, tokens: list[Token], masked: list[str]) -> int:
    """Read the token at `position`; where the next one starts."""
    match = _TOKEN.match(source, position)
    if match is None:
        raise _no_token(source, position)
    text, end = match.group(), match.end()
    mask = text
    if match["string"]:
        if text[-2:] in ('""', "''") and source[end : end + 1] == text[-1] and len(text.lstrip("rRbB")) == 2:
            raise _unclosed(position)
        value = _string(text, position)
        tokens.append(Token("literal", text, position, value))
        mask = f'b"{"_" * (len(text) - 3)}"' if isinstance(value, bytes) else f'"{"_" * (len(text) - 2)}"'
    elif match["number"]:
        if source[end : end + 1].isalnum() or source[end : end + 1] in ("_", "."):
            raise ExpressionError("syntax", f"{text}{source[end]} is no number", position=position)
        negative = bool(tokens) and tokens[-1].text == "-"
        tokens.append(Token("literal", text, position, number(text, position, negative=negative)))
    elif match["name"]:
        known = text in _WORDS
        tokens.append(Token("literal" if known else "name", text, position, _WORDS[text] if known else None))
    elif match["operator"]:
        tokens.append(Token("operator", text, position))
    else:
        mask = " " * len(text)  # a comment may hold anything
    masked.append(mask)
    return end


def _no_token(source: str, position: int) -> ExpressionError:
    found = source[position]
    if found in "\"'":
        return _unclosed(position)
    return ExpressionError("syntax", f"{found!r} means nothing here", position=position, hint=_MISTAKES.get(found, ""))


def _unclosed(position: int) -> ExpressionError:
    return ExpressionError("syntax", "a string starts here and never ends", position=position, hint="close it with the same quote")


def _check_brackets(tokens: list[Token]) -> None:
    """Every bracket closes, in order, at most 32 deep."""
    opened: list[Token] = []
    for token in tokens:
        if token.kind != "operator":
            continue
        if token.text in "([{":
            opened.append(token)
            if len(opened) > MAX_NESTING:
                raise ExpressionError("too_large", f"brackets nest deeper than {MAX_NESTING} levels", position=token.start)
        elif token.text in _CLOSES and (not opened or opened.pop().text != _CLOSES[token.text]):
            raise ExpressionError("syntax", f"this {token.text} closes nothing", position=token.start)
    if opened:
        raise ExpressionError("syntax", f"this {opened[-1].text} is never closed", position=opened[-1].start)


def _check_order(tokens: list[Token]) -> None:
    """Between two operands stands an operator. cel-python's lexer would find one where there is none: `a inb` is `a in b` to it."""
    for left, right in pairwise(tokens):
        if _is_operand(right) and (_is_operand(left) or left.text in _CLOSES):
            hint = _WORDY.get(right.text) or _WORDY.get(left.text, "")
            raise ExpressionError("syntax", f"{right.text[:40]} does not fit here", position=right.start, hint=hint)


def _is_operand(token: Token) -> bool:
    return token.kind != "operator" and token.text != "in"


def number(text: str, position: int, *, negative: bool = False) -> int | float:
    """The value of a number as it is written, perhaps with a sign: `12`, `-0x1f`, `12u`, `1.5`, `1e3`.

    With `negative` a minus stands before it, and 2^63 may be meant. Raises ExpressionError for what does not fit into 64 bits.
    """
    lower = text.lower()
    if lower.endswith("u"):
        value: int | float = Uint(lower[:-1], 0 if "x" in lower else 10)
        fits = 0 <= value <= MOST_UINT
    elif "x" in lower:
        value = int(lower, 16)
        fits = -MOST_INT - 1 <= value <= MOST_INT + negative
    elif "." in lower or "e" in lower:
        value, fits = float(lower), True
    else:
        value = int(lower)
        fits = -MOST_INT - 1 <= value <= MOST_INT + negative
    if not fits:
        raise ExpressionError("syntax", f"{text} does not fit into 64 bits", position=position)
    return value


def _string(text: str, position: int) -> str | bytes:
    """The value of a string literal, or of the bytes of one that starts with b."""
    body = text.lstrip("rRbB")
    prefix = text[: len(text) - len(body)].lower()
    quotes = 3 if len(body) >= 6 and body[:3] in ('"""', "'''") else 1
    start = position + len(prefix) + quotes
    content = body[quotes:-quotes]
    if "b" in prefix:
        return content.encode() if "r" in prefix else _bytes(content, start)
    return content if "r" in prefix else _ESCAPE.sub(lambda match: _character(match, start), content)


def _character(match: re.Match[str], start: int) -> str:
    simple, hexadecimal, short, long, octal = match.groups()
    if simple:
        return _SIMPLE[simple]
    if octal:
        return chr(int(octal, 8))
    digits = hexadecimal or short or long
    code = int(digits, 16) if digits else -1
    if not 0 <= code <= 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        raise ExpressionError(
            "syntax", "this escape stands for no character", position=start + match.start(), hint="a backslash itself is written \\\\"
        )
    return chr(code)


def _bytes(content: str, start: int) -> bytes:
    r"""In bytes `\x` and octal escapes are bytes, not characters, and `\u` is not defined."""
    parts: list[bytes] = []
    end = 0
    for match in _ESCAPE.finditer(content):
        _, hexadecimal, short, long, octal = match.groups()
        if short or long:
            raise ExpressionError("syntax", "bytes have no Unicode escapes", position=start + match.start(), hint="write \\x41")
        byte = int(hexadecimal, 16) if hexadecimal else int(octal, 8) if octal else None
        parts.append(content[end : match.start()].encode())
        parts.append(_character(match, start).encode() if byte is None else bytes([byte]))
        end = match.end()
    return b"".join([*parts, content[end:].encode()])
