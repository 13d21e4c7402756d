"""What lies where in the folder of a run, or of a converted checkpoint, which looks like one.

WORKDIR/checkpoints/   the steps, see `ckpt.files`
WORKDIR/aborted/       the state of a run whose updates were all skipped, see `ckpt.aborted`
WORKDIR/lease          which process trains here, see `ckpt.lease`
WORKDIR/shared         for a moment at the start of several processes: do all see it?
WORKDIR/tokenizer/     tokenizer.json and the size of the model's vocabulary
WORKDIR/metrics.jsonl  the record of the training
WORKDIR/state.txt      a table of all arrays of its state and where they lie
WORKDIR/tensorboard/   the same numbers as event files, with histograms and pictures
WORKDIR/profile/       traces of single steps
WORKDIR/logs/          what every process said, see `train.process_log`
WORKDIR/hf/            of a converted checkpoint: configs, tokenizer and templates of its source, for the way back
WORKDIR/eval/          results.json and predictions, see `evals.results`
"""

from dataclasses import dataclass

from etils import epath

from sttts_jax.paths import PathLike, as_path


@dataclass(frozen=True)
class Workdir:
    """The paths of one run; nothing is made or read. Local or gs://."""

    root: epath.Path

    def __init__(self, root: PathLike):
        object.__setattr__(self, "root", as_path(root))

    @classmethod
    def of_step(cls, step: PathLike) -> "Workdir":
        """The folder that the step directory WORKDIR/checkpoints/<step> belongs to."""
        return cls(as_path(step).parent.parent)

    @property
    def checkpoints(self) -> epath.Path:
        """The directory of steps."""
        return self.root / "checkpoints"

    @property
    def aborted(self) -> epath.Path:
        """The directory of the step that a run gave up at."""
        return self.root / "aborted"

    @property
    def lease(self) -> epath.Path:
        """The file that says who trains here."""
        return self.root / "lease"

    @property
    def shared(self) -> epath.Path:
        """The file that tells whether all processes see one workdir."""
        return self.root / "shared"

    @property
    def tokenizer(self) -> epath.Path:
        """The directory with the tokenizer."""
        return self.root / "tokenizer"

    @property
    def metrics(self) -> epath.Path:
        """The file of numbers, one JSON object a line."""
        return self.root / "metrics.jsonl"

    @property
    def state_table(self) -> epath.Path:
        """The file of the table of arrays."""
        return self.root / "state.txt"

    @property
    def tensorboard(self) -> epath.Path:
        """The directory of event files."""
        return self.root / "tensorboard"

    @property
    def profile(self) -> epath.Path:
        """The directory of traces."""
        return self.root / "profile"

    @property
    def logs(self) -> epath.Path:
        """The directory of the processes' logs."""
        return self.root / "logs"

    @property
    def hf_files(self) -> epath.Path:
        """The directory of the source's side files."""
        return self.root / "hf"

    @property
    def evaluations(self) -> epath.Path:
        """The directory of results and predictions."""
        return self.root / "eval"
