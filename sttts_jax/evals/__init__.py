"""Scores of a checkpoint: the questions of a benchmark, the harness that asks them, results and tables."""
