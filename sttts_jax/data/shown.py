"""What a record shows, by what its files hold and not by what they are called."""

import json

from sttts_jax.data.files import content_digest
from sttts_jax.data.record import Record


def shown(record: Record) -> str:
    """Digests of its video and images, its clip and its subtitles: the same text only for the same. Reads the files."""
    video, *images = (None if file is None else content_digest(file) for file in (record.video, *record.images))
    return json.dumps([video, images, record.start, record.end, record.subtitles])
