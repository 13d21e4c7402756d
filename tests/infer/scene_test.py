"""Answers about a file: the same as everywhere else, said piece by piece, and the command around them."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sttts_jax.cli import answer as command
from sttts_jax.cli.main import run as run_command
from sttts_jax.data.sources.encode import encode_mp4
from sttts_jax.evals.harness import Harness
from sttts_jax.evals.questions import Questions, task_source
from sttts_jax.evals.tasks import find_task
from sttts_jax.infer.batch import answer_file
from sttts_jax.infer.checkpoint import Checkpoint
from sttts_jax.infer.generate import Generated, GenerationConfig, QuestionTokens, generate
from sttts_jax.infer.model import Model
from sttts_jax.infer.scene import Answer, Scene, question_tokens
from sttts_jax.mesh import make_mesh
from sttts_jax.models.presets import preset
from sttts_jax.pruning.budget import n_kept
from sttts_jax.report.look import view_scene

CELLS = preset("tiny").vit.cells
QUESTION = "What color is the ball?"
QUESTIONS = [QUESTION, "Where does it go after the panel turned, and which one of the others appeared before?", "Why?"]
SHORT = GenerationConfig(max_new_tokens=32)


def _noise(path: Path, pictures: int, seed: int = 0) -> Path:
    frames = np.random.default_rng(seed).integers(0, 255, (pictures, 48, 96, 3), np.uint8)
    path.write_bytes(encode_mp4(frames, 4))
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of noise, wider than high."""
    return _noise(tmp_path_factory.mktemp("video") / "noise.mp4", 12)


def _alone(checkpoint: Checkpoint, **changes: Any) -> Checkpoint:
    """On one device, for which programs compile faster; the command's tests run on all of them."""
    return dataclasses.replace(checkpoint, place=lambda: make_mesh({"fsdp": 1}, jax.devices()[:1]), **changes)


@pytest.fixture(scope="module")
def checkpoint(checkpoints: dict[str, Checkpoint]) -> Checkpoint:
    return _alone(checkpoints["scorer"])


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> Model:
    return Model(checkpoint)


@pytest.fixture(scope="module")
def said(model: Model, video: Path) -> tuple[Scene, list[Answer]]:
    """A scene with three questions, asked one after another."""
    scene = model.watch(video)
    return scene, [scene.ask(question, SHORT) for question in QUESTIONS]


def _by_generate(checkpoint: Checkpoint, scene: Scene, question: str, generation: GenerationConfig) -> Generated:
    """The answer that `infer.generate` gives on the same row."""
    ids = question_tokens(checkpoint.tokenizer, question)
    asked = QuestionTokens(jnp.asarray(ids)[None, None], jnp.full((1, 1), len(ids), jnp.int32))
    with jax.set_mesh(checkpoint.mesh):
        return generate(
            checkpoint.model(scene.shape),
            {"params": checkpoint.params},
            scene._batch,
            max_new_tokens=generation.max_new_tokens,
            stop_ids=(checkpoint.tokenizer.eos,),
            temperature=generation.temperature,
            top_p=generation.top_p,
            rng=checkpoint.key(generation.seed),
            questions=asked,
        )


def _tokens(said: Generated) -> list[int]:
    return np.asarray(said.tokens)[0, 0, : int(said.lengths[0, 0])].tolist()


def test_questions_on_a_scene_are_answered_as_generate_does(
    checkpoint: Checkpoint, said: tuple[Scene, list[Answer]]
) -> None:
    scene, answers = said
    for question, answer in zip(QUESTIONS, answers, strict=True):
        expected = _by_generate(checkpoint, scene, question, SHORT)
        assert list(answer.tokens) == _tokens(expected)
        assert answer.stopped == (len(answer.tokens) < SHORT.max_new_tokens)
        assert answer.text == checkpoint.tokenizer.decode(answer.tokens).strip()
        mask = np.asarray(expected.kept)[0, : scene.frames]
        assert scene.keep is not None and np.array_equal(scene.keep.reshape(mask.shape), mask)
        assert scene.scores is not None
    assert len({answer.tokens for answer in answers}) > 1, "constant answers prove little"
    assert [answer.compile_s > 0 for answer in answers] == [True, False, False]
    assert scene.cells == (n_kept(4, "0.5", CELLS), 4 * CELLS)


