"""Molmo2-O-7B learns to prune: the recipe of the STTS paper (arXiv 2603.18004) with Olmo3.

    sttts-jax convert --from hf:Molmo2-O-7B --to orbax:checkpoints/molmo2-o-7b
    sttts-jax train --config configs/molmo2_o_7b_stts.py:k=0.5,frames=64 --workdir runs/molmo2_o_7b_stts

Arguments: k (removed share, or several such as 0.3/0.5, of which each step draws one), frames, method (none: without
pruning), steps, data (a file with one JSON object a line, read by the source "jsonl:PATH"; for a mixture, set
config.data.sources in `get_config`). Any number of devices shares the rows out, and a row where they are more
(mesh.sequence); --config.loss.accumulate=N splits the rows of a step where they need too much memory.

The table of the input's base tokens is not trained, as in Molmo2; the head, a matrix of its own, is.

    parameters: vit 382,505,936, scorer 33,766,769, connector 79,745,536, llm 7,298,535,424; all 7,794,553,665
    64 rows a step, in each 2 x 64 frames and text; TFLOPs of a row forward, PFLOPs of a step:
              cells   tokens  ViT   scorer  connector  LLM    head  row    step
    unpruned  10,368  14,918  79.0  0.0     2.5        237.2  3.5   322.2  82.5  1.00 x
    k = 0.5   5,306   9,856   46.6  1.1     1.3        144.4  3.5   197.0  50.4  1.64 x
"""

import ml_collections

from sttts_jax.train.recipe import stts_recipe


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The config of one run."""
    return stts_recipe(arg, "molmo2-o-7b", init_from="checkpoints/molmo2-o-7b")
