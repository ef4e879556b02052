"""A run's whole configuration: frozen, validated, written to JSON and read back."""

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from typing import Any

from yt8m import schema
from yt8m.errors import UserError, near_matches

SELECTION_METHODS = (
    "random",  # with replacement, as the starter code and the 2017 winner draw
    "random_without_replacement",
    "contiguous",  # a window at a random place
    "even",  # evenly spaced; what evaluation always uses
)


PRECISIONS = ("float32", "bfloat16", "float16")
# What a resumed run may change; all else makes it another run.
CHANGEABLE = {
    *("train_data_pattern", "eval_data_pattern", "batch_size", "num_epochs"),
    *("max_steps", "shuffle_window", "on_bad_record", "base_learning_rate"),
    *("lr_schedule", "learning_rate_decay", "learning_rate_decay_examples"),
    *("warmup_examples", "save_checkpoint_minutes", "save_checkpoint_steps"),
    *("keep_checkpoints", "eval_steps", "log_steps", "steps_per_loop"),
    *("jit_compile", "gradient_accumulation_steps"),
    *("teacher", "on_missing_soft_labels", "early_stopping", "video_embeddings"),
}
ON_MISSING_SOFT_LABELS = ("fail", "hard_labels")
LR_SCHEDULES = ("exponential", "constant", "cosine", "slanted_triangular")


@dataclass(frozen=True)
class FrameSelection:
    """Which frames of a video a model takes.

    Attributes:
        count: how many; None takes all.
        method: one of `SELECTION_METHODS`; of training only.
        skip_first: frames left out at the start of every video that has more.
        evaluation: `even` takes `count` evenly spaced frames at evaluation, `all` all.
        scene_threshold: only one frame of each scene may be taken, its middle one, in
            training as at evaluation; a scene ends where two neighbouring frames are
            at a cosine distance above this. None: any frame may be taken.
    """

    count: int | None = None
    method: str = "random"
    skip_first: int = 0
    evaluation: str = "even"
    scene_threshold: float | None = None

    def __post_init__(self):
        if self.count is not None and self.count < 1:
            raise UserError(f"`count` of frames must be positive, not {self.count}.")
        if self.method not in SELECTION_METHODS:
            raise UserError(
                f"Unknown frame selection {self.method}. "
                f"{near_matches(self.method, SELECTION_METHODS)}"
            )
        if self.evaluation not in ("even", "all"):
            raise UserError(
                f"Frames of evaluation: even or all, not {self.evaluation}."
            )
        if self.skip_first < 0:
            raise UserError(f"`skip_first` must be >= 0, not {self.skip_first}.")
        if self.scene_threshold is not None and not 0 <= self.scene_threshold <= 2:
            raise UserError(
                "--scene_threshold is a cosine distance, from 0 to 2, not "
                f"{self.scene_threshold}."
            )

    def evaluated(self) -> "FrameSelection":
        """The selection at evaluation, where `count` frames are evenly spaced."""
        if self.evaluation == "even":
            return self
        return dataclasses.replace(self, count=None)


@dataclass(frozen=True)
class FrameAugmentation:
    """What training does to the frames of each video, drawn anew for each batch.

    Attributes:
        crop: the least and the greatest share of a video's frames that are kept, in a
            row from a random place; None keeps all.
        bootstrap: the frames taken are drawn again with replacement, this share of
            their number; 0 leaves them.
    """

    crop: tuple[float, float] | None = None
    bootstrap: float = 0.0


@dataclass(frozen=True)
class Part:
    """The replicas of a job that one process has.

    A global batch of n examples is cut into consecutive slices, one for each replica:
    slice i holds the rows n * i // total .. n * (i + 1) // total - 1.

    Attributes:
        first: number of the process's first replica.
        count: how many it has.
        total: replicas of the whole job.
    """

    first: int = 0
    count: int = 1
    total: int = 1

    def rows(self, replica: int, size: Any) -> tuple[Any, Any]:
        """First and end row, in a global batch of `size`, of the own `replica`."""
        number = self.first + replica
        return size * number // self.total, size * (number + 1) // self.total