@pytest.mark.parametrize("generation", [GenerationConfig(32, 1.5, 0.9, seed=3), GenerationConfig(32, 5.0, 1.0, seed=4)])
def test_sampled_answers_are_those_of_generate(
    checkpoint: Checkpoint, said: tuple[Scene, list[Answer]], generation: GenerationConfig
) -> None:
    scene, answers = said
    answer = scene.ask(QUESTION, generation)
    assert list(answer.tokens) == _tokens(_by_generate(checkpoint, scene, QUESTION, generation))
    assert answer.tokens != answers[0].tokens
    assert scene.ask(QUESTION, generation).tokens == answer.tokens
    assert scene.ask(QUESTION, dataclasses.replace(generation, seed=5)).tokens != answer.tokens
    assert scene.ask(QUESTION, SHORT).tokens == answers[0].tokens


def test_a_harness_says_the_same(
    checkpoint: Checkpoint, said: tuple[Scene, list[Answer]], video: Path, tmp_path: Path
) -> None:
    messages = [{"question": question, "answer": "red", "style": "user_qa"} for question in QUESTIONS]
    (tmp_path / "own.jsonl").write_text(json.dumps({"video": str(video), "messages": messages}))
    task = find_task(f"jsonl:{tmp_path / 'own.jsonl'}")
    assert task.max_new_tokens == SHORT.max_new_tokens
    questions = Questions(task, task_source(task, checkpoint.data), checkpoint.tokenizer, checkpoint.data)
    _, answers = Harness(checkpoint, 1).run(questions, checkpoint.trained)
    assert [answer.text for answer in said[1]] == [answer["prediction"] for answer in answers]


def test_pieces_make_the_text(said: tuple[Scene, list[Answer]]) -> None:
    scene, answers = said
    pieces: list[str] = []
    longest = max(answers, key=lambda answer: len(answer.text))  # what barely trained weights say is of any length
    answer = scene.ask(longest.question, SHORT, pieces.append)
    assert answer.tokens == longest.tokens
    assert "".join(pieces).rstrip() == answer.text and all(pieces)
    assert len(pieces) > 3 and max(map(len, pieces)) < len(answer.text)


@pytest.mark.parametrize("most", [1, 2, 9, 31])
def test_an_answer_is_cut_where_it_should(checkpoint: Checkpoint, said: tuple[Scene, list[Answer]], most: int) -> None:
    scene, answers = said
    capacity, *_ = scene._engine._programs
    longest = np.argmax([len(answer.tokens) for answer in answers])
    ids, whole = question_tokens(checkpoint.tokenizer, QUESTIONS[longest]), answers[longest]
    stream, prefix = scene._begin(scene._engine._programs[capacity], capacity, ids, GenerationConfig(most))
    assert [i for new in stream for i in new][: len(whole.tokens)] == list(whole.tokens[:most])
    assert stream.made <= most
    scene._held = (capacity, 0, prefix._replace(cache=stream.state.cache))


def test_a_scene_is_read_once(
    model: Model, said: tuple[Scene, list[Answer]], video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, reads = model.watch(video), []
    for programs in model._engine._programs.values():
        read = programs.read
        monkeypatch.setattr(programs, "read", lambda *inputs, read=read: reads.append(1) or read(*inputs))
    answers = [scene.ask(question, SHORT) for question in QUESTIONS[::2]]
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in said[1][::2]]
    assert len(reads) == 1 and not any(answer.compile_s for answer in answers)
    longer = scene.ask("Why does it turn and appear? " * 20, SHORT)  # more than the cache at hand has room for
    assert longer.compile_s > 0 and scene._held is not None and scene._held[0].question > 64
    assert [scene.ask(question, SHORT).tokens for question in QUESTIONS[::2]] == [a.tokens for a in answers]
    assert len(reads) == 1  # the larger cache serves them too


def test_cells_chosen_at_random_depend_on_the_seed_alone(checkpoints: dict[str, Checkpoint], video: Path) -> None:
    scene = Model(_alone(checkpoints["random"])).watch(video)
    masks = []
    for seed in (0, 1, 0):
        scene.ask(QUESTION, dataclasses.replace(SHORT, seed=seed))
        assert scene.keep is not None and scene.scores is None and scene.keep.sum() == scene.cells[0]
        masks.append(scene.keep)
    assert np.array_equal(masks[0], masks[2]) and not np.array_equal(masks[0], masks[1])


