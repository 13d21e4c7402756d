"""`python -m sttts_jax.cli.bench` is `sttts-jax bench`."""

import sys

from sttts_jax.cli.bench import main
from sttts_jax.cli.main import run

sys.exit(run("bench", main))
