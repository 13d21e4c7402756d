"""One glossary: the letters of every shape and the logical names of every axis.

Letters, as used in docstrings and einsum strings:

    B rows of a batch            F frames of a row (static, padded)   V items (videos, images) of a row
    N patches of a frame         C cells of a frame (9 x 9 = 81)      W patches of a cell (3 x 3 = 9)
    D width of the ViT           H heads      d width of a head       M width of an MLP      L layers
    K cells kept in a row        S tokens of a row after pruning      U tokens of a row before pruning
    E width of the LLM           Y vocabulary P pooled image windows  X visual rows of a row (K + P)

Logical names say what an axis is; `sttts_jax.sharding.RULES` alone says where it lives.
"""

# Parameters.
LAYERS = "layers"
EMBED = "embed"
HEADS = "heads"
KV_HEADS = "kv_heads"
HEAD_DIM = "head_dim"
MLP = "mlp"
VOCAB = "vocab"
QKV = "qkv"
GATE_UP = "gate_up"
PATCH_IN = "patch_in"
POSITION = "position"
SCORER_MLP = "scorer_mlp"
LORA = "lora"

# Activations.
ACT_BATCH = "act_batch"
ACT_LENGTH = "act_length"
ACT_EMBED = "act_embed"
ACT_HEADS = "act_heads"
ACT_KV_HEADS = "act_kv_heads"
ACT_HEAD_DIM = "act_head_dim"
ACT_MLP = "act_mlp"
ACT_CHANNELS = "act_channels"
