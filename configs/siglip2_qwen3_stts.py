"""A video model from parts, SigLIP 2 and Qwen3-4B, that prunes from its first step on.

    sttts-jax convert --vision hf:siglip2-so400m-patch14-384 \\
        --llm hf:Qwen3-4B-Instruct-2507 --to orbax:checkpoints/siglip2-qwen3
    sttts-jax train --config configs/siglip2_qwen3_stts.py:k=0.5,frames=64 --workdir runs/siglip2_qwen3_stts

Arguments: k (removed share, or several such as 0.3/0.5, of which each step draws one), frames, method (none: without
pruning), steps, data (a file with one JSON object a line, read by the source "jsonl:PATH"; for a mixture, set
config.data.sources in `get_config`). Any number of devices shares the rows out, and a row where they are more
(mesh.sequence); --config.loss.accumulate=N splits the rows of a step where they need too much memory.

The converted checkpoint has a fresh connector and fresh rows for the tokens that Molmo2 adds. They learn at 2e-4, and
over 31,000 steps, as in Molmo2's first stage; everything else is the recipe of the STTS paper (arXiv 2603.18004).

    parameters: vit 382,505,936, scorer 33,766,769, connector 56,611,328, llm 4,022,795,776; all 4,495,679,809
    64 rows a step, in each 2 x 64 frames and text; TFLOPs of a row forward, PFLOPs of a step:
              cells   tokens  ViT   scorer  connector  LLM    head  row    step
    unpruned  10,368  14,918  79.0  0.0     2.1        157.9  3.3   242.3  62.0  1.00 x
    k = 0.5   5,306   9,856   46.6  1.1     1.1        90.5   3.3   142.7  36.5  1.70 x
"""

import ml_collections

from sttts_jax.train.recipe import stts_recipe


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The config of one run."""
    config = stts_recipe(arg, "molmo2-4b", init_from="checkpoints/siglip2-qwen3", steps=31_000)
    config.optimizer.connector_lr = 2e-4
    return config
