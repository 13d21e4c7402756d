"""Which attention kernels there are, and which a program gets.

Two shapes of attention exist in the model: inside frames (`frames`), and over packed rows (`rows`). Frames come as
slots of one size (`attend_frames`) or as a stream of tokens in which they follow one another (`attend_stream`). Which
kernel runs where:

    kernels   whole frames, and survivors                        rows of the language model
    xla       XLA on frames and on slots; every platform         XLA, queries in blocks
    cpu       XLA, frame by frame, in slices of the stream       as above
    gpu       cuDNN on frames and on slots, which skips padding  Pallas for Triton, pairs of blocks that meet
    tpu       Pallas on the stream, pairs of blocks that meet    Pallas, pairs of blocks that meet
"""

from typing import Any

import jax.numpy as jnp

KERNELS = ("auto", "xla", "cpu", "gpu", "tpu")
STREAM_KERNELS = ("cpu", "tpu")
# Patches of a frame from which a CPU goes frame by frame. Measured at SigLIP 2's width: slots are faster up to 144
# patches, the loop from 324 on (729: by a fifth), and 225 are even.
_WORTH_A_LOOP = 256


def choose_kernels(name: str, platform: str, dtype: Any, patches: int) -> str:
    """The kernels for devices of `platform` ("cpu", "gpu", "tpu"), those that a program is compiled for.

    `dtype` of the compute; `patches` of a frame. "auto" gives the platform's own, and "xla" where they do not apply:
    on GPUs in float32, and for small frames on CPUs. Raises ValueError for an unknown name, for kernels of another
    platform, and for "gpu" in float32.
    """
    if name not in KERNELS:
        raise ValueError(f"no attention kernels are called {name!r}; choose one of {', '.join(KERNELS)}")
    half = jnp.dtype(dtype).itemsize == 2
    usual = {"cpu": patches >= _WORTH_A_LOOP, "gpu": half, "tpu": True}
    if name == "auto":
        return platform if usual.get(platform) else "xla"
    if name not in ("xla", platform):
        raise ValueError(f"attention={name!r} does not run on {platform}; choose 'auto' or 'xla'")
    if name == "gpu" and not half:
        raise ValueError("attention='gpu' wants dtype bfloat16; choose that, or attention='xla'")
    return name
