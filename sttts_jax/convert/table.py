"""Which tensor of a checkpoint is which part of our parameter tree, in both directions.

    pieces(cfg, "hub", scorer=False)     Molmo2 as it was released
    pieces(cfg, "native", scorer=False)  Molmo2 as transformers saves it
    pieces(cfg, "training", scorer=True) names of the training code, with the scorer of STTS
    siglip_pieces, qwen3_pieces          what Molmo2 starts from
    scorer_pieces                        a scorer in a file of its own

Every element of every leaf is covered once, and every tensor is used once; copies of a tied head apart.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from sttts_jax.convert import text, vision
from sttts_jax.convert.piece import Piece
from sttts_jax.convert.safetensors_files import StoredTensor
from sttts_jax.models.config import LlmConfig, VitConfig, VlmConfig

Style = Literal["hub", "native", "training"]
STYLES: tuple[Style, ...] = ("hub", "native", "training")

SCORER = "vision_backbone.image_vit.transformer.temporal_token_scorer."
_TEXT = {"hub": text.HUB, "native": text.NATIVE, "training": text.TRAINING}
_VISION = {"hub": "model.vision_backbone.", "training": "vision_backbone."}
_SIGLIP_PREFIXES = ("vision_model.", "vision_tower.vision_model.", "vision_tower.", "")
_TEXT_PREFIXES = ("model.", "")


def as_style(name: str) -> Style:
    """The style of this name. Raises ValueError with those there are."""
    for style in STYLES:
        if style == name:
            return style
    raise ValueError(f"no checkpoint style is called {name!r}; use one of {', '.join(STYLES)}")


def pieces(cfg: VlmConfig, style: Style, scorer: bool, first_rows: int | None = None) -> list[Piece]:
    """The table of `models.vlm.Vlm`; `first_rows` as of `text.text_pieces`. Raises ValueError for an unknown style."""
    return list(_molmo2(cfg, as_style(style), scorer, first_rows))


def first_rows(cfg: VlmConfig, style: Style, listing: Mapping[str, StoredTensor]) -> int | None:
    """Where the files cut the embedding, see `text.first_rows`."""
    return text.first_rows(cfg.llm, _TEXT[style], listing)


def _molmo2(cfg: VlmConfig, style: Style, scorer: bool, first_rows: int | None) -> Iterator[Piece]:
    yield from text.text_pieces(cfg.llm, _TEXT[style], first_rows)
    if style == "native":
        yield from vision.vision_pieces(cfg.vit, vision.NATIVE, "model.vision_tower.")
        yield from vision.connector_pieces(cfg, vision.NATIVE_CONNECTOR, "model.multi_modal_projector.")
    else:
        prefix = _VISION[style]
        yield from vision.vision_pieces(cfg.vit, vision.HUB, f"{prefix}image_vit.")
        yield from vision.connector_pieces(cfg, vision.HUB_CONNECTOR, prefix)
    if scorer:  # transformers has no place for it; its names are the training code's in every style
        yield from scorer_pieces(cfg.vit, SCORER if style == "training" else f"model.{SCORER}")


def scorer_pieces(cfg: VitConfig, prefix: str = SCORER) -> list[Piece]:
    """The scorer alone."""
    return list(vision.scorer_block(cfg, prefix))


def siglip_pieces(cfg: VitConfig, names: Iterable[str] = ("vision_model.",)) -> list[Piece]:
    """The vision tower of a SigLIP or SigLIP 2 checkpoint; `names`: its tensors, they tell the prefix."""
    prefix = _prefix(names, _SIGLIP_PREFIXES)
    return list(vision.vision_pieces(cfg, vision.SIGLIP, prefix))


def ignored_siglip(cfg: VitConfig, names: Iterable[str]) -> list[str]:
    """Those of `names` that Molmo2 leaves behind: blocks after the last feature, final norm, pooling head, text."""
    names = list(names)
    tower = re.escape(_prefix(names, _SIGLIP_PREFIXES))
    left = (
        rf"{tower}encoder\.layers{_later(cfg)}",
        rf"{tower}(post_layernorm|head)\..*",
        rf"{tower}embeddings\.position_ids",
        r"text_model\..*",
        r"logit_(scale|bias)",
    )
    return [name for name in names if any(re.fullmatch(pattern, name) for pattern in left)]


def _later(cfg: VitConfig) -> str:
    """Regex of '.i.' and what follows, i a block that is not built."""
    used = "|".join(str(i) for i in range(vision.used_layers(cfg)))
    return rf"\.(?!({used})\.)\d+\..*"


def qwen3_pieces(cfg: LlmConfig, names: Iterable[str] = ("model.",)) -> list[Piece]:
    """A Qwen3 checkpoint (`norm="pre"`) or an Olmo3 one ("post"); the extra rows of Molmo2 are not in it."""
    prefix = _prefix(names, _TEXT_PREFIXES)
    norms = ("input_layernorm", "post_attention_layernorm")
    if cfg.norm == "post":
        norms = ("post_attention_layernorm", "post_feedforward_layernorm")
    return list(text.text_pieces(cfg, text.transformers_names(prefix, "", norms)))


def _prefix(names: Iterable[str], known: tuple[str, ...]) -> str:
    """The first known prefix that a name has."""
    names = list(names)
    return next(prefix for prefix in known if any(name.startswith(prefix) for name in names) or not prefix)
