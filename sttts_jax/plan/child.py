"""The process that compiles one bucket: `python -m sttts_jax.plan.child REQUEST ANSWER`, two JSON files."""

import json
import sys
from pathlib import Path
from typing import Any

from sttts_jax.plan.step import plan_step
from sttts_jax.plan.target import Target
from sttts_jax.train.config import RunConfig


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """`plan_step`, or {"mistake": sentence}. request: {"config": raw, "bucket": number, "target": `Target.as_json`}."""
    try:
        devices = Target.from_json(request["target"]).open()
        return plan_step(RunConfig.build(request["config"]), request["bucket"], devices)
    except ValueError as error:
        return {"mistake": str(error)}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(answer(json.loads(Path(sys.argv[1]).read_text()))))
