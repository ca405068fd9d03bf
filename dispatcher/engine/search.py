"""What a search text asks for, and whether documents have it.

`invoice "two words" customer.id:42` asks for three things, all of which must be there: a word, a phrase, and a value at a path. Case does
not matter. A word or phrase counts where it stands between characters that are no letters or digits. `path:value` looks along the path
through objects and lists: text there must hold the value as a phrase, anything else must be it; the same text anywhere counts as well,
so that `user:created` finds what it names. A path may begin with a document's name (`input`, `output`, `error`, `metadata`, `data`).
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

MOST_TERMS: Final = 20
DOCUMENTS: Final = frozenset({"input", "output", "error", "metadata", "data", "type"})
_TERM: Final = re.compile(r'(?:(?P<path>[\w$-]+(?:\.[\w$-]+)*):)?(?:"(?P<quoted>[^"]*)"|(?P<bare>\S+))')
_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Term:
    """One thing asked for: `text` anywhere, or `value` at `path`. `literal` is what a text has at least if `text` is found in it."""

    text: re.Pattern[str]
    literal: str
    words: frozenset[str]
    path: tuple[str, ...] = ()
    value: str = ""
    phrase: re.Pattern[str] | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """All of these are asked for."""

    terms: tuple[Term, ...]

    @property
    def words(self) -> frozenset[str]:
        """Words that every document found must hold."""
        return frozenset(word for term in self.terms for word in term.words)


class SearchRefused(ValueError):  # noqa: N818 - reads as what happened
    """A text that asks for nothing, or for too much."""


def parse(text: str) -> Query:
    """A search text as what it asks for. No sign in it is an error: what is no operator is looked for as it stands."""
    terms = [_term(found) for found in _TERM.finditer(text.replace("\x00", " "))]
    if not terms:
        raise SearchRefused("a word, a phrase in quotes, or path:value is expected")
    if len(terms) > MOST_TERMS:
        raise SearchRefused(f"at most {MOST_TERMS} words are looked for at once")
    return Query(tuple(terms))


def _term(found: re.Match[str]) -> Term:
    path, quoted = found["path"], found["quoted"]
    value = (quoted if quoted is not None else found["bare"]).casefold()
    whole = f"{path.casefold()}:{value}" if path else value
    words = frozenset(_WORD.findall(whole))
    if not path:
        return Term(_phrase(whole), whole, words)
    # The name of a document, which a path may begin with, is no word of it.
    return Term(_phrase(whole), whole, words - DOCUMENTS, tuple(path.split(".")), value, _phrase(value))


def _phrase(text: str) -> re.Pattern[str]:
    """Text that does not stand in the middle of a word."""
    before = r"(?<!\w)" if text[:1].isalnum() or text[:1] == "_" else ""
    after = r"(?!\w)" if text[-1:].isalnum() or text[-1:] == "_" else ""
    return re.compile(before + re.escape(text) + after)


def plain_text(document: bytes) -> str:
    """The words of a JSON text, folded. Most hold no escapes and are taken as they stand: what is around a value is no word."""
    if b"\\" not in document:
        return document.decode("utf-8", "replace").casefold()
    try:
        return "\n".join(_leaves(json.loads(document))).casefold()
    except (ValueError, RecursionError):
        return document.decode("utf-8", "replace").casefold()


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield json.dumps(value)


def words_of(documents: Iterable[bytes]) -> set[str]:
    """All words of these documents."""
    found: set[str] = set()
    for document in documents:
        found.update(_WORD.findall(plain_text(document)))
    return found


def mark(tenant_id: int, word: str) -> int:
    """A word of a tenant as a number of 32 bits. Two may share one: whoever finds it looks at the document."""
    return zlib.crc32(f"{tenant_id} {word}".encode("utf-8", "replace")) - (1 << 31)


def matches(query: Query, documents: Mapping[str, Sequence[bytes]]) -> bool:
    """Whether documents, JSON texts by name, hold everything asked for."""
    texts = [plain_text(document) for some in documents.values() for document in some]
    parsed: dict[str, list[Any]] | None = None
    for term in query.terms:
        if any(term.literal in text and term.text.search(text) for text in texts):
            continue
        if not term.path or not _has_words(term, texts):
            return False
        if parsed is None:
            parsed = {name: [_parsed(document) for document in some] for name, some in documents.items()}
        if not _is_at(term, parsed):
            return False
    return True


def _has_words(term: Term, texts: Sequence[str]) -> bool:
    """Whether every word of a term is one of these texts: what segments, which know nothing but words, can say of it."""
    if not all(any(word in text for text in texts) for word in term.words):
        return False
    return term.words <= {word for text in texts for word in _WORD.findall(text)}


def _parsed(document: bytes) -> Any:
    try:
        return json.loads(document)
    except (ValueError, RecursionError):
        return None


def _is_at(term: Term, parsed: Mapping[str, Sequence[Any]]) -> bool:
    for name, some in parsed.items():
        for document in some:
            if any(_is(term, value) for value in _along(document, term.path)):
                return True
            if term.path[0] == name and any(_is(term, value) for value in _along(document, term.path[1:])):
                return True
    return False


def _along(value: Any, path: Sequence[str]) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _along(item, path)
    elif not path:
        yield value
    elif isinstance(value, dict) and path[0] in value:
        yield from _along(value[path[0]], path[1:])


def _is(term: Term, value: Any) -> bool:
    if isinstance(value, str):
        return term.phrase is not None and term.phrase.search(value.casefold()) is not None
    return not isinstance(value, dict) and json.dumps(value) == term.value
