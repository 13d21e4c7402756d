"""The step that `train` would run, compiled for devices that need not be there, and what is read from it."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax

from sttts_jax.mesh import DataLayout, make_mesh
from sttts_jax.plan.activations import kept_for_backward
from sttts_jax.plan.advice import Setting, what_to_change
from sttts_jax.plan.collectives import find_collectives, totals
from sttts_jax.plan.hlo import read_program
from sttts_jax.plan.memory import Memory, compiled_peak, exhausted, split_memory
from sttts_jax.plan.roofline import roofline
from sttts_jax.plan.target import GIB, chip_at, memory_gib
from sttts_jax.plan.traffic import compiled_flops, estimated_cycles, hbm_bytes, kernel_flops
from sttts_jax.train.buckets import bucket_step
from sttts_jax.train.config import RunConfig
from sttts_jax.train.cost import frozen_parts, update_flops
from sttts_jax.train.state import Blueprint, abstract_batch, blueprint, build_model


def plan_step(config: RunConfig, number: int, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Plain JSON, see `plan.Plan`, of bucket `number` of the run. Raises ValueError where the mesh does not fit."""
    devices = list(devices)
    mesh = make_mesh(dataclasses.asdict(config.mesh), devices, config.micro_rows)
    config.check_mesh(mesh.shape)
    layout = DataLayout(mesh, devices[0].process_index)
    layout.rows_per_process(config.micro_rows)
    base, bucket = blueprint(config, mesh), config.buckets[number]
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.sharding())
        for name, x in abstract_batch(bucket.data.row_shape, bucket.data.rows).items()
    }
    with jax.set_mesh(mesh):
        begun = time.perf_counter()
        lowered = bucket_step(bucket, base).lower(base.abstract, batch)
        traced = time.perf_counter()
        compiled, need = _compile(lowered)
    known = {"trace_s": traced - begun, "compile_s": time.perf_counter() - traced, **_shape(bucket, base)}
    shards = layout.row_shards * mesh.shape["sequence"]
    setting = Setting(bucket, dict(mesh.shape), lambda remat: _activations(bucket, base, shards, remat))
    have = memory_gib(devices) * GIB
    if compiled is None:
        memory = split_memory(base.abstract, batch, setting.activations(bucket.model.remat), need[0], 0)
        return known | _memory(memory, need[1], False) | {"advice": what_to_change(setting, memory, need[1])}
    peak, program = compiled_peak(compiled.memory_analysis())
    memory = split_memory(base.abstract, batch, setting.activations(bucket.model.remat), peak, program)
    advice = what_to_change(setting, memory, int(have)) if peak > have else []
    return known | _memory(memory, have, peak <= have) | {"advice": advice} | _work(compiled, known["flops"], mesh)


def _compile(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled | None, tuple[int, int]]:
    """(the program, (0, 0)), or (None, (bytes needed, bytes there are)) where it does not fit."""
    try:
        return lowered.compile(), (0, 0)
    except jax.errors.JaxRuntimeError as error:
        need = exhausted(str(error))
        if need is None:
            raise
        return None, need


def _shape(bucket: RunConfig, base: Blueprint) -> dict[str, Any]:
    """What is known before anything is compiled."""
    mesh = base.mesh
    return {
        "pruned_fraction": bucket.pruning.removed,
        "devices": mesh.size,
        "device_kind": mesh.devices.flat[0].device_kind,
        "mesh": dict(mesh.shape),
        "kernels": base.model.attention,
        "remat": bucket.model.remat,
        "accumulate": bucket.loss.accumulate,
        "rows": bucket.data.rows,
        "row_length": bucket.data.row_length,
        "flops": update_flops(bucket, frozen_parts(base.optimizer.labels)),
    }


def _activations(bucket: RunConfig, base: Blueprint, shards: int, remat: str) -> int:
    shape, rows = bucket.data.row_shape, bucket.data.rows // bucket.loss.accumulate
    model = dataclasses.replace(bucket.model, remat=remat)
    built = build_model(model, bucket.pruning, shape, base.platform)
    with jax.set_mesh(base.mesh):
        return kept_for_backward(built, base.optimizer, base.abstract.params, shape, rows, shards)


def _memory(memory: Memory, have: float, fits: bool) -> dict[str, Any]:
    kinds = {f"{name}_gib": size / GIB for name, size in dataclasses.asdict(memory).items()}
    return {"fits": fits, "peak_gib": memory.peak / GIB, "hbm_gib": have / GIB, **kinds}


def _work(compiled: jax.stages.Compiled, flops: float, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """What the compiled program does, and how long that takes at least."""
    program = read_program(compiled.as_text() or "")
    found = find_collectives(program, mesh.shape)
    sums, moved = totals(found), hbm_bytes(program)
    work = {
        "compiled_flops": compiled_flops(program) * mesh.size,
        "hbm_bytes": moved,
        "collectives": [one.as_json() for one in sums],
        "listing": [dataclasses.asdict(one) | {"axes": list(one.axes), "dims": list(one.dims)} for one in found],
    }
    chip = chip_at(list(mesh.devices.flat))
    if chip is None:
        return work
    bound = roofline(chip, flops / mesh.size, moved, sums, mesh)
    cycles = estimated_cycles(program)
    own = cycles / chip.clock + kernel_flops(program) / chip.peak if cycles and chip.clock else None
    return work | {
        "step_seconds": bound.step,
        "bound": bound.bound,
        "compute_s": bound.compute,
        "hbm_s": bound.hbm,
        "interconnect_s": bound.interconnect,
        "compiler_s": own,
    }
