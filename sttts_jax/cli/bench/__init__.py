"""sttts-jax bench: one file a measurement."""

from sttts_jax.cli.bench.command import main as main
