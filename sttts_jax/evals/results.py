"""Counts, and results.json: what was measured, of which step, at which setting."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sttts_jax.ckpt.meta import check_config
from sttts_jax.evals.accuracy import Accuracy, wilson
from sttts_jax.paths import PathLike, as_path, read_json, write_json, write_text

FORMAT_VERSION = 2
RESULTS = "results.json"


@dataclasses.dataclass(frozen=True)
class Tally:
    """Questions asked, answers right, answers from which nothing could be read (they count as wrong)."""

    count: int
    right: int
    unparsable: int

    @classmethod
    def of(cls, verdicts: Sequence[bool | None]) -> "Tally":
        """Of the verdicts of a judge."""
        return cls(len(verdicts), sum(v is True for v in verdicts), sum(v is None for v in verdicts))

    @property
    def accuracy(self) -> Accuracy:
        """Right / asked, with its 95 % interval."""
        return wilson(self.right, self.count)

    def to_json(self) -> dict[str, Any]:
        """With accuracy and interval, for readers of the file."""
        a = self.accuracy
        return {**dataclasses.asdict(self), "accuracy": a.value, "low": a.low, "high": a.high}


@dataclasses.dataclass(frozen=True)
class Key:
    """What has to be equal for a result to be the same measurement. `records`: of the source, which may be rebuilt."""

    task: str
    source: str
    records: int
    step: int
    fraction: str
    max_frames: int
    max_fps: float | None
    limit: int | None
    seed: int

    @property
    def file_name(self) -> str:
        """Of the predictions; different keys of one source have different names."""
        task = "".join(c if c.isalnum() or c in "-." else "_" for c in self.task)[-80:]
        parts = [f"step{self.step}", task, f"k{self.fraction}", f"f{self.max_frames}"]
        parts += [f"{name}{value}" for name, value in (("fps", self.max_fps), ("n", self.limit)) if value is not None]
        parts += [f"seed{self.seed}"] if self.seed else []
        return "_".join(parts) + ".jsonl"


@dataclasses.dataclass(frozen=True)
class Result:
    """One task at one setting. Predictions lie in a file beside results.json, one JSON object a question.

    kept_share            cells that lived, of all cells of all frames
    frames_mean           frames of a question; below max_frames where the clips are short
    seconds_per_question  decoding and answering, without compiling
    buckets               the shapes of rows: {"frames", "length", "rows"}, and how many rows there were of each
    rows                  of a batch
    bad                   questions that could not be asked: {"id", "error"}; not part of any accuracy
    histogram             counts of scores after first frames, kept and dropped, between "edges"; None without a scorer
    """

    key: Key
    overall: Tally
    families: Mapping[str, Tally]
    kept_share: float
    frames_mean: float
    seconds_per_question: float
    compile_seconds: float
    compilations: int
    buckets: Sequence[Mapping[str, int]]
    rows: int
    bad: Sequence[Mapping[str, Any]]
    histogram: Mapping[str, Sequence[float]] | None
    predictions: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        families = {name: tally.to_json() for name, tally in self.families.items()}
        return {**plain, "key": dataclasses.asdict(self.key), "overall": self.overall.to_json(), "families": families}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Result":
        """The inverse of `to_json`."""
        families = {name: _tally(value) for name, value in fields["families"].items()}
        key, overall = Key(**fields["key"]), _tally(fields["overall"])
        return cls(**{**fields, "key": key, "overall": overall, "families": families})


def _tally(fields: Mapping[str, Any]) -> Tally:
    return Tally(fields["count"], fields["right"], fields["unparsable"])


class ResultsFile:
    """DIR/results.json of one run, written whole after every result, so that an evaluation goes on where it stopped."""

    def __init__(self, directory: PathLike, name: str, config: Mapping[str, Any], overwrite: bool = False):
        """overwrite: nothing that lies there is used. Raises ValueError where it is another run's, or not readable."""
        self.directory = as_path(directory)
        self._head = {"format_version": FORMAT_VERSION, "run": name, "config": dict(config)}
        self._results = [] if overwrite else self._read(config)

    def _read(self, config: Mapping[str, Any]) -> list[Result]:
        path = self.directory / RESULTS
        if not path.exists():
            return []
        saved = read_json(path)
        if not isinstance(saved, dict) or saved.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"{path}: is not a results file of this version; use another --out or --overwrite")
        check_config({"config": json.dumps(saved["config"])}, config)
        return [Result.from_json(fields) for fields in saved["results"]]

    def find(self, key: Key) -> Result | None:
        """The result of exactly this measurement, if it is there with its predictions."""
        found = next((result for result in self._results if result.key == key), None)
        return found if found is not None and (self.directory / found.predictions).exists() else None

    def put(self, result: Result, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Adds a result, or replaces the same measurement, with its predictions."""
        lines = "".join(json.dumps(line, allow_nan=False) + "\n" for line in predictions)
        write_text(self.directory / result.predictions, lines)
        self._results = [old for old in self._results if old.key != result.key] + [result]
        write_json(self.directory / RESULTS, {**self._head, "results": [r.to_json() for r in self._results]})

    def predictions(self, result: Result) -> list[dict[str, Any]]:
        """The predictions of a result, in the order of the questions."""
        return [json.loads(line) for line in (self.directory / result.predictions).read_text().splitlines()]
