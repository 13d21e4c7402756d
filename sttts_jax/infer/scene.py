"""A scene: a video, images or both as a checkpoint reads them, asked as often as wanted."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from sttts_jax.data.evaluation import build_question
from sttts_jax.data.packing import Item, fill_row
from sttts_jax.data.record import Message
from sttts_jax.data.schema import Example, RowShape
from sttts_jax.data.tokenizer import TextStream, Tokenizer
from sttts_jax.data.video import Video
from sttts_jax.infer.checkpoint import Setting
from sttts_jax.infer.engine import Draw, Engine, Prefix, Programs, Room, Talk
from sttts_jax.infer.kept import ScoreView
from sttts_jax.pruning.budget import n_kept

# Frames of the rows, up to the most that may be sampled: from 4 on, each step adds at most half.
FRAMES = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
LENGTH = 256  # row lengths are multiples of this, and windows of images
QUESTION = 64  # lengths of questions are multiples of this

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Saying:
    """How to answer. `temperature` 0 takes the likeliest token; above, tokens are drawn from the fewest that together
    have a share `top_p`, and `seed` decides. `style` of Molmo2's data; "user_qa" leaves the question as it is.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    style: str = "user_qa"

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; ask for at least one token")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; use 0 for greedy or a positive number")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; use a share in (0, 1]")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was said, and how long it took.

    tokens         ids, without the stop token
    stopped        whether the model ended the answer; False: it was cut at max_new_tokens
    first_token_s  seconds from the prompt in host memory to the first token there: of the first question on a scene
                   with reading it, of later ones without
    tokens_per_s   of the tokens after the first, the stop token counted; None where there are none
    compile_s      seconds of compiling before all that
    """

    question: str
    text: str
    tokens: tuple[int, ...]
    stopped: bool
    first_token_s: float
    tokens_per_s: float | None
    compile_s: float


class Scene:
    """What is asked about: in host memory, and after the first question on devices as well.

    name, times    of the video, seconds of the file; no times without a video
    prefix, shape  tokens of all that stands before a question, and the sizes of the row that holds them
    keep, scores   of the video, after the first question: bool and float32 [F, gh, gw]; scores None without a scorer
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        setting: Setting,
        prefix: Example,
        pictures: np.ndarray,
        times: np.ndarray,
        show: Callable[[], Video] | None,
    ):
        data, crops = engine.subject.data, sum(prefix.crops)
        self.name, self.setting, self.prefix, self.times = name, setting, prefix, times
        self.keep: np.ndarray | None = None
        self.scores: np.ndarray | None = None
        self.shape = RowShape(
            frames=max(crops + _frames(prefix.frames, setting.max_frames), 1),
            items=1,
            length=_round_up(prefix.alive(setting.fraction, data.cells), LENGTH),
            fraction=setting.fraction,
            cells=data.cells,
            size=data.size,
            crops=crops,
            windows=_round_up(len(prefix.pooling), LENGTH),
            grid=engine.subject.vlm.vit.grid,
        )
        row = fill_row([Item(prefix, pictures)], self.shape)
        self._batch = {key: value[None] for key, value in row.items()}
        self._engine, self._show = engine, show
        self._held: tuple[Room, int, Prefix] | None = None  # what the devices hold, and the seed of its reading

    @property
    def frames(self) -> int:
        """Of the video."""
        return self.prefix.frames

    @property
    def cells(self) -> tuple[int, int]:
        """Vision tokens of the video: those that are kept, and all."""
        return n_kept(self.frames, self.shape.fraction, self.shape.cells), self.frames * self.shape.cells

    @property
    def kept_share(self) -> float:
        """Of the video's vision tokens; 1 without a video."""
        kept, everything = self.cells
        return kept / everything if everything else 1.0

    @property
    def image_tokens(self) -> int:
        """Vision tokens of the images, which are never pruned."""
        return len(self.prefix.pooling)

    @property
    def prompt_tokens(self) -> int:
        """Tokens before the question, after pruning."""
        return self.prefix.alive(self.shape.fraction, self.shape.cells)

    def ask(self, question: str, saying: Saying | None = None, say: Say | None = None) -> Answer:
        """The answer; `say` gets its text piece by piece, from the first letter on. Compiles first where sizes are new.

        Raises ValueError, one sentence, for an empty question and for reserved tokens in it.
        """
        saying, tokenizer = saying or Saying(), self._engine.subject.tokenizer
        ids = question_tokens(tokenizer, question, saying.style)
        room = self._room(len(ids), saying)
        programs, compile_s = self._engine.programs(room, self._batch)
        talk, prefix = self._begin(programs, room, ids, saying)
        tokens = _said(talk, TextStream(tokenizer), say)
        self._held = (room, saying.seed, prefix._replace(cache=talk.state.cache))
        self._note(prefix)
        stopped = tokens[-1] == tokenizer.eos
        said = tokens[:-1] if stopped else tokens
        rate = (len(tokens) - 1) / talk.later_s if len(tokens) > 1 else None
        text = tokenizer.decode(said).strip()
        return Answer(question, text, tuple(said), stopped, talk.first_token_s, rate, compile_s)

    def _room(self, length: int, saying: Saying) -> Room:
        """Sizes for a question; those at hand where they do, so that nothing is read or compiled again."""
        room = Room(self.shape, _round_up(length, QUESTION), saying.max_new_tokens, saying.temperature > 0)
        held = self._held[0] if self._held else None
        if held is None or held.new != room.new or held.longest < room.longest:
            return room
        return held._replace(sample=room.sample)

    def _begin(self, programs: Programs, room: Room, ids: np.ndarray, saying: Saying) -> tuple[Talk, Prefix]:
        """An answer with its first token, and the prefix that it goes on from."""
        engine, asked = self._engine, np.zeros((1, 1, room.longest), np.int32)
        asked[0, 0, : len(ids)] = ids
        # As evals.generate splits it: a key for methods that choose cells at random, one for the tokens.
        select, key = jax.random.split(engine.subject.key(saying.seed))
        draw = Draw(*engine.place((key, np.float32(saying.temperature), np.float32(saying.top_p))))
        started = time.perf_counter()
        prefix = self._prefix(programs, room, saying.seed, select)
        placed = engine.place((asked, np.full((1, 1), len(ids), np.int32)))
        self._held = None  # the cache is given away: should something fail from here on, the scene is read again
        state = programs.begin(engine.params, *placed, prefix.position, prefix.cache, draw)
        return Talk(programs, engine.params, state, draw, saying.max_new_tokens, started), prefix

    def _prefix(self, programs: Programs, room: Room, seed: int, key: jax.Array) -> Prefix:
        """On the devices, as it is there or read now."""
        if self._held is not None:
            held, before, prefix = self._held
            if held.slots == room.slots and (before == seed or self._engine.subject.pruning.method != "random"):
                return prefix
        self._held = None  # frees its cache
        batch, key = self._engine.place((self._batch, key))
        return programs.read(self._engine.params, batch, key)

    def _note(self, prefix: Prefix) -> None:
        if not self.frames:
            return
        mine = slice(sum(self.prefix.crops), self.prefix.pictures)
        grid = (self.frames, *self._engine.subject.vlm.vit.cell_grid)
        self.keep = np.asarray(prefix.kept[0, mine]).reshape(grid)
        self.scores = None if prefix.scores is None else np.asarray(prefix.scores[0, mine]).reshape(grid)

    def view(self, answers: Sequence[Answer]) -> ScoreView:
        """For `report.score_page`: what was kept of the video, with what was asked. Decodes it once more, to be seen.

        Raises ValueError without a video, or before a question.
        """
        if self._show is None or self.keep is None:
            raise ValueError(f"{self.name}: a page shows what was kept of a video that was asked about; give a video")
        subject, (height, width) = self._engine.subject, self.shape.size
        rate = "" if self.setting.max_fps is None else f" and {self.setting.max_fps:g} a second"
        return ScoreView(
            video=self.name,
            frames=self._show().frames,
            times=self.times,
            keep=self.keep,
            fraction=float(subject.pruned(self.setting.fraction).drops),
            method=subject.pruning.method,
            checkpoint=f"{subject.directory}, step {subject.step}",
            scores=self.scores,
            question=" / ".join(answer.question for answer in answers) or None,
            answer=" / ".join(answer.text for answer in answers) or None,
            facts={
                "Frames": f"{self.frames}, at most {self.setting.max_frames}{rate}",
                "Model sees": f"{width} x {height} pixels a frame",
            },
        )


def _said(talk: Talk, stream: TextStream, say: Say | None) -> list[int]:
    """All ids of an answer; what they say goes to `say` as they come, less the blanks before it."""
    tokens, begun = list[int](), False
    for new in itertools.chain(talk, [None]):
        tokens += new or []
        piece = stream.put(new or [], last=new is None)
        piece = piece if begun else piece.lstrip()
        begun = begun or bool(piece)
        if say is not None and piece:
            say(piece)
    return tokens


def question_tokens(tokenizer: Tokenizer, question: str, style: str = "user_qa") -> np.ndarray:
    """int32 [n], the user's turn. Raises ValueError for an empty question and for reserved tokens in it."""
    if not question.strip():
        raise ValueError("the question is empty; ask something")
    return build_question(tokenizer, Message(question, "", style))


def _frames(count: int, most: int) -> int:
    """Frames of the row for a video of `count`: the next step, no more than can be sampled."""
    step = next((frames for frames in FRAMES if frames >= count), _round_up(count, FRAMES[-1] // 4))
    return min(step, max(most, count)) if count else 0


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
