"""What a measurement is, as one digest: two of the same fingerprint have the same answers and verdicts.

No names are in it, of tasks or of files: what they hold is, so that an edited question, another video under the same
name or other weights in the same place make another measurement.
"""

import hashlib
import json
from typing import Any

from sttts_jax.evals.harness import Harness
from sttts_jax.evals.questions import Questions
from sttts_jax.infer.checkpoint import Setting


def fingerprint(harness: Harness, questions: Questions, setting: Setting) -> str:
    """Of what `harness.run` is asked to measure: questions, right answers, files, weights, and every setting that can
    change an answer. Reads the files of the weights and of the questions whole.
    """
    known: dict[str, Any] = {
        "checkpoint": harness.checkpoint.identity(setting),
        "seed": harness.seed,
        "max_new_tokens": questions.task.max_new_tokens,
        "questions": questions.digest,
    }
    if harness.checkpoint.pruning.method == "random":  # which draws for the rows of a batch
        known["rows"] = [harness.rows, harness.steps, harness.together]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
