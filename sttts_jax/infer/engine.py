"""What makes an answer that arrives while it is made: programs that read a prefix, begin a question on it, go on.

All three are compiled before the first runs, so that what a user waits for can be told apart from compiling. They are
what `infer.generate` does in one, made of the same steps (`infer.decode`): the same tokens, also sampled ones with the
same key. The cache is given away by each program and comes back, so that there is one of it; `begin` forgets the
question before, and the prefix stays.
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
from sttts_jax.infer.checkpoint import Checkpoint
from sttts_jax.infer.decode import DecodeState, SamplerState, begin, go_on
from sttts_jax.models.cache import KvCache
from sttts_jax.models.vlm import Vlm

CHUNK = 8  # tokens between two looks of the host, at most; the first are shown one by one


class CacheCapacity(NamedTuple):
    """What a cache has room for, and whether the answer is sampled: static, so each has its own programs.

    shape     of the row that holds the prefix
    question  T, tokens of the question, at most
    new       tokens of the answer, at most
    """

    shape: RowShape
    question: int
    new: int
    sample: bool

    @property
    def slots(self) -> int:
        """Smax."""
        return self.shape.length + self.question + self.new


class ReadPrefix(NamedTuple):
    """What `read` gives: cache, next position int32 [1], kept bool [1, F, C], scores float32 [1, F, C] or None."""

    cache: KvCache
    position: jax.Array
    kept: jax.Array
    scores: jax.Array | None


class Programs:
    """The three programs of a capacity, compiled in `seconds`. States are of one question: token and the like [1, 1].

    read(params, batch, key) -> ReadPrefix
    begin(params, tokens [1, 1, T], lengths [1, 1], position [1], cache, sampler) -> DecodeState with the first token
    go_on(params, state, limit, sampler) -> (tokens int32 [CHUNK], how many of them, DecodeState): up to `limit` <=
        CHUNK, fewer only where a stop token ends the answer, the last of them then
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        params: Any,
        batch: Any,
        capacity: CacheCapacity,
        like: "Programs | None" = None,
    ):
        """`params`, and `batch` of the capacity's shape: arrays, or what stands for them. `like`: programs of a
        capacity that differs in `sample` alone, which read in the same way.
        """
        model, stops, sample = checkpoint.model(capacity.shape), (checkpoint.tokenizer.eos,), capacity.sample
        everywhere = NamedSharding(checkpoint.mesh, PartitionSpec())

        def stand_in(tree: Any) -> Any:
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), tree)

        def numbers(*shape: int, dtype: Any = jnp.int32) -> Any:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

        def jit(function: Any, *static: Any, donate: int | None = None) -> Any:
            bound = functools.partial(function, model, *static)
            return jax.jit(bound, out_shardings=everywhere, donate_argnums=donate)

        key = stand_in(jax.eval_shape(lambda: jax.random.key(0)))
        sampler = SamplerState(key, numbers(dtype=jnp.float32), numbers(dtype=jnp.float32))
        before = time.perf_counter()
        with jax.set_mesh(checkpoint.mesh):
            if like is None:
                read = jit(_read, capacity.slots).lower(params, batch, key)
                self.read, self._start = read.compile(), stand_in(read.out_info)
            else:
                self.read, self._start = like.read, like._start
            asked = numbers(1, 1, capacity.question), numbers(1, 1)
            first = jit(_begin, sample, stops, donate=4)
            first = first.lower(params, *asked, self._start.position, self._start.cache, sampler)
            further = jit(_go_on, sample, stops, donate=1)
            further = further.lower(params, stand_in(first.out_info), numbers(), sampler)
            self.begin, self.go_on = first.compile(), further.compile()
        self.seconds = time.perf_counter() - before


