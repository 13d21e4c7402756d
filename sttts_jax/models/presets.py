"""Named model configs: the demo's `tiny`, and the released Molmo2 models."""

from sttts_jax.models.config import ConnectorConfig, LlmConfig, VitConfig, VlmConfig, YarnConfig

# SigLIP 2 so400m/14 at 378 px; the 25 of 27 blocks that Molmo2 keeps.
_SO400M = VitConfig(width=1152, heads=16, head_dim=72, mlp=4304, layers=25, patch=14)

_QWEN3_4B = LlmConfig(
    width=2560,
    layers=36,
    heads=32,
    kv_heads=8,
    head_dim=128,
    mlp=9728,
    vocab=151_936,
    rope_theta=5_000_000.0,
    dropout=0.1,
)
_QWEN3_8B = LlmConfig(
    width=4096,
    layers=36,
    heads=32,
    kv_heads=8,
    head_dim=128,
    mlp=12_288,
    vocab=151_936,
    rope_theta=1_000_000.0,
    tied=False,
    dropout=0.1,
)
_OLMO3_7B = LlmConfig(
    width=4096,
    layers=32,
    heads=32,
    kv_heads=32,
    head_dim=128,
    mlp=11_008,
    vocab=100_278,
    rope_theta=500_000.0,
    norm="post",
    qk_norm="full",
    yarn=YarnConfig(
        factor=8.0,
        attention_factor=1.2079441541679836,
        beta_fast=32.0,
        beta_slow=1.0,
        original_length=8192,
        layers=tuple(range(3, 32, 4)),
    ),
    tied=False,
    dropout=0.1,
)


def _molmo2(llm: LlmConfig) -> VlmConfig:
    return VlmConfig(_SO400M, ConnectorConfig(width=1152, heads=16, head_dim=72, mlp=llm.mlp), llm)


PRESETS: dict[str, VlmConfig] = {
    "tiny": VlmConfig(
        # 72 px frames: 6 x 6 patches of 12 px, 3 x 3 cells of 2 x 2 patches.
        VitConfig(
            width=48,
            heads=2,
            head_dim=24,
            mlp=96,
            layers=3,
            patch=12,
            grid=(6, 6),
            cell=(2, 2),
            feature_layers=(2, 1),
            prune_after=0,
        ),
        ConnectorConfig(width=48, heads=2, head_dim=24, mlp=192),
        LlmConfig(
            width=96,
            layers=3,
            heads=4,
            kv_heads=4,
            head_dim=24,
            mlp=192,
            vocab=512,
            extra_vocab=16,
            rope_theta=1_000_000.0,
        ),
    ),
    "molmo2-4b": _molmo2(_QWEN3_4B),
    "molmo2-8b": _molmo2(_QWEN3_8B),
    "molmo2-o-7b": _molmo2(_OLMO3_7B),
}


def preset(name: str) -> VlmConfig:
    """The config called `name`; raises ValueError with the list of names if there is none."""
    if name not in PRESETS:
        raise ValueError(f"No model preset is called {name!r}; use one of {sorted(PRESETS)}.")
    return PRESETS[name].check()
