"""Molmo2-4B learns to prune: the recipe of the STTS paper (arXiv 2603.18004).

    sttts-jax convert --from hf:Molmo2-4B --to orbax:checkpoints/molmo2-4b
    sttts-jax train --config configs/molmo2_4b_stts.py:k=0.5,frames=64 --workdir runs/molmo2_4b_stts

Arguments: k (removed share, or several such as 0.3/0.5, of which each step draws one), frames, method (none: without
pruning), steps, data (a file with one JSON object a line, read by the source "jsonl:PATH"; for a mixture, set
config.data.sources in `get_config`). Any number of devices shares the rows out, and a row where they are more
(mesh.sequence); --config.loss.accumulate=N splits the rows of a step where they need too much memory.

The table of the input's base tokens is not trained, as in Molmo2, and so neither is the head, which is tied to it.
What the checkpoint lacks, the scorer, starts fresh. The paper's 13 benchmarks of video QA: 63.0 unpruned, 62.3 at
k = 0.5, 59.8 at k = 0.8.

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
    return stts_recipe(arg, "molmo2-4b", init_from="checkpoints/molmo2-4b")
