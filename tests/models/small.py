"""A whole model that compiles in seconds."""

from sttts_jax.models.config import ConnectorConfig, LlmConfig, VitConfig, VlmConfig

CFG = VlmConfig(
    VitConfig(
        width=16,
        heads=2,
        head_dim=8,
        mlp=24,
        layers=3,
        patch=1,
        grid=(4, 4),
        cell=(2, 2),
        feature_layers=(2, 0),
        prune_after=0,
    ),
    ConnectorConfig(width=16, heads=2, head_dim=8, mlp=16),
    LlmConfig(width=16, layers=2, heads=2, kv_heads=1, head_dim=8, mlp=24, vocab=29, extra_vocab=3, rope_theta=1e4),
).check()
