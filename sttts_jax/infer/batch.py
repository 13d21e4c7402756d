"""A file of questions to a file of answers, a line each; it goes on where it stopped, and reads each video once.

    count = answer_file(open_checkpoint("runs/mine"), "questions.jsonl", "answers.jsonl")

A line of answers has `number` of the question in its file, `id`, `question`, `answer`, `stopped` (whether the model
ended it), `frames`, `kept_share`, and `key`, a digest of what it is the answer to: question, files, weights, settings.
A question that cannot be asked has `error` in the place of all after `question`, and is tried again the next time.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from sttts_jax.data.evaluation import Asked, list_questions
from sttts_jax.data.json_lines import json_lines
from sttts_jax.data.prompt import user_text
from sttts_jax.data.record import RecordError
from sttts_jax.data.shown import shown
from sttts_jax.data.sources.jsonl import QuestionFile
from sttts_jax.infer.checkpoint import Setting
from sttts_jax.infer.generate import GenerationConfig
from sttts_jax.infer.model import Model
from sttts_jax.infer.scene import Scene
from sttts_jax.paths import PathLike, as_path, check_writable, is_local, read_bytes, write_bytes

Say = Callable[[str], None]
ABOUT = ("number", "id", "question")  # what a line begins with
PLAIN = "user_qa"  # the style that puts nothing before a question: its own is in its text


class BatchCount(NamedTuple):
    """Questions answered now, answered before, and not to be asked."""

    answered: int
    before: int
    bad: int


class _Question(NamedTuple):
    """A question in the file. about: what its line of answers begins with; text: as it is asked; scene: what it shows;
    key: what its answer is known by; problem: why it cannot be asked.
    """

    asked: Asked
    about: dict[str, Any]
    text: str = ""
    scene: str = ""
    key: str = ""
    problem: str = ""

    @property
    def what(self) -> Any:
        """The same for what is asked twice."""
        return self.key or self.asked


def answer_file(
    model: Model,
    questions: PathLike,
    out: PathLike,
    generation: GenerationConfig | None = None,
    *,
    pruned_fraction: str | float | None = None,
    max_frames: int | None = None,
    max_fps: float | None = None,
    max_crops: int | None = None,
    sampling: str | None = None,
    overwrite: bool = False,
    say: Say = lambda line: None,
) -> BatchCount:
    """Answers all questions of a file as `model.watch` and `ask` do, and writes them as they come; at the end `out` has
    them in the order of their file.

    questions  lines as `data.sources.jsonl.QuestionFile` reads them
    out        local; the answers that it holds already are kept, half a line at its end is not
    overwrite  drop what in `out` answers something else than is asked now
    say        gets a line about each scene and each question that cannot be asked

    `style` is the questions' own; the other settings are those of `Model.watch`. Raises ValueError, before a device is
    touched, where a file cannot be used, and where `out` holds answers to other questions or at other settings.
    """
    generation = dataclasses.replace(generation or GenerationConfig(), style=PLAIN)
    setting = model.checkpoint.exact_setting(pruned_fraction, max_frames, max_fps, max_crops, sampling)
    source = QuestionFile(str(questions))
    settings = json.dumps([model.checkpoint.identity(setting), dataclasses.asdict(generation)], sort_keys=True)
    known = [_known(source, asked, settings) for asked in list_questions(source)]
    file = _Answers(out, {question.key for question in known}, overwrite)
    before = sum(question.key in file.answers for question in known)
    for scene in _scenes(question for question in known if question.key not in file.answers):
        for question, line in _answer_scene(model, source, scene, setting, generation, say):
            file.put(question, line)
    file.finish(known)
    bad = sum(question.key not in file.answers for question in known)
    return BatchCount(len(known) - before - bad, before, bad)


def _known(source: QuestionFile, asked: Asked, settings: str) -> _Question:
    number = {"number": asked.number}
    try:
        record = source[asked.record]
    except RecordError as error:
        return _Question(asked, number, problem=str(error))
    message, scene = record.messages[asked.message], shown(record)
    key = hashlib.sha256(json.dumps([settings, scene, user_text(message)]).encode()).hexdigest()
    return _Question(asked, {**number, "id": record.id, "question": message.question}, user_text(message), scene, key)


def _scenes(questions: Iterable[_Question]) -> list[list[_Question]]:
    """Those about the same together, by the first of each; one that is asked twice is there once."""
    scenes: dict[Any, dict[Any, _Question]] = {}
    for question in questions:
        scenes.setdefault(question.scene or question.asked, {}).setdefault(question.what, question)
    return [list(scene.values()) for scene in scenes.values()]


def _answer_scene(
    model: Model,
    source: QuestionFile,
    questions: Sequence[_Question],
    setting: Setting,
    generation: GenerationConfig,
    say: Say,
) -> Iterator[tuple[_Question, dict[str, Any]]]:
    """Each question with its answer, or with why there is none."""
    problem, scene = questions[0].problem, None
    if not problem:
        record = source[questions[0].asked.record]
        try:
            scene = model.watch_record(record, setting)
            say(f"{record.id}: {len(questions)} question{'s' * (len(questions) > 1)}")
        except RecordError as error:
            problem = str(error)
    for question in questions:
        line = {"error": problem} if scene is None else _ask(scene, question, generation)
        if "error" in line:
            say(line["error"])
        yield question, line


def _ask(scene: Scene, question: _Question, generation: GenerationConfig) -> dict[str, Any]:
    try:
        answer = scene.ask(question.text, generation)
    except RecordError as error:
        return {"error": str(error)}
    seen = {"frames": scene.frames, "kept_share": scene.kept_share}
    return {"answer": answer.text, "stopped": answer.stopped, **seen, "key": question.key}


class _Answers:
    """The file of answers. answers: the lines that are some, without what they are about, by their key."""

    def __init__(self, path: PathLike, asked: set[str], overwrite: bool):
        if not is_local(path):
            raise ValueError(f"{path}: answers are added line by line, which needs a local file; copy it afterwards")
        check_writable(path)
        self._path, self._bad = as_path(path), dict[Any, dict[str, Any]]()
        found = _read(self._path)
        others = [line for line in found if "key" in line and line["key"] not in asked]
        if others and not overwrite:
            raise ValueError(
                f"{path} holds {len(others)} answers to something else than is asked now (other questions, files, "
                "weights or settings); give another --out, or --overwrite to drop them"
            )
        kept = [line for line in found if line.get("key") in asked]
        self.answers = {line["key"]: {n: v for n, v in line.items() if n not in ABOUT} for line in kept}
        if self._path.exists():
            self._write(kept)  # without half a line at its end

    def put(self, question: _Question, line: dict[str, Any]) -> None:
        """Adds a line, whole or not at all."""
        if "error" in line:
            self._bad[question.what] = line
        else:
            self.answers[question.key] = line
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            size = file.tell()
            try:
                file.write(_encoded({**question.about, **line}))
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                os.truncate(self._path, size)
                raise OSError(error.errno, error.strerror, str(self._path)) from error

    def finish(self, questions: Iterable[_Question]) -> None:
        """All lines in the order of their questions, each about its own."""
        lines = ((q, self.answers.get(q.key) or self._bad.get(q.what)) for q in questions)
        self._write({**question.about, **line} for question, line in lines if line)

    def _write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        write_bytes(self._path, b"".join(map(_encoded, lines)))


def _encoded(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, allow_nan=False).encode() + b"\n"


def _read(path: epath.Path) -> list[dict[str, Any]]:
    """Without what a process that died had begun to write. Raises ValueError for a file that is not one of answers."""
    if not path.exists():
        return []
    whole, _, _ = read_bytes(path).rpartition(b"\n")
    lines = [(number, _line(line)) for number, line in json_lines(whole, str(path))]
    wrong = [number for number, line in lines if "number" not in line or not {"key", "error"} & set(line)]
    if wrong:
        raise ValueError(f"{path}:{wrong[0]}: is no line of answers; give another --out")
    return [line for _, line in lines]


def _line(text: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}
