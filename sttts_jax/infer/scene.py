"""A scene: a video, images or both as a checkpoint reads them, asked as often as wanted."""

import dataclasses
import itertools
import time
from collections.abc import Callable

import jax
import numpy as np

from sttts_jax.data.packing import Item, fill_row
from sttts_jax.data.prompt import build_question
from sttts_jax.data.record import Message
from sttts_jax.data.schema import Example, RowShape, round_up
from sttts_jax.data.tokenizer import TextStream, Tokenizer
from sttts_jax.data.video import Video
from sttts_jax.infer.checkpoint import Setting
from sttts_jax.infer.decode import SamplerState
from sttts_jax.infer.engine import CacheCapacity, Engine, Programs, ReadPrefix, TokenStream
from sttts_jax.infer.generate import GenerationConfig
from sttts_jax.pruning.budget import n_kept

# Frames of the rows, up to the most that may be sampled: from 4 on, each step adds at most half.
FRAMES = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
LENGTH = 256  # row lengths are multiples of this, and windows of images
QUESTION = 64  # lengths of questions are multiples of this

Say = Callable[[str], None]


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

    checkpoint     that is asked
    name, times    of the video, seconds of the file; no times without a video
    setting        at which it is seen
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
        self.checkpoint = engine.checkpoint
        data, crops = engine.checkpoint.data, sum(prefix.crops)
        self.name, self.setting, self.prefix, self.times = name, setting, prefix, times
        self.keep: np.ndarray | None = None
        self.scores: np.ndarray | None = None
        self.shape = RowShape(
            frames=max(crops + _frames(prefix.frames, setting.max_frames), 1),
            items=1,
            length=round_up(prefix.alive(setting.fraction, data.cells), LENGTH),
            fraction=setting.fraction,
            cells=data.cells,
            size=data.size,
            crops=crops,
            windows=round_up(len(prefix.pooling), LENGTH),
            grid=engine.checkpoint.vlm.vit.grid,
        )
        row = fill_row([Item(prefix, pictures)], self.shape)
        self._batch = {key: value[None] for key, value in row.items()}
        self._engine, self._show = engine, show
        # What the devices hold: its capacity, the seed of its reading, and what was read.
        self._held: tuple[CacheCapacity, int, ReadPrefix] | None = None

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

    def ask(self, question: str, generation: GenerationConfig | None = None, say: Say | None = None) -> Answer:
        """The answer; `say` gets its text piece by piece, from the first letter on. Compiles first where sizes are new.

        Raises ValueError, one sentence, for an empty question and for reserved tokens in it.
        """
        generation, tokenizer = generation or GenerationConfig(), self.checkpoint.tokenizer
        ids = question_tokens(tokenizer, question, generation.style)
        capacity = self._capacity(len(ids), generation)
        programs, compile_s = self._engine.programs(capacity, self._batch)
        stream, prefix = self._begin(programs, capacity, ids, generation)
        tokens = _said(stream, TextStream(tokenizer), say)
        self._held = (capacity, generation.seed, prefix._replace(cache=stream.state.cache))
        self._note(prefix)
        stopped = tokens[-1] == tokenizer.eos
        said = tokens[:-1] if stopped else tokens
        rate = (len(tokens) - 1) / stream.later_s if len(tokens) > 1 else None
        text = tokenizer.decode(said).strip()
        return Answer(question, text, tuple(said), stopped, stream.first_token_s, rate, compile_s)

    def _capacity(self, length: int, generation: GenerationConfig) -> CacheCapacity:
        """For a question of that length; the one at hand where it does, so that nothing is read or compiled again."""
        sample = generation.temperature > 0
        wanted = CacheCapacity(self.shape, round_up(length, QUESTION), generation.max_new_tokens, sample)
        held = self._held[0] if self._held else None
        if held is None or held.new != wanted.new or held.question < wanted.question:
            return wanted
        return held._replace(sample=sample)

    def _begin(
        self, programs: Programs, capacity: CacheCapacity, ids: np.ndarray, generation: GenerationConfig
    ) -> tuple[TokenStream, ReadPrefix]:
        """An answer with its first token, and the prefix that it goes on from."""
        engine, asked = self._engine, np.zeros((1, 1, capacity.question), np.int32)  # [1, 1, T]
        asked[0, 0, : len(ids)] = ids
        # As infer.generate splits it: a key for methods that choose cells at random, one for the tokens.
        select, key = jax.random.split(engine.checkpoint.key(generation.seed))
        numbers = np.float32(generation.temperature), np.float32(generation.top_p)
        sampler = SamplerState(*engine.place((key, *numbers)))
        started = time.perf_counter()
        prefix = self._prefix(programs, capacity, generation.seed, select)
        placed = engine.place((asked, np.full((1, 1), len(ids), np.int32)))
        self._held = None  # the cache is given away: should something fail from here on, the scene is read again
        state = programs.begin(engine.params, *placed, prefix.position, prefix.cache, sampler)
        return TokenStream(programs, engine.params, state, sampler, generation.max_new_tokens, started), prefix

    def _prefix(self, programs: Programs, capacity: CacheCapacity, seed: int, key: jax.Array) -> ReadPrefix:
        """On the devices, as it is there or read now."""
        if self._held is not None:
            held, before, prefix = self._held
            if held.slots == capacity.slots and (before == seed or self.checkpoint.pruning.method != "random"):
                return prefix
        self._held = None  # frees its cache
        batch, key = self._engine.place((self._batch, key))
        return programs.read(self._engine.params, batch, key)

    def _note(self, prefix: ReadPrefix) -> None:
        if not self.frames:
            return
        mine = slice(sum(self.prefix.crops), self.prefix.pictures)  # the video's frames come after the crops
        grid = (self.frames, *self.checkpoint.vlm.vit.cell_grid.shape)
        self.keep = np.asarray(prefix.kept[0, mine]).reshape(grid)  # [F, C] -> [F, gh, gw]
        self.scores = None if prefix.scores is None else np.asarray(prefix.scores[0, mine]).reshape(grid)

    def shown(self) -> Video:
        """The video decoded once more, the same frames in its own aspect ratio, for a person to see.

        Raises ValueError without a video.
        """
        if self._show is None:
            raise ValueError(f"{self.name}: a page shows what was kept of a video that was asked about; give a video")
        return self._show()


def _said(stream: TokenStream, text: TextStream, say: Say | None) -> list[int]:
    """All ids of an answer; what they say goes to `say` as they come, less the blanks before it."""
    tokens, begun = list[int](), False
    for new in itertools.chain(stream, [None]):
        tokens += new or []
        piece = text.put(new or [], last=new is None)
        piece = piece if begun else piece.lstrip()
        begun = begun or bool(piece)
        if say is not None and piece:
            say(piece)
    return tokens


def question_tokens(tokenizer: Tokenizer, question: str, style: str = "user_qa") -> np.ndarray:
    """int32 [n], the user's turn. Raises ValueError for an empty question and for reserved tokens in it."""
    if isinstance(question, str) and not question.strip():
        raise ValueError("the question is empty; ask something")
    return build_question(tokenizer, Message(question, "", style))


def _frames(count: int, most: int) -> int:
    """Frames of the row for a video of `count`: the next step, no more than can be sampled."""
    step = next((frames for frames in FRAMES if frames >= count), round_up(count, FRAMES[-1] // 4))
    return min(step, max(most, count)) if count else 0
