"""State on disk.

Where a run's first state comes from, in this order, chosen once and logged by the trainer (`train.run`):

    1. resume      the run's own directory has a checkpoint: params, opt, data iterator and counters, bit for bit
    2. init_from   a converted checkpoint, or one of another run: params alone; the scorer and LoRA may be fresh
    3. fresh       initialisers

A run never mixes 1 with the others: what it saved itself wins.
"""
