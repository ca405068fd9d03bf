"""What a sender's own library signs or accepts is accepted here; the same request spoiled in one way is not."""

from __future__ import annotations

import pytest

from tests.webhooks.cases import Case, mutations
from tests.webhooks.oracles import ORACLES
from webhooks import PROVIDERS


@pytest.fixture(params=list(ORACLES), scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return ORACLES[request.param]()


def test_accepted(case: Case) -> None:
    verified = case.verify()
    assert verified.secret_index == (None if case.document else 0)
    assert verified.id_signed == case.scheme.id_signed


def test_accepted_while_secrets_rotate(case: Case) -> None:
    if case.document is None:
        assert case.verify(case.wrong, case.secret).secret_index == 1
        assert case.verify(case.secret, case.wrong).secret_index == 0
        assert case.verify("not a key, not even hex ☃", case.secret).secret_index == 1


def test_every_mutation_is_refused(case: Case) -> None:
    outcomes = {name: spoiled.code() for name, spoiled in mutations(case)}
    assert "accepted" not in outcomes.values(), outcomes
    assert len(outcomes) >= 5
    assert outcomes["missing_signature"] in {"missing_signature", "missing_field"}
    assert outcomes.get("duplicated_header", "duplicate") == "duplicate"
    assert outcomes.get("stale", "stale") == outcomes.get("future", "stale") == "stale"
    assert outcomes.get("wrong_secret", "mismatch") == "mismatch"


def test_which_providers_are_marked_checked_by_library() -> None:
    live = {name.partition("_json")[0].partition("_with")[0] for name in ORACLES} - {"vonage"}  # its library checks no body
    recorded = {"line", "linear", "notion", "shopify", "sns", "zoom"}  # tests/webhooks/vectors
    assert live | recorded == {name for name, provider in PROVIDERS.items() if provider.checked == "library"}
