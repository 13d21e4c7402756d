"""Linen modules and their configs: vision transformer, connector, language model, and the model around them."""
