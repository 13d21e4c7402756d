"""Benchmarks: one file each, with the source of its questions and a pure rule that says whether an answer is right."""
