"""What a TPU VM of Google Cloud knows about itself: its metadata server, asked with a short deadline.

On such a machine the environment says nothing about the other hosts of the slice.
"""

import os
import urllib.request
from collections.abc import Mapping
from pathlib import Path

DEADLINE_S = 1.0  # the server is on the same machine
_GOOGLE = "0x1ae0"  # vendor of a PCI device: a TPU, or the network card of any machine of Google Cloud
_HOST = "metadata.google.internal"


def may_be_there(environment: Mapping[str, str]) -> bool:
    """Whether to ask: the machine has a device of Google's, and nobody said that it runs without it."""
    if "TPU_SKIP_MDS_QUERY" in environment or environment.get("JAX_PLATFORMS", "tpu").split(",")[0] not in ("tpu", ""):
        return False
    return "GCE_METADATA_IP" in environment or any(map(_is_google, Path("/sys/bus/pci/devices").glob("*/vendor")))


def _is_google(vendor: Path) -> bool:
    try:
        return vendor.read_text().strip() == _GOOGLE
    except OSError:
        return False


def read_attribute(name: str, deadline_s: float = DEADLINE_S) -> str | None:
    """An attribute of this instance; None where it has none, or nobody answers in time."""
    host = os.environ.get("GCE_METADATA_IP", _HOST)
    address = f"http://{host}/computeMetadata/v1/instance/attributes/{name}"
    request = urllib.request.Request(address, headers={"Metadata-Flavor": "Google"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=deadline_s) as answer:
            return answer.read().decode()
    except (OSError, ValueError):
        return None
