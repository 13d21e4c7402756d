"""State on disk.

Where a run's first state comes from, in this order, chosen once and logged by the trainer:

    1. resume      the run's own directory has a checkpoint: params, opt, data iterator and counters, bit for bit
    2. restore     a named checkpoint of another run: params (and nothing else)
    3. pretrained  named parts (the LLM, the ViT, ...) from Hugging Face safetensors; the rest fresh
    4. fresh       initialisers

A run never mixes 1 with the others: what it saved itself wins.
"""