def test_weights_in_the_type_of_the_compute_change_nothing(checkpoints: dict[str, Checkpoint], video: Path) -> None:
    half = _alone(checkpoints["scorer"], dtype=jnp.bfloat16)
    model = Model(half)
    scene = model.watch(video)
    answer = scene.ask(QUESTION, SHORT)
    assert {x.dtype for x in jax.tree.leaves(model._engine.params["llm"])} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(half.params["llm"])} == {jnp.dtype(jnp.float32)}
    assert list(answer.tokens) == _tokens(_by_generate(half, scene, QUESTION, SHORT))


def test_rows_of_more_frames_than_the_video_has(model: Model, said: tuple[Scene, list[Answer]], video: Path) -> None:
    """The next step of the ladder, but no more than may be sampled; and a lower or higher fraction."""
    scene = model.watch(video, max_frames=100, max_fps=1.0, start=0.5)
    assert (scene.frames, scene.shape.frames) == (4, 4)
    assert scene.times == pytest.approx([0.5, 1.5, 2.5, 3.0])
    wide = model.watch(video, max_frames=100, max_fps=1.5)
    assert (wide.frames, wide.shape.frames) == (6, 6) and model.watch(video, max_frames=5).shape.frames == 5
    more = model.watch(video, max_frames=100, max_fps=2.0)
    assert (more.frames, more.shape.frames) == (7, 8)
    answer, expected = more.ask(QUESTION, SHORT), _by_generate(model.checkpoint, more, QUESTION, SHORT)
    assert list(answer.tokens) == _tokens(expected) and more.keep is not None and len(more.keep) == 7
    few = model.watch(video, pruned_fraction="0.70")
    assert few.cells == (n_kept(4, "0.7", CELLS), 4 * CELLS) and few.kept_share == few.cells[0] / few.cells[1]


def test_images_come_before_the_video(model: Model, video: Path, tmp_path: Path) -> None:
    rng, files = np.random.default_rng(1), []
    for number, size in enumerate(((40, 60, 3), (90, 30, 3))):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(files[-1])
    both = model.watch(video, images=files, max_crops=0)
    alone = model.watch(images=files, max_crops=0)
    assert (both.frames, both.shape.frames, both.shape.crops) == (4, 6, 2)
    assert (alone.frames, alone.shape.frames, alone.kept_share) == (0, 2, 1.0)
    assert both.image_tokens == alone.image_tokens == 2 * 9  # of 6 x 6 patches, 2 x 2 of them a window
    for scene in (both, alone):
        text = model.checkpoint.tokenizer.decode(scene.prefix.tokens, skip_special=False)
        image = f"<low_res_im_start>{'<im_patch>' * 9}<im_end>"
        assert text.startswith(f"<|im_end|>Image 1{image}Image 2{image}")
    answer, expected = both.ask(QUESTION, SHORT), _by_generate(model.checkpoint, both, QUESTION, SHORT)
    assert list(answer.tokens) == _tokens(expected)
    assert both.keep is not None and both.keep.sum() == both.cells[0] == n_kept(4, "0.5", CELLS)
    assert alone.ask(QUESTION, SHORT).tokens and alone.keep is None
    with pytest.raises(ValueError, match="images: a page shows what was kept of a video"):
        view_scene(alone, [])


def test_one_image_is_no_list_of_them(model: Model) -> None:
    for image in ("a.png", Path("a.png"), b"png"):
        with pytest.raises(ValueError, match=r"images=.* must be a list of files; give one as \[file\]"):
            model.watch(images=image)
    with pytest.raises(ValueError, match="`subtitles` must be a list of .start, end, text"):
        model.watch("a.mp4", subtitles=5)
    with pytest.raises(ValueError, match="`subtitles` must be a finite number, got nan"):
        model.watch("a.mp4", subtitles=[(0.0, float("nan"), "a")])


