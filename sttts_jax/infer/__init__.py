"""A loaded checkpoint that answers: generation, the engine, a scene and the questions about it."""
