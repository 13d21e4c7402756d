"""What Python users call."""

from sttts_jax.infer.open import open_checkpoint

__all__ = ["open_checkpoint"]