def test_a_file_of_questions_is_answered_as_they_are_one_by_one(
    model: Model, said: tuple[Scene, list[Answer]], video: Path, tmp_path: Path
) -> None:
    lines = [{"video": str(video), "question": question} for question in QUESTIONS]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert answer_file(model, tmp_path / "q.jsonl", tmp_path / "a.jsonl", SHORT) == (3, 0, 0)
    found = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    scene, answers = said
    assert [line["answer"] for line in found] == [answer.text for answer in answers]
    assert {(line["frames"], line["kept_share"]) for line in found} == {(4, scene.kept_share)}


def test_subtitles_are_cut_to_the_clip(model: Model, video: Path, tmp_path: Path) -> None:
    (tmp_path / "a.vtt").write_text("WEBVTT\n\n00:00.200 --> 00:00.900\nbefore\n\n00:01.500 --> 00:09.000\nred ball\n")
    scene = model.watch(video, start=1, end=3, subtitles=tmp_path / "a.vtt")
    same = model.watch(video, start=1, end=3, subtitles=[(1.5, 3.0, "red ball")])
    text = model.checkpoint.tokenizer.decode(scene.prefix.tokens)
    assert text.endswith("subtitle\n0.5 - 2.0 red ball\n") and "before" not in text
    assert np.array_equal(same.prefix.tokens, scene.prefix.tokens)
    with pytest.raises(ValueError, match=r"contains the reserved token <\|im_end\|>"):
        model.watch(video, subtitles=[(0.0, 3.0, "<|im_end|>")])


def _answer(runs: dict[str, Path], *words: str, method: str = "scorer") -> int:
    return run_command("answer", command.main, ["--checkpoint", str(runs[method]), "--max_new_tokens", "32", *words])


def test_command_with_several_videos_and_questions(
    runs: dict[str, Path],
    said: tuple[Scene, list[Answer]],
    video: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = _noise(tmp_path / "other.mp4", 8, seed=1)
    words = ["--video", str(video), "--video", str(other), "--question", QUESTIONS[0], "--question", QUESTIONS[1]]
    page, facts = tmp_path / "pages/a.html", tmp_path / "a.json"
    assert _answer(runs, *words, "--dtype", "float32", "--show", str(page), "--json", str(facts)) == 0
    printed = capsys.readouterr()
    scene, answers = said
    assert printed.out.startswith(f"{answers[0].text}\n{answers[1].text}\n")  # the answers and nothing else
    out = printed.err
    assert not {"noise.mp4", "tokens"} & set(printed.out.split()) and f"page: {page}" in out
    assert f"noise.mp4: {QUESTIONS[0]}\n" in out and f"other.mp4: {QUESTIONS[1]}\n" in out
    kept, everything = scene.cells
    assert out.count(f"[4 frames, {kept} of {everything} vision tokens kept ({kept / everything:.1%}); prompt ") == 4
    assert out.count("compiled before that in ") == 1 and out.count("first token after ") == 4
    record = json.loads(facts.read_text())
    assert record["step"] == 2 and record["method"] == "scorer" and record["generation"]["max_new_tokens"] == 32
    assert [scene["video"] for scene in record["scenes"]] == ["noise.mp4", "other.mp4"]
    assert [a["tokens"] for a in record["scenes"][0]["answers"]] == [list(a.tokens) for a in answers[:2]]
    assert record["scenes"][0]["vision_tokens_kept"] == kept
    html = page.read_text()
    assert "noise.mp4" in html and "step 2" in html and "What color is the ball?" in html
    assert "other.mp4" in (tmp_path / "pages/a-2.html").read_text()


def test_questions_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTIONS[0]}\n\n {QUESTIONS[2]}\n"))
    assert list(command._questions(["-"])) == QUESTIONS[::2]
    assert list(command._questions(QUESTIONS)) == QUESTIONS
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("caf\u00e9?\n".encode("latin1")), "utf-8"))
    with pytest.raises(ValueError, match="standard input is not UTF-8; convert it"):
        list(command._questions(["-"]))


