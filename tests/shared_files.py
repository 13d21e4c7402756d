"""Real videos and tokenizer files, too large for the repository: the folder `shared` beside the checkout, or the one
that STTTS_SHARED names. Tests that need them are skipped where they are not.
"""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("STTTS_SHARED", Path(__file__).parents[2] / "shared"))
DATA = SHARED / "data"
VIDEOS = DATA / "videos"
NO_DATA = f"needs real files, and there is no {DATA}; STTTS_SHARED names the folder above"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=NO_DATA)
