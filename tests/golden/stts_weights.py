"""Names and layouts of the authors' vision transformer <-> our parameter tree, for golden files."""

import numpy as np

from sttts_jax.models.config import VitConfig, cuts, stack_name

SCORER = "transformer.temporal_token_scorer."


def _heads(weight: np.ndarray, cfg: VitConfig) -> np.ndarray:
    """[H d, in] -> [in, H, d], or a bias [H d] -> [H, d]."""
    return (
        np.moveaxis(weight.reshape(cfg.heads, cfg.head_dim, *weight.shape[1:]), -1, 0)
        if weight.ndim == 2
        else weight.reshape(cfg.heads, -1)
    )


def _block(weights: dict[str, np.ndarray], i: int, cfg: VitConfig) -> dict:
    w = {
        k.removeprefix(f"transformer.resblocks.{i}."): v
        for k, v in weights.items()
        if k.startswith(f"transformer.resblocks.{i}.")
    }
    qkv = [{leaf: _heads(w[f"attention.w{x}.{leaf}"], cfg) for leaf in ("weight", "bias")} for x in "qkv"]
    return {
        "norm1": {"scale": w["attention_norm.weight"], "bias": w["attention_norm.bias"]},
        "qkv": {"kernel": np.stack([x["weight"] for x in qkv], axis=1), "bias": np.stack([x["bias"] for x in qkv])},
        "out": {
            "kernel": w["attention.wo.weight"].T.reshape(cfg.heads, cfg.head_dim, -1),
            "bias": w["attention.wo.bias"],
        },
        "norm2": {"scale": w["ffn_norm.weight"], "bias": w["ffn_norm.bias"]},
        "fc1": {"kernel": w["feed_forward.w1.weight"].T, "bias": w["feed_forward.w1.bias"]},
        "fc2": {"kernel": w["feed_forward.w2.weight"].T, "bias": w["feed_forward.w2.bias"]},
    }


def _stack(blocks: list[dict]) -> dict:
    return {
        k: _stack([b[k] for b in blocks]) if isinstance(v, dict) else np.stack([b[k] for b in blocks])
        for k, v in blocks[0].items()
    }


def from_reference(weights: dict[str, np.ndarray], cfg: VitConfig) -> dict:
    """Torch names and layouts -> our tree; the scorer is optional."""
    tree = {
        "patch_embedding": {"kernel": weights["patch_embedding.weight"].T, "bias": weights["patch_embedding.bias"]},
        "position_embedding": weights["positional_embedding"],
    }
    for first, end in cuts(cfg):
        tree[stack_name(first, end)] = _stack([_block(weights, i, cfg) for i in range(first, end)])
    if f"{SCORER}mlp.w1.weight" in weights:
        pool = {
            n: {leaf: weights[f"{SCORER}patch_token_pooler.w{n}.{leaf}"] for leaf in ("weight", "bias")} for n in "qkvo"
        }
        pooler = {
            name: {"kernel": _heads(pool[n]["weight"], cfg), "bias": _heads(pool[n]["bias"], cfg)}
            for name, n in (("query", "q"), ("key", "k"), ("value", "v"))
        }
        pooler["out"] = {
            "kernel": pool["o"]["weight"].T.reshape(cfg.heads, cfg.head_dim, -1),
            "bias": pool["o"]["bias"],
        }
        mlp = {
            f"fc{i}": {"kernel": weights[f"{SCORER}mlp.w{i}.weight"].T, "bias": weights[f"{SCORER}mlp.w{i}.bias"]}
            for i in (1, 2, 3)
        }
        tree["scorer"] = {"pooler": pooler, **mlp}
    return tree


def _unheads(kernel: np.ndarray) -> np.ndarray:
    """[in, H, d] -> [H d, in], or [H, d] -> [H d]."""
    return kernel.reshape(kernel.shape[0], -1).T if kernel.ndim == 3 else kernel.reshape(-1)


def to_reference(tree: dict, cfg: VitConfig) -> dict[str, np.ndarray]:
    """The leaves whose gradients golden files hold: patch embedding, query weights of every block, the whole scorer."""
    tree = _numpy(tree)
    out = {
        "patch_embedding.weight": tree["patch_embedding"]["kernel"].T,
        "patch_embedding.bias": tree["patch_embedding"]["bias"],
    }
    for first, end in cuts(cfg):
        blocks = tree[stack_name(first, end)]
        for i in range(first, end):
            for j, x in enumerate("qkv"):
                prefix = f"transformer.resblocks.{i}.attention.w{x}"
                out[f"{prefix}.weight"] = _unheads(blocks["qkv"]["kernel"][i - first][:, j])
                out[f"{prefix}.bias"] = _unheads(blocks["qkv"]["bias"][i - first][j])
    scorer = tree["scorer"]
    for name, n in (("query", "q"), ("key", "k"), ("value", "v")):
        out[f"{SCORER}patch_token_pooler.w{n}.weight"] = _unheads(scorer["pooler"][name]["kernel"])
        out[f"{SCORER}patch_token_pooler.w{n}.bias"] = _unheads(scorer["pooler"][name]["bias"])
    pooled = scorer["pooler"]["out"]
    out[f"{SCORER}patch_token_pooler.wo.weight"] = pooled["kernel"].reshape(-1, cfg.width).T
    out[f"{SCORER}patch_token_pooler.wo.bias"] = pooled["bias"]
    for i in (1, 2, 3):
        out[f"{SCORER}mlp.w{i}.weight"], out[f"{SCORER}mlp.w{i}.bias"] = (
            scorer[f"fc{i}"]["kernel"].T,
            scorer[f"fc{i}"]["bias"],
        )
    return out


def _numpy(tree):
    return {k: _numpy(v) for k, v in tree.items()} if isinstance(tree, dict) else np.asarray(tree)
