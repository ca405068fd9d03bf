"""Properties are judged by what they show, not by how long a busy machine took to show it."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("laws", deadline=None)
settings.load_profile("laws")
