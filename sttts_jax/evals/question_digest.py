"""What is asked, as one digest: of questions, right answers and the files that they are about, by what these hold."""

import hashlib
import json
from collections.abc import Sequence

from sttts_jax.data.evaluation import Asked
from sttts_jax.data.record import RecordError
from sttts_jax.data.shown import shown
from sttts_jax.data.sources.registry import Records


def question_digest(records: Records, questions: Sequence[Asked]) -> str:
    """SHA-256. Reads the files of the records whole."""
    whole, last = hashlib.sha256(), (-1, "")
    for asked in questions:
        if asked.record != last[0]:
            last = (asked.record, _seen(records, asked.record))
        whole.update(f"{last[1]}\n{_question(records, asked)}\n".encode("utf-8", "backslashreplace"))
    return whole.hexdigest()


def _seen(records: Records, number: int) -> str:
    """What a record is called and shows; of one that cannot be read the cause."""
    try:
        record = records[number]
    except RecordError as error:
        return str(error)
    return f"{json.dumps(record.id)} {shown(record)}"


def _question(records: Records, asked: Asked) -> str:
    try:
        message = records[asked.record].messages[asked.message]
    except RecordError:
        return ""
    return json.dumps([message.question, message.answer, message.style, message.options, message.family])
