"""The state of a run that gave up: beside its good steps, never among them, so that it takes the place of none.

A restart and every reader of the workdir take a good step. WORKDIR/aborted/<step> is a step directory like others, for
a look, or for `init_from`.
"""

from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from sttts_jax.ckpt import files
from sttts_jax.ckpt.data_state import DataState
from sttts_jax.ckpt.restore import DATA, META, OPT, PARAMS, saving_context
from sttts_jax.ckpt.workdir import Workdir


def save_aborted(
    workdir: Workdir, step: int, params: Any, opt: Any, data: DataState, meta: Mapping[str, Any]
) -> epath.Path:
    """Writes the step and waits for it; an older one goes. All processes call. Returns where it lies."""
    place = workdir.aborted / str(step)
    older = [number for number in files.list_steps(workdir.aborted) if number != step]
    with saving_context():
        ocp.save_checkpointables(place, {PARAMS: params, OPT: opt, DATA: data, META: dict(meta)}, overwrite=True)
    if jax.process_index() == 0:
        for number in older:
            files.step_directory(workdir.aborted, number).rmtree()
        files.record_files(workdir.aborted, step)
    return place
