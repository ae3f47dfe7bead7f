"""Values to values: no SDK, clock, environment, network or logging."""
