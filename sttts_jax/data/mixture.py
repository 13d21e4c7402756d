"""Several sources in one stream: by named weights, each shuffled anew every epoch, for ever."""

from collections.abc import Sequence

import grain

from sttts_jax.data.config import Source


def mix(lengths: Sequence[int], sources: Sequence[Source], seed: int) -> grain.MapDataset:
    """An endless MapDataset of (source number, record index, number for that draw's own randomness).

    Element i is a pure function of i and the seed, so that any process can start anywhere. Within a source a record
    comes once an epoch; between sources the weights hold exactly, whatever their sizes. Raises ValueError for an
    empty source.
    """
    streams = []
    for number, (length, source) in enumerate(zip(lengths, sources, strict=True)):
        if length == 0:
            raise ValueError(f"data source {source.name} ({source.split}) is empty; leave it out or build it larger")
        stream = grain.MapDataset.range(length).seed(seed * 1009 + number).shuffle().repeat()
        streams.append(
            stream.random_map(lambda index, rng, number=number: (number, int(index), int(rng.integers(2**31))))
        )
    if len(streams) == 1:
        return streams[0]
    return grain.MapDataset.mix(streams, weights=[source.weight for source in sources])
