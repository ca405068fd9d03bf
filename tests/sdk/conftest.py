"""An SDK whose dispatcher is in this process."""

from __future__ import annotations

import pytest

from handlers_sdk import Dispatcher
from tests.sdk.fake_api import FakeApi
from tests.sdk.pushing import SECRET


@pytest.fixture
def api() -> FakeApi:
    """What answers in the dispatcher's place."""
    return FakeApi()


@pytest.fixture
def dispatcher(api: FakeApi) -> Dispatcher:
    """A client that calls it, once, and takes what is signed with the tests' secret."""
    return api.dispatcher(signing_secrets=(SECRET,), token="api-token", retry_attempts=1)
