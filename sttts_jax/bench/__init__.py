"""Measurements: ratios inside one process, against the analytic bound of the very shapes that ran."""
