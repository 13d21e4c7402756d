"""Records of a built TFDS dataset, read from ArrayRecord without TensorFlow."""

import hashlib
import json
from typing import Any

from sttts_jax.data.record import Message, Record, RecordError, naming

QUESTION = ("question", "answer", "style", "options", "family")  # features of `qa`, those of `shapes_tfds`
FEATURES = {"video_id", "video", "qa", *(f"qa/{name}" for name in QUESTION)}


class TfdsRecords:
    """A split of a built TFDS dataset with the features of `shapes_tfds`, or a part of one, such as "train[:50%]".

    Raises ValueError for a directory that is no such dataset, and for a split that it does not have or that is empty.
    """

    def __init__(self, directory: str, split: str):
        import tensorflow_datasets as tfds  # two seconds: only where it is needed

        try:
            builder = tfds.builder_from_directory(directory)
        except Exception as error:  # what its files can make of JSON and protocol buffers
            raise ValueError(f"{directory}: is no whole dataset ({_line(error)}); build it again") from error
        known, features = list(builder.info.splits), set(_names(builder.info.features))
        if not features >= FEATURES:
            missing = ", ".join(sorted(FEATURES - features))
            raise ValueError(f"{directory}: lacks the features {missing}; give a dataset of records")
        if split.split("[")[0] not in known:
            raise ValueError(f"{directory}: has no split {split!r}; its splits are {', '.join(known)}")
        try:
            self._data = builder.as_data_source(split=split)
            self._count = len(self._data)
        except Exception as error:  # ValueError for parts that cannot be, others for files that are not there
            raise ValueError(f"{directory}: the split {split!r} cannot be read ({_line(error)})") from error
        self._where = f"{directory} ({split})"
        sizes = {name: [info.num_bytes, info.shard_lengths] for name, info in builder.info.splits.items()}
        self.fingerprint = hashlib.sha256(json.dumps([builder.info.full_name, sizes]).encode()).hexdigest()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        place = f"{self._where}, record {index}"
        try:
            fields = self._data[index]
        except Exception as error:  # the file is cut short, or its bytes are not those that were written
            raise RecordError(f"{place}: is damaged ({_line(error)}); build the dataset again") from error
        with naming(place):
            qa = fields["qa"]
            rows = zip(*(qa[name] for name in QUESTION), strict=True)
            messages = tuple(
                Message(_text(q), _text(a), _text(s), tuple(map(_text, o)), _text(f)) for q, a, s, o, f in rows
            )
            return Record(id=_text(fields["video_id"]), video=fields["video"], messages=messages, place=place)


def _names(features: Any, prefix: str = "") -> list[str]:
    """The features and those within them, as in FEATURES."""
    own = getattr(features, "feature", features)  # of a sequence, the one that it repeats
    if not hasattr(own, "keys"):
        return []
    return [name for key in own for name in (f"{prefix}{key}", *_names(own[key], f"{prefix}{key}/"))]


def _text(value: Any) -> Any:
    """Bytes as the text that they are; other kinds are the schema's to refuse."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise RecordError(f"holds a text that is not UTF-8, {value[:40]!r}; build the dataset again") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
