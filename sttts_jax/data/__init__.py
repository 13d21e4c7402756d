"""From files to numpy batches: video, image, text, packing, the input pipeline. No jax here but in `device`."""
