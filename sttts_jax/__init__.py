"""Video VLMs whose vision tokens are pruned by STTS (arXiv 2603.18004), in JAX: train, evaluate, run.

Importing the package imports nothing else; each module is imported by its full name, e.g. `sttts_jax.pruning`.
"""

__version__ = "0.1.0"