class Engine:
    """A checkpoint on the devices: its weights, and the programs that were needed so far."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self._programs: dict[CacheCapacity, Programs] = {}

    @functools.cached_property
    def params(self) -> Any:
        """Loaded on first use; those of the language model in the type it computes with, to which every use would cast
        them: so a decode step reads half as much in bfloat16.
        """
        params, dtype = dict(self.checkpoint.params), self.checkpoint.dtype
        self.checkpoint.release()
        params["llm"] = jax.tree.map(lambda x: x.astype(dtype), params["llm"])
        return params

    def programs(self, capacity: CacheCapacity, batch: dict[str, np.ndarray]) -> tuple[Programs, float]:
        """Those of a capacity, for batches like this, and the seconds of compiling them now: 0.0 if they are there."""
        if capacity in self._programs:
            return self._programs[capacity], 0.0
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._everywhere), batch)
        like = self._programs.get(capacity._replace(sample=not capacity.sample))
        self._programs[capacity] = made = Programs(self.checkpoint, self.params, shapes, capacity, like)
        return made, made.seconds

    def place(self, tree: Any) -> Any:
        """Arrays on all devices of the mesh, whole on each."""
        return jax.device_put(tree, self._everywhere)

    @property
    def _everywhere(self) -> NamedSharding:
        return NamedSharding(self.checkpoint.mesh, PartitionSpec())


class TokenStream:
    """One answer while it is made. Iterating gives the new ids, a few at a time, the stop token last if it comes.

    first_token_s  seconds since `started`; the first ids are there then
    later_s        seconds since the first token
    state          on the devices, after the last token
    """

    def __init__(
        self, programs: Programs, params: Any, state: DecodeState, sampler: SamplerState, most: int, started: float
    ):
        self._programs, self._params, self._sampler, self._most = programs, params, sampler, most
        self.state, self.made, self.later_s = state, 1, 0.0
        self._first = [int(state.token[0, 0])]
        self._since = time.perf_counter()
        self.first_token_s = self._since - started

    def __iter__(self) -> Iterator[list[int]]:
        yield self._first
        while self.made < self._most and not bool(self.state.finished[0, 0]):
            limit = min(CHUNK, self._most - self.made, self.made)
            out, made, self.state = self._programs.go_on(self._params, self.state, np.int32(limit), self._sampler)
            new = np.asarray(out)[: int(made)].tolist()
            self.made += len(new)
            self.later_s = time.perf_counter() - self._since
            yield new


def _read(model: Vlm, slots: int, params: Any, batch: dict[str, jax.Array], rng: jax.Array) -> ReadPrefix:
    cache, position, seen = model.apply({"params": params}, batch, slots, rng, method="prefill_prefix")
    scores = None if seen.logits is None else jax.nn.sigmoid(seen.logits)  # [1, F, C]
    return ReadPrefix(cache, position, seen.kept.mask, scores)


def _begin(
    model: Vlm,
    sample: bool,
    stops: tuple[int, ...],
    params: Any,
    tokens: jax.Array,
    lengths: jax.Array,
    position: jax.Array,
    cache: KvCache,
    sampler: SamplerState,
) -> DecodeState:
    cache = _forget(cache, model.length)
    asked = tokens, lengths, position, cache
    logits, cache, position = model.apply({"params": params}, *asked, method="extend")  # [1, 1, Y]
    return begin(logits, position, cache, stops, sampler if sample else None)


def _go_on(
    model: Vlm,
    sample: bool,
    stops: tuple[int, ...],
    params: Any,
    state: DecodeState,
    limit: jax.Array,
    sampler: SamplerState,
) -> tuple[jax.Array, jax.Array, DecodeState]:
    def more(loop: tuple[jax.Array, DecodeState, jax.Array]) -> jax.Array:
        made, state, _ = loop
        return (made < limit) & ~jnp.all(state.finished)

    def one(loop: tuple[jax.Array, DecodeState, jax.Array]) -> tuple[jax.Array, DecodeState, jax.Array]:
        made, state, out = loop
        state = go_on(model, {"params": params}, state, stops, sampler if sample else None)
        return made + 1, state, out.at[made].set(state.token[0, 0])

    made, state, out = jax.lax.while_loop(more, one, (jnp.int32(0), state, jnp.zeros(CHUNK, jnp.int32)))
    return out, made, state


def _forget(cache: KvCache, length: int) -> KvCache:
    """The cache as it was with `length` slots written: what came after is seen by nobody and written over."""
    example = jnp.where(jnp.arange(cache.slots) < length, cache.rule.example, -1)  # [1, Smax]
    return dataclasses.replace(cache, rule=cache.rule._replace(example=example), length=jnp.int32(length))
