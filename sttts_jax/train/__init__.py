"""Training: optimizer, metrics, clock, watchdog and the loop that ties them together."""
