"""Repositories of the Hugging Face hub as folders here: `hf:org/name` where there is no such folder."""

import os
import re

from sttts_jax.convert.disk import SIDE_SUFFIXES

# What a conversion reads: weights, and the side files that go along.
PATTERNS = tuple(f"*{suffix}" for suffix in (".safetensors", *SIDE_SUFFIXES))


def hub_folder(name: str) -> str:
    """The folder that `name` means: itself, or, where it is none and reads as org/name, that repository's newest
    snapshot in the user's cache of the hub, downloaded unless it is there.

    Raises ValueError with the command to type where nothing can be downloaded.
    """
    if os.path.exists(os.path.expanduser(name)) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII):
        return name
    here = name.partition("/")[2]
    command = f"`hf download {name} --local-dir {here}`, then give hf:{here}"
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(
            f"hf:{name} is no folder here, and the package huggingface_hub, which would download it, is not installed: "
            f"pip install 'sttts-jax[hub]'; or, where it is installed, type {command}"
        ) from None
    try:
        return snapshot_download(name, allow_patterns=list(PATTERNS))
    except Exception as error:  # of the library and of what it calls: no network, no such repository, no permission
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"hf:{name} is no folder here and cannot be downloaded ({reason}); where the network allows, type {command}"
        ) from error