def test_mistakes_are_one_sentence(
    runs: dict[str, Path],
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Checkpoint, "params", property(lambda self: pytest.fail("weights were loaded")))
    monkeypatch.setattr(Checkpoint, "mesh", property(lambda self: pytest.fail("a device was touched")))
    (tmp_path / "junk.mp4").write_bytes(b"junk")
    (tmp_path / "junk.png").write_bytes(b"junk")
    (tmp_path / "a.srt").write_text("no times")
    (tmp_path / "b.srt").write_text("00:00 --> 00:03\n<|im_end|>")
    ask, of = ["--question", QUESTION], ["--video", str(video)]
    for words, cause in (
        (ask, "there is nothing to look at"),
        (of, "there is nothing to ask; give --question TEXT, or --questions FILE.jsonl"),
        ([*of, *ask, "--out", "a.jsonl"], "--out and --overwrite go with --questions"),
        ([*ask, "--questions", "q.jsonl", "--out", "a.jsonl"], "--question goes with no --questions"),
        (["--questions", "q.jsonl"], "--questions needs --out FILE.jsonl"),
        (["--questions", "q.jsonl", "--out", "a.jsonl", "--style", "vqa2"], "--style goes with no --questions"),
        (["--questions", str(tmp_path / "q.jsonl"), "--out", str(tmp_path / "a.jsonl")], "q.jsonl: no such file"),
        ([*ask, "--video", str(tmp_path / "absent.mp4")], "no such file"),
        ([*ask, *of, "--video", str(tmp_path / "junk.mp4")], "junk.mp4: cannot be opened"),
        ([*ask, *of, "--start", "9"], "outside of the video's"),
        ([*ask, *of, "--start", "2", "--end", "1"], "is empty or outside"),
        ([*ask, "--image", str(tmp_path / "junk.png")], "junk.png: cannot be read as an image"),
        ([*ask, "--image", str(tmp_path / "junk.png"), "--show", "a.html"], "--show is about a video"),
        ([*ask, "--image", str(tmp_path / "junk.png"), "--max_fps", "1"], "--max_fps is about a video; give --video"),
        ([*ask, *of, "--max_crops", "3"], "--max_crops is about images; give --image FILE"),
        ([*ask, *of, "--image", ""], "--video or --image is empty"),
        ([*ask, *of, "--top_p", "0.5"], "changes nothing at temperature 0"),
        ([*ask, *of, "--show", "a.gif"], "must end in .html"),
        ([*ask, *of, "--json", str(tmp_path / "junk.mp4/a.json")], "junk.mp4 is a file; choose another place"),
        ([*of, "--question", " "], "--question is empty"),
        ([*of, *ask, "--question", "-"], "goes with no other --question"),
        ([*of, "--question", "What is <|im_start|>?"], "contains the reserved token <|im_start|>"),
        ([*ask, *of, "--subtitles", str(tmp_path / "a.srt")], "holds no subtitles with times"),
        ([*ask, *of, "--subtitles", str(tmp_path / "b.srt")], "contains the reserved token"),
        ([*ask, *of, *of, "--subtitles", str(tmp_path / "a.srt")], "belong to one video"),
        ([*ask, *of, "--pruned_fraction", "1"], "out of range"),
        ([*ask, *of, "--max_frames", "0"], "--max_frames 0 must be at least 1"),
        ([*ask, *of, "--max_fps", "0"], "max_fps=0.0 must be positive"),
        ([*ask, *of, "--style", "video_short_answr"], "did you mean 'video_short_answer'"),
        ([*ask, *of, "--subtitles", ""], "--subtitles is empty; give a value, or leave it out"),
        ([*of, "--question", "caf\udce9?"], "`question` holds what is no character"),
        ([*ask, *of, "--max_new_tokens", "0"], "--max_new_tokens 0 must be at least 1"),
        ([*ask, *of, "--temperature", "-1"], "use 0 for greedy"),
        ([*ask, *of, "--top_p", "0"], "use a share in (0, 1]"),
        ([*ask, *of, "--dtype", "half"], "dtype 'half' is unknown; choose one of float32, bfloat16"),
        ([*ask, *of, "--checkpoint", str(tmp_path)], "holds no whole checkpoint"),
    ):
        assert _answer(runs, *words) == 2, words
        said = capsys.readouterr().err
        assert cause in said
        assert len(said.strip().splitlines()) == 1
    assert _answer(runs, *ask, *of, "--pruned_fraction", "0.5", method="none") == 2
    assert "'none' removes nothing, so a fraction of 0.5 cannot be had" in capsys.readouterr().err
