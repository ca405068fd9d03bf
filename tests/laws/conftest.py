"""Properties are judged by what they show, not by how long a busy machine took to show it."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("laws", deadline=None)
settings.load_profile("laws")


@pytest.fixture(scope="session")
def graphs(request: pytest.FixtureRequest) -> int:
    """How many random graphs are compared with the oracle."""
    count: int = request.config.getoption("--graphs")
    return count
