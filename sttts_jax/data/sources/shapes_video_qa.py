"""Short made-up clips with questions that only the moving picture answers.

    clip = make_clip(7)
    clip.frames        # uint8 [28, 72, 72, 3], 3.5 s at 8 frames a second
    clip.qa[0]         # QA(family='direction', question='Where does the white ball go?', answer='left', ...)

A clip holds, over a drifting texture and one or two dull still shapes: a white ball that moves, one to four bright
objects of one shape that appear in corners for about a second each, and a panel that lights up in magenta and then
takes a colour. Everything that a question asks about happens after the first frame.

    +--------+-----+--------+
    | corner | arm | corner |   corners: bright objects, one each at most
    +--------+-----+--------+   arms: the panel and the dull shapes; the ball travels along one, on its other side
    |  arm   | hub |   arm  |   hub: the ball starts here, whatever its direction
    +--------+-----+--------+
    | corner | arm | corner |
    +--------+-----+--------+

Answers are drawn without replacement from all four over each block of four consecutive seeds, one draw a family, and
so is the letter of the right option: in a split of 4n clips every answer is equally frequent, and the text alone says
nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sttts_jax.data.sources.shapes_render import COLORS, MAGENTA, SHAPES, WHITE, background, paint

STYLES = ("video_short_answer", "video_multiple_choice")
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
CORNERS = {"top left": (-1, -1), "top right": (-1, 1), "bottom left": (1, -1), "bottom right": (1, 1)}
ARMS = {"left": "left", "right": "right", "top": "up", "bottom": "down"}
COUNTS = ("1", "2", "3", "4")
ANSWERS = {
    "direction": tuple(DIRECTIONS),
    "order": tuple(COLORS),
    "count": COUNTS,
    "what": SHAPES,
    "where": tuple(ARMS),
    "color_change": tuple(COLORS),
}
QUESTIONS = {
    "direction": ("Which way does the white ball move?", "Where does the white ball go?"),
    "order": ("Which color appeared {x}?", "What color was the {x} object?"),
    "count": ("How many objects appeared?", "How many bright objects were there?"),
    "what": ("What shape appeared in the corners?", "What shape were the bright objects?"),
    "where": ("Where did the panel light up?", "On which side was the panel?"),
    "color_change": ("What color did the panel turn?", "Which color did the panel become?"),
}


@dataclass(frozen=True)
class Difficulty:
    """What makes the clips easy or hard. Lengths in pixels, times in seconds."""

    size: int = 72
    fps: int = 8
    seconds: float = 3.5
    object_px: float = 19
    ball_px: float = 14
    panel_px: float = 14
    ball_travel: float = 20
    visible: float = 1.0  # the shortest time an object stays; 1.0 puts it into two frames of a 2 fps grid
    event_step: float = 0.5  # least time between two appearances
    corner_jitter: float = 1.5
    texture_contrast: float = 12
    texture_speed: float = 0.35  # pixels a frame
    distractors: tuple[int, int] = (1, 2)
    short_answer_share: float = 0.5

    @property
    def frames(self) -> int:
        return round(self.seconds * self.fps)


@dataclass(frozen=True)
class QA:
    family: str
    question: str
    options: tuple[str, ...]
    answer: str
    style: str


@dataclass(frozen=True)
class Clip:
    frames: np.ndarray
    fps: int
    qa: tuple[QA, ...]
    seed: int


@dataclass(frozen=True)
class Flash:
    """A bright object in a corner, visible in frames [begin, end)."""

    color: str
    shape: str
    corner: str
    begin: int
    end: int


@dataclass(frozen=True)
class Script:
    """Everything that happens in a clip, before it is drawn."""

    direction: str
    hub: tuple[int, int]  # which side of the middle lines the ball keeps to, (y, x), each -1 or 1
    flashes: tuple[Flash, ...]  # in order of appearance
    panel_begin: int  # the first frame in which the panel is lit
    panel_turns: int  # the first frame in its last colour
    panel_color: str
    arms: tuple[str, ...]  # the panel's arm, then one for every dull shape


def make_clip(seed: int, difficulty: Difficulty = Difficulty()) -> Clip:  # noqa: B008 (frozen)
    """The clip of a seed: frames uint8 [F, size, size, 3] and at least one question of each family."""
    script, qa = make_script(seed, difficulty)
    return Clip(draw(script, np.random.default_rng([seed, 2]), difficulty), difficulty.fps, qa, seed)


def make_script(seed: int, difficulty: Difficulty = Difficulty()) -> tuple[Script, tuple[QA, ...]]:  # noqa: B008 (frozen)
    """What happens in the clip of a seed and what is asked about it, nothing drawn."""
    script = write_script(np.random.default_rng([seed, 0]), seed, difficulty)
    return script, ask(script, np.random.default_rng([seed, 3]), seed, difficulty)


def write_script(rng: np.random.Generator, seed: int, difficulty: Difficulty) -> Script:
    """Draws what happens. The balanced answers come from `_balanced`, the rest from `rng`."""
    count = int(_balanced(seed, "count", COUNTS))
    colors = _lead_with(rng, COLORS, _balanced(seed, "order", tuple(COLORS)))[:count]
    colors = colors[:: int(rng.choice([-1, 1]))]  # the balanced colour is the first one or the last one
    corners = [str(c) for c in rng.permutation(list(CORNERS))][:count]
    shape = _balanced(seed, "what", SHAPES)
    begins = _begins(rng, count, difficulty)
    stay = round(difficulty.visible * difficulty.fps)
    flashes = tuple(
        Flash(color, shape, corner, begin, min(begin + stay + int(rng.integers(0, 3)), difficulty.frames))
        for color, corner, begin in zip(colors, corners, begins, strict=True)
    )
    dull = int(rng.integers(difficulty.distractors[0], difficulty.distractors[1] + 1))
    # The panel may light up over a dull shape: where those stand must not tell where it cannot be.
    arms = (ARMS[_balanced(seed, "where", tuple(ARMS))], *map(str, rng.permutation(list(DIRECTIONS))[:dull]))
    early, middle, late = (round(share * difficulty.frames) for share in (0.15, 0.4, 0.7))
    return Script(
        direction=_balanced(seed, "direction", tuple(DIRECTIONS)),
        hub=(int(rng.choice([-1, 1])), int(rng.choice([-1, 1]))),
        flashes=flashes,
        panel_begin=int(rng.integers(early, middle)),
        panel_turns=int(rng.integers(middle, late)),
        panel_color=_balanced(seed, "color_change", tuple(COLORS)),
        arms=arms,
    )


def draw(script: Script, rng: np.random.Generator, difficulty: Difficulty) -> np.ndarray:
    """uint8 [F, size, size, 3]."""
    size, middle = difficulty.size, difficulty.size / 2
    video = background(rng, difficulty.frames, size, difficulty.texture_speed, difficulty.texture_contrast)
    lane = 0.1 * size  # the ball's distance from the middle line; panel and dull shapes keep to the other side
    places = [_arm_place(arm, script.hub, lane, middle, difficulty) for arm in script.arms]
    dull = [(str(rng.choice(SHAPES)), tuple(rng.uniform(75, 165) + rng.uniform(-18, 18, 3))) for _ in places[1:]]
    spots = {}
    for f in script.flashes:
        y, x = (middle + s * 0.32 * size + rng.uniform(-1, 1) * difficulty.corner_jitter for s in CORNERS[f.corner])
        spots[f.corner] = (y, x)
    step = np.array(DIRECTIONS[script.direction]) * difficulty.ball_travel / (difficulty.frames - 1)
    start = middle + lane * np.array(script.hub) + rng.uniform(-1, 1, 2)
    for place, (shape, color) in zip(places[1:], dull, strict=True):
        paint(video, shape, place, difficulty.panel_px, color)
    paint(video[script.panel_begin : script.panel_turns], "square", places[0], difficulty.panel_px, MAGENTA)
    paint(video[script.panel_turns :], "square", places[0], difficulty.panel_px, COLORS[script.panel_color])
    for f in script.flashes:
        paint(video[f.begin : f.end], f.shape, spots[f.corner], difficulty.object_px, COLORS[f.color])
    for t, image in enumerate(video):
        y, x = start + t * step
        paint(image, "circle", (y, x), difficulty.ball_px, WHITE)
    return np.clip(np.rint(video), 0, 255).astype(np.uint8)


def ask(script: Script, rng: np.random.Generator, seed: int, difficulty: Difficulty) -> tuple[QA, ...]:
    """The questions of a clip: one a family, then the other end of `order` when there are two objects or more."""
    flashes = script.flashes
    ends = [("first", flashes[0].color), ("last", flashes[-1].color)]
    ends = [ends[i] for i in rng.permutation(2)]
    ends.sort(key=lambda end: end[1] != _balanced(seed, "order", tuple(COLORS)))
    facts = [
        ("direction", "", script.direction),
        ("order", *ends[0]),
        ("count", "", str(len(flashes))),
        ("what", "", flashes[0].shape),
        ("where", "", next(name for name, arm in ARMS.items() if arm == script.arms[0])),
        ("color_change", "", script.panel_color),
    ]
    if len(flashes) > 1:
        facts.append(("order", *ends[1]))
    return tuple(_question(rng, seed, i, fact, difficulty) for i, fact in enumerate(facts))


def _question(
    rng: np.random.Generator, seed: int, index: int, fact: tuple[str, str, str], difficulty: Difficulty
) -> QA:
    family, detail, answer = fact
    question = str(rng.choice(QUESTIONS[family])).format(x=detail)
    options = [str(o) for o in rng.permutation([a for a in ANSWERS[family] if a != answer])]
    options.insert(int(_balanced(seed, f"letter {index}", ("0", "1", "2", "3"))), answer)
    style = STYLES[int(rng.random() >= difficulty.short_answer_share)]
    return QA(family, question, tuple(options), answer, style)


def _balanced(seed: int, what: str, answers: tuple[str, ...]) -> str:
    """Each answer once in every aligned block of len(answers) seeds, in an order of the block's own; independent for
    every `what`.
    """
    block, place = divmod(seed, len(answers))
    rng = np.random.default_rng([block, 1, *what.encode()])
    return answers[rng.permutation(len(answers))[place]]


def _lead_with(rng: np.random.Generator, names: Iterable[str], first: str) -> list[str]:
    return [first, *(str(n) for n in rng.permutation([n for n in names if n != first]))]


def _begins(rng: np.random.Generator, count: int, difficulty: Difficulty) -> list[int]:
    """First frames of the objects, ascending: at least `event_step` apart, none in the first frame, each staying
    `visible`.
    """
    step = round(difficulty.event_step * difficulty.fps)
    last = difficulty.frames - round(difficulty.visible * difficulty.fps)
    slots = range(step, last + 1, step)
    if count > len(slots):
        raise ValueError(
            f"{count} objects do not fit {difficulty.seconds} s; lengthen the clip or lower event_step or visible"
        )
    chosen = np.sort(rng.choice(slots, count, replace=False))
    # Up to one step early: still the same sampled frame.
    return [int(slot) - int(rng.integers(0, step)) for slot in chosen]


def _arm_place(
    arm: str, hub: tuple[int, int], lane: float, middle: float, difficulty: Difficulty
) -> tuple[float, float]:
    """Centre (y, x) of something that stands in an arm, on the side that the ball does not use."""
    out = middle - 0.75 * difficulty.panel_px
    dy, dx = DIRECTIONS[arm]
    return middle + (dy * out or -hub[0] * lane), middle + (dx * out or -hub[1] * lane)
