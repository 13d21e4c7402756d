"""What makes an answer that arrives while it is made: programs that read a prefix, begin a question on it, go on.

All three are compiled before the first runs, so that what a user waits for can be told apart from compiling. They do
what `infer.generate` does in one: the same tokens, also sampled ones with the same key. The cache is given away by each
program and comes back, so that there is one of it; `begin` forgets the question before, and the prefix stays.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sttts_jax.data.schema import RowShape
from sttts_jax.infer.checkpoint import Subject
from sttts_jax.infer.generate import sample_tokens
from sttts_jax.models.cache import KvCache
from sttts_jax.models.vlm import Vlm

CHUNK = 8  # tokens between two looks of the host, at most; the first are shown one by one


class Room(NamedTuple):
    """The static sizes of an answer, and whether it is sampled: each has its own programs.

    shape    of the row that holds the prefix
    longest  T, tokens of the question
    new      tokens of the answer, at most
    """

    shape: RowShape
    longest: int
    new: int
    sample: bool

    @property
    def slots(self) -> int:
        """Of the cache."""
        return self.shape.length + self.longest + self.new


class Draw(NamedTuple):
    """How tokens are chosen where they are sampled: a key; float32 scalars."""

    key: jax.Array
    temperature: jax.Array
    top_p: jax.Array


class Prefix(NamedTuple):
    """What `read` gives: cache, next position int32 [1], kept bool [1, F, C], scores float32 [1, F, C] or None."""

    cache: KvCache
    position: jax.Array
    kept: jax.Array
    scores: jax.Array | None


class State(NamedTuple):
    """Of an answer after its last token: all [1, 1], step int32 scalar, tokens so far."""

    step: jax.Array
    token: jax.Array
    finished: jax.Array
    position: jax.Array
    cache: KvCache


class Programs:
    """The three programs of a room, compiled in `seconds`.

    read(params, batch, key) -> Prefix
    begin(params, tokens [1, 1, T], lengths [1, 1], position, cache, draw) -> State with the first token
    go_on(params, state, limit, draw) -> (tokens int32 [CHUNK], how many of them, State): up to `limit` <= CHUNK, fewer
        only where a stop token ends the answer, the last of them then
    """

    def __init__(self, subject: Subject, params: Any, batch: Any, room: Room, like: "Programs | None" = None):
        """`batch` of the room's shape and `params`: arrays, or what stands for them. `like`: programs of a room that
        differs in `sample` alone, which read in the same way.
        """
        model, stops = subject.model(room.shape), (subject.tokenizer.eos,)
        everywhere = NamedSharding(subject.mesh, PartitionSpec())

        def stand_in(tree: Any) -> Any:
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), tree)

        def numbers(*shape: int, dtype: Any = jnp.int32) -> Any:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

        key = stand_in(jax.eval_shape(lambda: jax.random.key(0)))
        draw = Draw(key, numbers(dtype=jnp.float32), numbers(dtype=jnp.float32))
        whole: Any = {"out_shardings": everywhere}
        before = time.perf_counter()
        with jax.set_mesh(subject.mesh):
            if like is None:
                read = jax.jit(functools.partial(_read, model, room.slots), **whole).lower(params, batch, key)
                self.read, self._start = read.compile(), stand_in(read.out_info)
            else:
                self.read, self._start = like.read, like._start
            begin = jax.jit(functools.partial(_begin, model, room.sample, stops), donate_argnums=4, **whole)
            asked = numbers(1, 1, room.longest), numbers(1, 1)
            lowered = begin.lower(params, *asked, self._start.position, self._start.cache, draw)
            self.begin = lowered.compile()
            go_on = jax.jit(functools.partial(_go_on, model, room.sample, stops), donate_argnums=1, **whole)
            self.go_on = go_on.lower(params, stand_in(lowered.out_info), numbers(), draw).compile()
        self.seconds = time.perf_counter() - before


class Engine:
    """A checkpoint on the devices: its weights, and the programs that were needed so far."""

    def __init__(self, subject: Subject):
        self.subject = subject
        self._programs: dict[Room, Programs] = {}

    @functools.cached_property
    def params(self) -> Any:
        """Loaded on first use; those of the language model in the type it computes with, to which every use would cast
        them: so a decode step reads half as much in bfloat16.
        """
        params, dtype = dict(self.subject.params), self.subject.dtype
        self.subject.release()
        params["llm"] = jax.tree.map(lambda x: x.astype(dtype), params["llm"])
        return params

    def programs(self, room: Room, batch: dict[str, np.ndarray]) -> tuple[Programs, float]:
        """Those of a room, for batches like this, and the seconds of compiling them now: 0.0 where they are there."""
        if room in self._programs:
            return self._programs[room], 0.0
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._everywhere), batch)
        like = self._programs.get(room._replace(sample=not room.sample))
        self._programs[room] = made = Programs(self.subject, self.params, shapes, room, like)
        return made, made.seconds

    def place(self, tree: Any) -> Any:
        """Arrays on all devices of the mesh, whole on each."""
        return jax.device_put(tree, self._everywhere)

    @property
    def _everywhere(self) -> NamedSharding:
        return NamedSharding(self.subject.mesh, PartitionSpec())


class Talk:
    """One answer while it is made. Iterating gives the new ids, a few at a time, the stop token last if it comes.

    first_token_s  seconds since `started`; the first ids are there then
    later_s        seconds since the first token
    state          on the devices, after the last token
    """

    def __init__(self, programs: Programs, params: Any, state: State, draw: Draw, most: int, started: float):
        self._programs, self._params, self._draw, self._most = programs, params, draw, most
        self.state, self.made, self.later_s = state, 1, 0.0
        self._first = [int(state.token[0, 0])]
        self._since = time.perf_counter()
        self.first_token_s = self._since - started

    def __iter__(self) -> Iterator[list[int]]:
        yield self._first
        while self.made < self._most and not bool(self.state.finished[0, 0]):
            limit = min(CHUNK, self._most - self.made, self.made)
            out, made, self.state = self._programs.go_on(self._params, self.state, np.int32(limit), self._draw)
            new = np.asarray(out)[: int(made)].tolist()
            self.made += len(new)
            self.later_s = time.perf_counter() - self._since
            yield new


def _read(model: Vlm, slots: int, params: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Prefix:
    cache, position, seen = model.apply({"params": params}, batch, slots, rng, method="prefill_prefix")
    scores = None if seen.logits is None else jax.nn.sigmoid(seen.logits)
    return Prefix(cache, position, seen.kept.mask, scores)


def _begin(
    model: Vlm,
    sample: bool,
    stops: tuple[int, ...],
    params: Any,
    tokens: jax.Array,
    lengths: jax.Array,
    position: jax.Array,
    cache: KvCache,
    draw: Draw,
) -> State:
    cache = _forget(cache, model.length)
    logits, cache, position = model.apply({"params": params}, tokens, lengths, position, cache, method="extend")
    token = _pick(logits, jnp.int32(0), draw if sample else None)
    return State(jnp.int32(1), token, _isin(token, stops), position, cache)


def _go_on(
    model: Vlm, sample: bool, stops: tuple[int, ...], params: Any, state: State, limit: jax.Array, draw: Draw
) -> tuple[jax.Array, jax.Array, State]:
    def more(loop: tuple[jax.Array, State, jax.Array]) -> jax.Array:
        made, state, _ = loop
        return (made < limit) & ~jnp.all(state.finished)

    def one(loop: tuple[jax.Array, State, jax.Array]) -> tuple[jax.Array, State, jax.Array]:
        made, state, out = loop
        logits, cache = model.apply({"params": params}, state.token, state.position, state.cache, method="decode")
        token = _pick(logits, state.step, draw if sample else None)
        state = State(state.step + 1, token, _isin(token, stops), state.position + 1, cache)
        return made + 1, state, out.at[made].set(token[0, 0])

    made, state, out = jax.lax.while_loop(more, one, (jnp.int32(0), state, jnp.zeros(CHUNK, jnp.int32)))
    return out, made, state


def _pick(logits: jax.Array, step: jax.Array, draw: Draw | None) -> jax.Array:
    """logits [1, 1, Y] -> int32 [1, 1]."""
    if draw is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    key = jax.random.fold_in(draw.key, step)
    return sample_tokens(key, logits.reshape(1, -1), draw.temperature, draw.top_p).reshape(1, 1)


def _isin(token: jax.Array, stops: tuple[int, ...]) -> jax.Array:
    return jnp.isin(token, jnp.asarray(stops, jnp.int32))


def _forget(cache: KvCache, length: int) -> KvCache:
    """The cache as it was with `length` slots written: what came after is seen by nobody and written over."""
    example = jnp.where(jnp.arange(cache.slots) < length, cache.rule.example, -1)
    return dataclasses.replace(cache, rule=cache.rule._replace(example=example), length=jnp.int32(length))
