"""Counts, and results.json: what was measured, of which step, at which setting, by its fingerprint."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sttts_jax.ckpt.meta import check_config
from sttts_jax.data.sampling import RULES
from sttts_jax.evals.accuracy import Accuracy, wilson
from sttts_jax.infer.checkpoint import Setting
from sttts_jax.paths import PathLike, as_path, check_writable, file_name, read_json, write_json, write_text

FORMAT_VERSION = 3
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
    """What was measured, for a reader. What tells it from any other measurement is its fingerprint."""

    task: str
    source: str
    records: int
    step: int
    method: str
    fraction: str
    max_frames: int
    max_fps: float | None
    max_crops: int
    limit: int | None
    seed: int
    sampling: str = RULES[0]  # that of results which do not name one

    @property
    def setting(self) -> Setting:
        """At what it was asked."""
        return Setting(self.fraction, self.max_frames, self.max_fps, self.max_crops, self.sampling)

    def file_name(self, fingerprint: str) -> str:
        """Of the predictions."""
        parts = [f"step{self.step}", file_name(self.task, 60), self.method, f"k{self.fraction}", f"f{self.max_frames}"]
        return "_".join([*parts, fingerprint[:16]]) + ".jsonl"


@dataclasses.dataclass(frozen=True)
class Result:
    """One task at one setting. Predictions lie in a file beside results.json, one JSON object a question; before they
    are there it has no name.

    kept_share            cells that lived, of all cells of all frames
    frames_mean           frames of a question; below max_frames where the clips are short
    seconds_per_question  decoding and answering, without compiling
    buckets               the shapes of rows: {"frames", "crops", "length", "rows"}, how many rows there were of each
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
    predictions: str = ""

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
        """overwrite: what lies there is not found, and replaced where it is measured again. Raises ValueError where it
        is another run's, or not readable.
        """
        self.directory = as_path(directory)
        self._head: dict[str, Any] = {"format_version": FORMAT_VERSION, "run": name, "config": dict(config)}
        self._overwrite = overwrite
        self._read()

    def _read(self) -> dict[str, Any]:
        """{fingerprint: JSON of its result}."""
        path = self.directory / RESULTS
        if not path.exists():
            return {}
        try:
            saved = read_json(path)
            if not isinstance(saved, dict) or saved.get("format_version") != FORMAT_VERSION:
                raise ValueError(f"{path}: is not a results file of this version; use another --out or --overwrite")
            check_config({"config": json.dumps(saved["config"])}, self._head["config"])
        except ValueError:
            if not self._overwrite:
                raise
            return {}
        return {entry.pop("fingerprint"): entry for entry in saved["results"]}

    def check_writable(self) -> None:
        """Raises ValueError where no result can be put."""
        try:
            check_writable(self.directory / RESULTS)
        except ValueError as error:
            raise ValueError(f"{error}, with --out DIR") from None

    def find(self, fingerprint: str) -> Result | None:
        """The result of exactly this measurement, if it is there with its predictions."""
        entry = None if self._overwrite else self._read().get(fingerprint)
        found = None if entry is None else Result.from_json(entry)
        return found if found is not None and (self.directory / found.predictions).exists() else None

    def put(self, fingerprint: str, result: Result, predictions: Sequence[Mapping[str, Any]]) -> Result:
        """Adds a result, or replaces the same measurement, with its predictions; gives it with their name."""
        entries, result = self._read(), dataclasses.replace(result, predictions=result.key.file_name(fingerprint))
        lines = "".join(json.dumps(line, allow_nan=False) + "\n" for line in predictions)
        write_text(self.directory / result.predictions, lines)
        entries = {**entries, fingerprint: result.to_json()}
        results = [{"fingerprint": known, **entry} for known, entry in entries.items()]
        try:
            write_json(self.directory / RESULTS, {**self._head, "results": results})
        except OSError:
            (self.directory / result.predictions).unlink()  # nobody would know what it holds
            raise
        return result

    def predictions(self, result: Result) -> list[dict[str, Any]]:
        """The predictions of a result, in the order of the questions."""
        with (self.directory / result.predictions).open() as file:
            return [json.loads(line) for line in file]
