"""What a search text finds, and that nothing in it is an error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.engine.search import SearchRefused, mark, matches, parse, words_of

DOCUMENT = {
    "customer": {"id": 42, "name": "Ann O'Hara", "tags": ["red fox", "blue"]},
    "items": [{"sku": "A-1", "price": 9.5}, {"sku": "B-2", "price": None}],
    "note": 'says "hello"\nto Zoë',
    "kind": "user:created",
    "ok": True,
}


def found(text: str, document: Any = DOCUMENT, name: str = "input") -> bool:
    return matches(parse(text), {name: [json.dumps(document).encode()]})


@pytest.mark.parametrize(
    "text",
    [
        "ann", "ANN blue", '"red fox"', "customer", "customer.id:42", "customer.id:42 blue", "customer.name:ann",
        'customer.name:"ann o\'hara"', "items.sku:A-1", "items.price:9.5", "items.price:null", "ok:true", "a-1", "user:created",
        "kind:user:created", "customer.tags:fox", "zoë", "ZOË", "hello", "input.customer.id:42", "42",
    ],
)  # fmt: skip
def test_found(text: str) -> None:
    assert found(text)


@pytest.mark.parametrize(
    "text",
    [
        "an", "fo", '"fox red"', "customer.id:4", "customer.id:43", "id:42", "customer.name:an", "ok:false", "created:user",
        "output.customer.id:42", "ann nobody", "4", "customer.id:42.0", "customer:42",
    ],
)  # fmt: skip
def test_not_found(text: str) -> None:
    assert not found(text)


def test_reading_finds_what_words_say_can_be_there() -> None:
    """Segments know a document by its words: `1.50` has no 5 in it, so nobody finds it by `1.5`, with segments or without."""
    assert not matches(parse("price:1.5"), {"input": [b'{"price": 1.50}']})
    assert matches(parse("price:1.5"), {"input": [b'{"price": 1.5}']})


@pytest.mark.parametrize("text", ["", "   ", "\x00", " ".join("abcdefghijklmnopqrstu")])
def test_a_text_that_asks_for_nothing_or_too_much_is_refused(text: str) -> None:
    with pytest.raises(SearchRefused):
        parse(text)


@given(st.text(min_size=1, max_size=60))
def test_no_sign_is_an_error(text: str) -> None:
    try:
        query = parse(text)
    except SearchRefused:
        return
    assert matches(query, {"input": [b'{"a":"b"}', b"not json \\ at all"]}) in {True, False}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, st.booleans(), st.text(min_size=1, max_size=12))
def test_whatever_is_found_holds_the_words_of_the_search(document: Any, ascii_only: bool, text: str) -> None:
    """What segments leave out could not have been found."""
    raw = json.dumps(document, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        query = parse(text)
    except SearchRefused:
        return
    if matches(query, {"input": [raw]}):
        assert query.words <= words_of([raw])


@given(JSON)
def test_every_word_of_a_document_finds_it(document: Any) -> None:
    raw = json.dumps(document).encode()
    for word in words_of([raw]):
        assert matches(parse(word), {"input": [raw]})


def test_words_of_tenants_are_told_apart() -> None:
    assert mark(1, "word") != mark(2, "word")
    assert -(1 << 31) <= mark(1, "x") < 1 << 31
