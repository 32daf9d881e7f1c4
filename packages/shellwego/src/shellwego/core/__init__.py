"""The domain: entities, state tables and planners. No clock, no randomness, no I/O; `now` is an argument."""
