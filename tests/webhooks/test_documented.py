"""Senders known from documentation only: SYNTHETIC requests, see documented.py."""

from __future__ import annotations

import pytest

from tests.webhooks.cases import Case, mutations
from tests.webhooks.documented import documented
from webhooks import PROVIDERS

CASES = documented()


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def test_accepted(case: Case) -> None:
    verified = case.verify()
    assert verified.secret_index == (None if case.document else 0)
    assert verified.id_signed == case.scheme.id_signed
    if case.document is None:
        assert case.verify(case.wrong, case.secret).secret_index == 1


def test_every_mutation_is_refused(case: Case) -> None:
    outcomes = {name: spoiled.code() for name, spoiled in mutations(case)}
    assert "accepted" not in outcomes.values(), outcomes
    assert outcomes["missing_signature"] in {"missing_signature", "missing_field"}
    assert outcomes.get("duplicated_header", "duplicate") == "duplicate"
    assert outcomes.get("stale", "stale") == outcomes.get("future", "stale") == "stale"


def test_every_provider_has_a_case() -> None:
    assert set(CASES) == {name for name, provider in PROVIDERS.items() if provider.checked == "documentation"}
