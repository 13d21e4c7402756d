"""`python -m sttts_jax.cli COMMAND ...` is `sttts-jax COMMAND ...`."""

import sys

from sttts_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
