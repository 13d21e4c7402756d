"""Pure functions of arrays: attention, rope, norms, losses. Nothing here knows a model."""