@dataclass(frozen=True)
class DataConfig:
    """What is read from each record.

    Attributes:
        level: `"frame"` (SequenceExample) or `"video"` (Example).
        features: name and size of each feature, in the order of concatenation.
        num_classes: labels are 0 .. num_classes - 1.
        max_frames: frames beyond are cut off.
        frames: the frames taken of each video; frame level only.
        float_features: the frame features that hold floats; the others hold bytes.
        segments: whether an example is a rated segment of 5 frames, not a video;
            frame level only.
        segment_context_frames: frames before and after a segment that are read with
            it, fewer where the video begins or ends.
    """

    level: str
    features: dict[str, int]
    num_classes: int = schema.NUM_CLASSES
    max_frames: int = schema.MAX_FRAMES
    frames: FrameSelection = FrameSelection()
    float_features: list[str] = field(default_factory=list)
    segments: bool = False
    segment_context_frames: int = 0

    def __post_init__(self):
        if self.segment_context_frames < 0:
            raise UserError(
                "--segment_context_frames must be at least 0, not "
                f"{self.segment_context_frames}."
            )
        if self.level not in ("frame", "video"):
            raise UserError(f"`level` must be frame or video, not {self.level!r}.")
        if self.segments and self.level != "frame":
            raise UserError("--segment_labels needs a frame-level model.")
        if self.segments and self.frames.scene_threshold is not None:
            raise UserError(
                "--scene_threshold finds the scenes of whole videos: leave it or "
                "--segment_labels out."
            )
        if self.level == "video" and self.frames.scene_threshold is not None:
            raise UserError("--scene_threshold needs a frame-level model.")
        if not self.features:
            raise UserError("No feature is named; give --feature_names.")
        for name, size in self.features.items():
            if size < 1:
                raise UserError(f"The size of feature {name} must be positive: {size}.")
        for name in ("num_classes", "max_frames"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"--{name} must be positive, not {getattr(self, name)}."
                )

    @property
    def segment_frames(self) -> int:
        """The most frames of a segment."""
        return schema.SEGMENT_FRAMES + 2 * self.segment_context_frames


@dataclass(frozen=True)
class ModelConfig:
    """A registered model's name, its arguments, and the user's file that defines it."""

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    module: str | None = None


