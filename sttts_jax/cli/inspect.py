"""sttts-jax inspect DIR: what is in a checkpoint, on any machine, without building the model.

DIR is a run's workdir, a directory of steps, or one step. Prints the steps with their size and health, then of the
newest whole step the counters, the trees with shapes and dtypes, and the config of the run. --depth N folds leaves
below N names.
"""

import argparse
import sys

from etils import epy

from sttts_jax.cli.main import run

with epy.lazy_imports():
    from sttts_jax.ckpt import describe


def main(argv: list[str]) -> int:
    """Prints the report. argv: without the program's name. Raises FileNotFoundError or ValueError with one sentence."""
    parser = argparse.ArgumentParser(
        prog="sttts-jax inspect", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("directory", help="a run's workdir, a directory of steps, or one step; local or gs://")
    parser.add_argument("--depth", type=int, default=0, help="fold leaves below so many names (0: show all)")
    arguments = parser.parse_args(argv)
    for text in describe.describe(arguments.directory, arguments.depth):
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run("inspect", main))
