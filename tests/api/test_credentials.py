"""Tokens as text."""

from __future__ import annotations

import re

import pytest

from dispatcher.api.credentials import new_token, parse_token


def test_a_token_has_the_form_that_scanners_look_for() -> None:
    made = new_token()
    assert re.fullmatch(r"dsp_live_[0-9A-Za-z]{12}_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}", made.text)
    assert parse_token(made.text) == (made.public_id, made.secret_hash)
    assert len(made.secret_hash) == 32
    assert made.text.split("_")[3].encode() not in made.secret_hash
    assert new_token().text != made.text


@pytest.mark.parametrize("place", [0, 9, 15, 22, 40, 66, 70])
def test_a_mangled_token_is_seen_to_be_one(place: int) -> None:
    text = new_token().text
    other = "A" if text[place] != "A" else "B"
    assert parse_token(text[:place] + other + text[place + 1 :]) is None


@pytest.mark.parametrize("text", ["", "dsp_live_", "dsp_live_a_b_c", "x" * 10_000, "dsp_live_\x00", "atk1.1.x.0.1.2.y"])
def test_what_is_no_token_is_none(text: str) -> None:
    assert parse_token(text) is None
    assert parse_token(f"{new_token().text}\n") is None