@dataclass(frozen=True)
class TrainingConfig:
    """How a run trains. Names and meanings are those of the flags."""

    train_data_pattern: str
    eval_data_pattern: str = ""
    batch_size: int = 1024  # of all replicas together
    num_epochs: int = 5  # 0: endless, until max_steps
    max_steps: int = 0  # 0: until num_epochs are over
    seed: int = 0
    shuffle_window: int = 0  # records; 0: the reader's own choice
    on_bad_record: str = "fail"
    label_loss: str = "CrossEntropyLoss"
    label_loss_args: dict[str, Any] = field(default_factory=dict)
    regularization_penalty: float = 1.0
    deep_supervision_weight: float = 0.1  # of the losses of auxiliary logits
    optimizer: str = "Adam"
    optimizer_args: dict[str, Any] = field(default_factory=dict)
    base_learning_rate: float = 0.01
    lr_schedule: str = "exponential"
    learning_rate_decay: float = 0.95
    learning_rate_decay_examples: float = 4_000_000
    warmup_examples: float = 0
    clip_gradient_norm: float = 1.0  # of each variable's gradient; 0: off
    clip_global_norm: float = 0.0  # of all gradients together; 0: off
    precision: str = "float32"
    gradient_accumulation_steps: int = 1
    mined_negatives: int = 0  # of a segment, of classes that nobody rated
    mined_negative_weight: float = 0.5  # a rating has 1
    only_classes: str = ""  # a file of classes; other videos are left out
    video_embeddings: str = ""  # folders of what whole videos are embedded as
    mixup: float = 0.0  # alpha of the Beta distribution of the shares; 0: off
    crop: str = ""  # share of a video's frames, or the least and the greatest
    frame_bootstrap: float = 0.0  # share of the frames that are drawn again; 0: off
    feature_noise: float = 0.0  # standard deviation; 0: off
    feature_dropout: float = 0.0  # share of the dimensions; 0: off
    modality_dropout: float = 0.0  # share of the videos; 0: off
    teacher: str = ""  # a run, or a folder of predictions
    teacher_checkpoint: str = "latest"  # of a run; the step, once training has begun
    distillation_weight: float = 0.5  # of the soft labels' loss; the rest is hard
    temperature: float = 1.0  # by which logits are divided in that loss
    on_missing_soft_labels: str = "fail"
    init_from: str = ""  # a run, with whose weights this one begins
    init_checkpoint: str = "latest"  # of it; the step, once training has begun
    new_classifier: bool = False  # not that of init_from
    freeze: str = ""  # patterns of weights that stay as they are
    learning_rate_multipliers: str = ""  # pattern=factor,pattern=factor
    ema_decay: float = 0.0  # of the weights' moving averages; 0: none are kept
    sync_batch_norm: bool = False
    steps_per_loop: int = 0  # steps of a call; 0: about a second
    jit_compile: bool = False
    save_checkpoint_minutes: float = 15.0
    save_checkpoint_steps: int = 0
    keep_checkpoints: int = 3
    eval_steps: int = 0  # 0: at the end only
    early_stopping: int = 0  # validations without a better one; 0: never
    log_steps: int = 10

    def __post_init__(self):
        for name, least in (
            ("batch_size", 1),
            ("num_epochs", 0),
            ("max_steps", 0),
            ("shuffle_window", 0),
            ("warmup_examples", 0),
            ("deep_supervision_weight", 0),
            ("mixup", 0),
            ("feature_noise", 0),
            ("save_checkpoint_minutes", 0),
            ("save_checkpoint_steps", 0),
            ("keep_checkpoints", 1),
            ("eval_steps", 0),
            ("early_stopping", 0),
            ("mined_negatives", 0),
            ("mined_negative_weight", 0),
            ("log_steps", 1),
            ("gradient_accumulation_steps", 1),
            ("steps_per_loop", 0),
        ):
            if getattr(self, name) < least:
                raise UserError(
                    f"--{name} must be at least {least}, not {getattr(self, name)}."
                )
        if not 0 <= self.distillation_weight <= 1:
            raise UserError(
                "--distillation_weight must be in [0, 1], not "
                f"{self.distillation_weight}."
            )
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"--temperature must be positive, not {self.temperature}.")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"--ema_decay must be in [0, 1), not {self.ema_decay}.")
        for name in ("feature_dropout", "modality_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(
                    f"--{name} is a share in [0, 1), not {getattr(self, name)}."
                )
        if not 0 <= self.frame_bootstrap <= 1:
            raise UserError(
                f"--frame_bootstrap is a share in [0, 1], not {self.frame_bootstrap}."
            )
        self.crop_shares()  # refuses what is none
        if self.early_stopping and not (self.eval_data_pattern and self.eval_steps):
            raise UserError(
                f"--early_stopping={self.early_stopping} counts validations: give "
                "--eval_data_pattern and --eval_steps."
            )
        if self.base_learning_rate <= 0:
            raise UserError(
                f"--base_learning_rate must be positive, not {self.base_learning_rate}."
            )
        if not (self.num_epochs or self.max_steps):
            raise UserError("Training without end: give --num_epochs or --max_steps.")
        for name, known in (
            ("precision", PRECISIONS),
            ("on_bad_record", ("fail", "skip")),
            ("on_missing_soft_labels", ON_MISSING_SOFT_LABELS),
            ("lr_schedule", LR_SCHEDULES),
        ):
            if getattr(self, name) not in known:
                raise UserError(
                    f"--{name}={getattr(self, name)} is unknown. "
                    f"{near_matches(getattr(self, name), known)}"
                )

    def crop_shares(self) -> tuple[float, float] | None:
        """The shares of --crop. Raises `UserError` if they are none."""
        if not self.crop.strip():
            return None
        try:
            shares = [float(share) for share in self.crop.split(",")]
        except ValueError:
            shares = []
        if len(shares) not in (1, 2) or not 0 < shares[0] <= shares[-1] <= 1:
            raise UserError(
                f"--crop={self.crop} must be a share of the frames in (0, 1], as in "
                "--crop=0.5, or the least and the greatest, as in --crop=0.3,1."
            )
        return shares[0], shares[-1]

    def frame_augmentation(self) -> FrameAugmentation | None:
        """What --crop and --frame_bootstrap say, for the reader; None of nothing."""
        wanted = FrameAugmentation(self.crop_shares(), self.frame_bootstrap)
        return None if wanted == FrameAugmentation() else wanted


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run directory's `config.json` holds."""

    model: ModelConfig
    data: DataConfig
    training: TrainingConfig

    def __post_init__(self):
        if self.data.level == "video":
            for name in ("crop", "frame_bootstrap"):
                if getattr(self.training, name):
                    raise UserError(
                        f"--{name} draws among frames, which {self.model.name}, a "
                        "video-level model, does not see; leave it out."
                    )
        if self.training.modality_dropout and len(self.data.features) < 2:
            raise UserError(
                "--modality_dropout drops one of several features; "
                f"--feature_names={next(iter(self.data.features))} is one."
            )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def refuse_changes(
        self,
        new: "RunConfig",
        advice: str = "give the old value, another --train_dir, or --start_new_model.",
    ) -> list[str]:
        """Compares this stored configuration with that of a resumed run.

        Args:
            new: of the same run, resumed.
            advice: what to do about a difference that makes it another run.

        Returns:
            One line for each allowed change.

        Raises:
            UserError: something differs that makes it another run; names both values.
        """
        changes = []
        for part in ("model", "data", "training"):
            stored, given = getattr(self, part), getattr(new, part)
            for f in dataclasses.fields(stored):
                old, now = getattr(stored, f.name), getattr(given, f.name)
                if old == now:
                    continue
                # A teacher may have moved, but is neither added nor taken away.
                moves = f.name in ("teacher", "video_embeddings")
                moved = not moves or (old and now)
                if part == "training" and f.name in CHANGEABLE and moved:
                    changes.append(f"{f.name} was {old}, is now {now}")
                else:
                    names = {
                        ("model", "name"): "model",
                        ("data", "segments"): "segment_labels",
                    }
                    name = names.get((part, f.name), f.name)
                    raise UserError(
                        f"The run was started with {name}={old}, not {name}={now}: "
                        f"{advice}"
                    )
        return changes

    @classmethod
    def from_json(cls, text: str) -> "RunConfig":
        """Reads `to_json`'s text. Raises `UserError` for unknown or missing fields."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as e:
            raise UserError(f"not JSON: {e}") from e
        return _build(cls, values, "configuration")


def _build(cls: type, values: Any, where: str) -> Any:
    """Builds the dataclass `cls` from nested dictionaries, checking the names."""
    if not isinstance(values, dict):
        raise UserError(f"{where} must be an object, not {values!r}")
    types = typing.get_type_hints(cls)
    for name in values:
        if name not in types:
            raise UserError(f"{where} has no field {name}. {near_matches(name, types)}")
    built = {
        name: _build(types[name], value, f"{where}.{name}")
        if dataclasses.is_dataclass(types[name])
        else value
        for name, value in values.items()
    }
    try:
        return cls(**built)
    except TypeError as e:
        raise UserError(f"{where} is incomplete: {e}") from e
