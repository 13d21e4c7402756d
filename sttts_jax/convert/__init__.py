"""Molmo2 and its parts in the names and files of Hugging Face, to checkpoints of this package and back."""
