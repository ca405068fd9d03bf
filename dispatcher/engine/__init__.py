"""Pure rules: (state, event, now) -> change. No I/O, no clock, no SQL."""
