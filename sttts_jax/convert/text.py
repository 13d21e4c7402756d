"""Tensors of the language model: Molmo2 in three spellings, Qwen3 and Olmo3."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sttts_jax.convert.piece import Piece, fused, linear, part_of_rows, plain, rows_of
from sttts_jax.convert.safetensors_files import StoredTensor
from sttts_jax.models.config import LlmConfig


@dataclass(frozen=True)
class TextNames:
    """Names of the tensors; those from `qkv` on follow `block`, with "{i}" for the layer.

    `qkv` and `up_gate` name one tensor of all rows, or one each. `new_embedding` None: rows below the base ones in
    `embedding`; "": the files have none. `copied_head`: a tied head is stored once more.
    """

    embedding: str
    new_embedding: str | None
    final_norm: str
    head: str
    block: str
    qkv: tuple[str, ...]
    out: str
    q_norm: str
    k_norm: str
    up_gate: tuple[str, ...]
    down: str
    attn_norm: str
    mlp_norm: str
    copied_head: bool = True


HUB = TextNames(
    embedding="model.transformer.wte.embedding",
    new_embedding="model.transformer.wte.new_embedding",
    final_norm="model.transformer.ln_f.weight",
    head="lm_head.weight",
    block="model.transformer.blocks.{i}.",
    qkv=("self_attn.att_proj.weight",),
    out="self_attn.attn_out.weight",
    q_norm="self_attn.q_norm.weight",
    k_norm="self_attn.k_norm.weight",
    up_gate=("mlp.ff_proj.weight",),
    down="mlp.ff_out.weight",
    attn_norm="attn_norm.weight",
    mlp_norm="ff_norm.weight",
)
TRAINING = TextNames(
    embedding="transformer.wte.embedding",
    new_embedding="transformer.wte.new_embedding",
    final_norm="transformer.ln_f.weight",
    head="transformer.ff_out.weight",
    block="transformer.blocks.{i}.",
    qkv=("att_proj.weight",),
    out="attn_out.weight",
    q_norm="q_norm.weight",
    k_norm="k_norm.weight",
    up_gate=("ff_proj.weight",),
    down="ff_out.weight",
    attn_norm="attn_norm.weight",
    mlp_norm="ff_norm.weight",
    copied_head=False,
)


def transformers_names(prefix: str, new_embedding: str | None, norms: tuple[str, str]) -> TextNames:
    """The spelling that transformers' own language models share; `norms` of the attention and of the MLP."""
    return TextNames(
        embedding=f"{prefix}embed_tokens.weight",
        new_embedding=new_embedding,
        final_norm=f"{prefix}norm.weight",
        head="lm_head.weight",
        block=prefix + "layers.{i}.",
        qkv=tuple(f"self_attn.{x}_proj.weight" for x in "qkv"),
        out="self_attn.o_proj.weight",
        q_norm="self_attn.q_norm.weight",
        k_norm="self_attn.k_norm.weight",
        up_gate=("mlp.up_proj.weight", "mlp.gate_proj.weight"),
        down="mlp.down_proj.weight",
        attn_norm=f"{norms[0]}.weight",
        mlp_norm=f"{norms[1]}.weight",
    )


NATIVE = transformers_names("model.language_model.", None, ("input_layernorm", "post_attention_layernorm"))


def text_pieces(cfg: LlmConfig, names: TextNames, first_rows: int | None = None) -> Iterator[Piece]:
    """The table of `models.llm.Llm`; `first_rows` of the embedding lie in `names.embedding` (None: the base ones)."""
    yield from _tables(cfg, names, cfg.vocab if first_rows is None else first_rows)
    for i in range(cfg.layers):
        yield from _block(cfg, names, i)
    yield plain("llm/final_norm", (), names.final_norm, (cfg.width,))
    head = (cfg.vocab, cfg.width)
    if not cfg.tied:
        yield rows_of("llm/head", names.head, head)
    elif names.copied_head:
        yield rows_of("llm/embedding", names.head, head, copy=True)


def first_rows(cfg: LlmConfig, names: TextNames, listing: Mapping[str, StoredTensor]) -> int | None:
    """Rows in the first of two tensors that hold the embedding together, None for the base ones.

    transformers cuts the table into halves where it saves the names of the hub, and puts them together again.
    """
    first, second = (listing.get(name or "") for name in (names.embedding, names.new_embedding))
    if first is None or second is None or not first.shape or not second.shape:
        return None
    return first.shape[0] if first.shape[0] + second.shape[0] == cfg.vocab + cfg.extra_vocab else None


def _tables(cfg: LlmConfig, names: TextNames, first: int) -> Iterator[Piece]:
    """The rows of both leaves, one below the other, are those of one tensor or of two."""
    total = cfg.vocab + (cfg.extra_vocab if names.new_embedding != "" else 0)
    tensors = [(names.embedding, 0, total)]
    if names.new_embedding:
        tensors = [(names.embedding, 0, first), (names.new_embedding, first, total)]
    leaves = [("llm/embedding", 0, cfg.vocab), ("llm/new_embedding", cfg.vocab, total)]
    for (leaf, begin, end), (tensor, top, bottom) in itertools.product(leaves, tensors):
        rows = slice(max(begin, top), min(end, bottom))
        if rows.start < rows.stop:
            yield part_of_rows(leaf, (begin, end), tensor, (top, bottom), rows, cfg.width)


def _block(cfg: LlmConfig, names: TextNames, i: int) -> Iterator[Piece]:
    prefix = names.block.format(i=i)
    wide, q, kv = (cfg.width,), (cfg.heads, cfg.head_dim), (cfg.kv_heads, cfg.head_dim)
    q_norm, k_norm = ((cfg.head_dim,),) * 2 if cfg.qk_norm == "head" else (q, kv)
    every = slice(None)
    yield plain("llm/blocks/attn_norm", (i,), prefix + names.attn_norm, wide)
    kernels = [
        ("llm/blocks/q", (i,), wide, q),
        ("llm/blocks/kv", (i, every, 0), wide, kv),
        ("llm/blocks/kv", (i, every, 1), wide, kv),
    ]
    yield from fused([prefix + name for name in names.qkv], kernels)
    yield plain("llm/blocks/q_norm", (i,), prefix + names.q_norm, q_norm)
    yield plain("llm/blocks/k_norm", (i,), prefix + names.k_norm, k_norm)
    yield linear("llm/blocks/out", (i,), prefix + names.out, q, wide)
    yield plain("llm/blocks/mlp_norm", (i,), prefix + names.mlp_norm, wide)
    up, gate = (("llm/blocks/gate_up", (i, every, j), wide, (cfg.mlp,)) for j in (1, 0))
    yield from fused([prefix + name for name in names.up_gate], [up, gate])
    yield linear("llm/blocks/down", (i,), prefix + names.down, (cfg.mlp,), wide)
