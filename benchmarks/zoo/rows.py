"""What is compared on embedded videos: each model at a small size.

A new model needs an entry here: its arguments, its learning rate, its family, which
says how long it trains, and the traits that the bars go by. A model of this table that
is not registered is left out. The learning rates of the recurrent, convolution and
attention families are the best of two or three on videos of a seed that is not scored.
"""

from dataclasses import dataclass, field, replace
from typing import Any

# Steps of a family's training, as a multiple of --steps.
FAMILIES = {
    "pooling": 1.0,
    "attention": 2.0,
    "convolution": 2.0,
    "recurrent": 3.0,
}


def budgets(steps: int) -> str:
    """The families' steps, in words."""
    each = [f"{round(steps * factor)} {name}" for name, factor in FAMILIES.items()]
    return f"Steps by family: {', '.join(each)}."


# What a model does, by which the bars group the rows:
#   average: linear in the mean of the frames, before anything else is.
#   vlad, attention, max: pools so that a few frames can stand out.
#   orderless: the same for frames in any order.
#   ordered: recurrent or convolutional over time.
#   two_stream: pools rgb and audio apart, orderless.
#   joined: looks at rgb and audio of one frame together.
TRAITS = (
    "average",
    "vlad",
    "attention",
    "max",
    "orderless",
    "ordered",
    "two_stream",
    "joined",
)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        model, args: of the registry.
        rate: learning rate.
        family: a key of `FAMILIES`.
        traits: some of `TRAITS`.
        features: those that the model reads.
        rival: the row of the same model with both features, if this one has not.
        deep_supervision_weight: of the losses of auxiliary logits.
        batch_size: videos of a step.
        schedule: of the learning rate: `cosine`, down to zero at the end of the
            training, or `constant`.
        optimizer_args: of Adam.
        label_loss, label_loss_args: of `yt8m.losses`.
        ranking_weight: of the soft ranking loss, added to the label loss.
        mixup: alpha of the Beta distribution; 0 mixes nothing.
        soft_labels: weight of the teachers' labels, where there are teachers.
        calibrated: whether these are calibrated first.
        epochs: of real videos.
        sees_labels: of a head, whether classes depend on the scores of others; None
            of one that is there for comparison.
    """

    model: str
    args: dict[str, Any]
    rate: float
    family: str = "pooling"
    traits: frozenset[str] = frozenset()
    features: tuple[str, ...] = ("rgb", "audio")
    rival: str | None = None
    deep_supervision_weight: float = 1.0
    batch_size: int = 128
    schedule: str = "cosine"
    optimizer_args: dict[str, Any] = field(default_factory=dict)
    label_loss: str = "CrossEntropyLoss"
    label_loss_args: dict[str, Any] = field(default_factory=dict)
    ranking_weight: float = 0.0
    mixup: float = 0.0
    soft_labels: float = 0.0
    calibrated: bool = False
    epochs: int = 40
    sees_labels: bool | None = None

    def settings(self) -> dict[str, Any]:
        """What its results depend on."""
        names = ("model", "args", "rate", "features", "deep_supervision_weight")
        names += ("batch_size", "schedule", "optimizer_args")
        found = {name: getattr(self, name) for name in names}
        # Those that only some rows have.
        added = ("label_loss", "label_loss_args", "ranking_weight", "mixup")
        for name in (*added, "soft_labels", "calibrated"):
            value = getattr(self, name)
            if value and value != "CrossEntropyLoss":
                found[name] = value
        return found


def _entry(model: str, rate: float, family: str, traits: str, **args: Any) -> Row:
    return Row(model, args, rate, family, frozenset(traits.split()))


def _poolings() -> list[Row]:
    size = {"hidden_size": 128}
    both = "orderless two_stream"

    def entry(model: str, rate: float, traits: str, **args: Any) -> Row:
        return _entry(model, rate, "pooling", traits, **args)

    return [
        entry("FrameLevelLogisticModel", 0.03, "average orderless"),
        entry("FrameLogisticModel", 0.03, "orderless"),
        entry("DbofModel", 0.01, "max orderless joined", clusters=128, **size),
        entry("BofModel", 0.003, "orderless joined", dropout=0.1, hidden_size=256),
        entry(
            "CgDbofModel", 0.003, "orderless joined", clusters=256, dropout=0.1, **size
        ),
        entry("NetVLADModel", 0.01, f"vlad {both}", clusters=16, **size),
        entry("NetRVLADModel", 0.01, both, clusters=16, **size),
        entry("NetFVModel", 0.01, both, clusters=16, **size),
        entry("SoftDBoWModel", 0.01, both, clusters=128, **size),
        entry("VladBowModel", 0.01, both, clusters=128, **size),
        entry("NeXtVLADModel", 0.003, "orderless", clusters=16, dropout=0.1, **size),
        entry(
            "MixtureNeXtVLADModel",
            0.003,
            "orderless",
            branch_args={"clusters": 16, "dropout": 0.1, **size},
        ),
        entry("TimeDistributedDenseMaxModel", 0.003, "max orderless joined", **size),
        entry(
            "TimeDistributedDenseSortingModel",
            *(0.003, "orderless joined"),
            **{"inner_size": 128, "frame_size": 64, "dropout": 0.1, **size},
        ),
        entry("SnuvlModel", 0.01, "orderless"),
    ]


def _attentions() -> list[Row]:
    def entry(model: str, rate: float, traits: str, **args: Any) -> Row:
        return _entry(model, rate, "attention", traits, **args)

    few = {"attentions": 8, "hidden_size": 128, "dropout": 0.1}
    return [
        entry("AttentionNetModel", 0.003, "orderless", layers=2, units=128),
        entry("AttentionClusterModel", 0.003, "attention orderless", **few),
        entry("MultiAttentionModel", 0.009, "attention orderless joined", **few),
        entry(
            "TransformerModel",
            *(0.001, "orderless joined"),
            **{"layers": 1, "heads": 4, "ffn_size": 256, "max_frames": 40},
        ),
    ]


def _convolutions() -> list[Row]:
    def entry(model: str, rate: float, **args: Any) -> Row:
        return _entry(model, rate, "convolution", "ordered joined", **args)

    return [
        entry("MultiscaleCnnLstmModel", 0.003, channels=(64, 64, 128), cells=128),
        entry("CnnDccModel", 0.009, channels=(64, 64, 128)),
        entry("TemporalCnnModel", 0.003, blocks=2, channels=128, cells=128),
        _entry(
            *("TimeDistributedConvModel", 0.009, "convolution", "ordered"),
            channels=(64, 128),
        ),
        entry("SpatioTemporalCnnModel", 0.001, channels=128),
        _entry(
            *("LinearCombinationsModel", 0.09, "convolution", ""),
            max_frames=40,
        ),
    ]


def _recurrents() -> list[Row]:
    def entry(model: str, rate: float, **args: Any) -> Row:
        return _entry(model, rate, "recurrent", "ordered joined", **args)

    return [
        entry("LstmModel", 0.009, cells=128),
        entry("RecurrentModel", 0.009, cells=128, max_frames=40),
        _entry(
            *("TwoStreamRecurrentModel", 0.009, "recurrent", "ordered"),
            **{"cells": 64, "projections": ((64, "tanh"),), "dropout": 0.1},
            hidden_layers=((256, "relu"),),
        ),
        entry(
            *("FastForwardModel", 0.009),
            **{"cells": 64, "layers": 3, "hidden_layers": ((128, "linear"),)},
        ),
        entry("LstmAttentionMaxModel", 0.009, cells=128, attentions=4),
        entry("FrameSupervisedLstmModel", 0.009, cells=128),
        entry("ManyToManyModel", 0.009, cells=128, dropout=0.2),
        entry(
            *("LstmMoeModel", 0.009),
            **{"cells": 128, "experts": 8, "active": 2, "expert_size": 128},
            **{"max_frames": 40, "dropout": 0.1},
        ),
    ]


def _rows() -> dict[str, Row]:
    entries = _poolings() + _attentions() + _convolutions() + _recurrents()
    rows = {entry.model: entry for entry in entries}
    for model in ("NetVLADModel", "DbofModel"):
        for feature in ("rgb", "audio"):
            both = rows[model]
            rows[f"{model} ({feature})"] = Row(
                model,
                both.args,
                both.rate,
                both.family,
                features=(feature,),
                rival=model,
            )
    return rows


ROWS = _rows()

# The models whose speed is measured, in both precisions.
PRECISION_ROWS = {
    f"{name} ({precision})": replace(ROWS[name], args={**ROWS[name].args, **policy})
    for name in (
        "FrameLevelLogisticModel",
        "DbofModel",
        "NetVLADModel",
        "NeXtVLADModel",
        "LstmModel",
    )
    for precision, policy in (
        ("float32", {}),
        ("bfloat16", {"dtype": "mixed_bfloat16"}),
    )
}

# On classes that imply one another, with labels that are hidden, and for comparison on
# classes of which none tells of another. All classify the mean of the frames.
LABEL_DATA = {
    "classes that co-occur, labels hidden": {
        "implied_labels": 0.9,
        "hidden_labels": 0.5,
    },
    "independent classes, all labels": {"co_occurrence": 0.0},
}


def _head(rate: float, sees_labels: bool = False, **args: Any) -> Row:
    model = "FrameLevelLogisticModel"
    return Row(model, args, rate, features=("rgb",), sees_labels=sees_labels)


# `CORRELATION` stands for the file of the training labels' correlation.
CORRELATION = "correlation.npz"
_PROCESSING = {
    "label_processing": "correlation",
    "label_processing_args": {"correlation": CORRELATION, "weights": (1.0, 0.01, 0.0)},
}
LABEL_ROWS = {
    "logistic": _head(0.1, head="logistic"),
    "logistic + correlation": _head(0.1, True, head="logistic", **_PROCESSING),
    "mixture of 2 experts": _head(0.03, head="moe"),
    "mixture of 2 experts + correlation": _head(0.03, True, head="moe", **_PROCESSING),
    "chain of 1 stage": _head(
        0.02, True, head="chain", head_args={"stages": 1, "cells": 64}
    ),
    "chain of 2 stages": _head(
        0.01, True, head="chain", head_args={"stages": 2, "cells": 64}
    ),
    # For comparison: the layers of a chain, but its stage learns no labels.
    "chain without labels": Row(
        "FrameLevelLogisticModel",
        {"head": "chain", "head_args": {"stages": 1, "cells": 64}},
        0.02,
        features=("rgb",),
        deep_supervision_weight=0.0,
    ),
}


# Labels as the dataset's were against people's (arXiv:1609.08675): of 14.5 % recall and
# 78.8 % precision. What is missing depends on the class and on how much is seen of it.
CORRUPTED_DATA = {
    "labels_per_video": 5.0,
    "implied_labels": 0.9,
    "hidden_labels": 3.1,
    "wrong_labels": 0.222,
}
# Rates and penalties are the best of a few on a seed that is not scored. What gives the
# soft labels is the mean of the teachers, out of fold.
TEACHERS = [_head(0.1, head="logistic", l2_penalty=penalty) for penalty in (1e-4, 3e-4)]
_HARD = _head(0.03, head="logistic")
_STUDENT = replace(_HARD, rate=0.3)
CORRUPTED_BASELINE = "hard labels"
CORRUPTED_ROWS = {
    CORRUPTED_BASELINE: _HARD,
    "hard labels, L2 penalty": TEACHERS[0],
    "soft labels alone": replace(_STUDENT, soft_labels=1.0),
    "calibrated soft labels, weight 0.5": replace(
        _HARD, rate=0.1, soft_labels=0.5, calibrated=True
    ),
    "calibrated soft labels alone": replace(_STUDENT, soft_labels=1.0, calibrated=True),
}


# Real videos. The settings of the mixtures of experts were chosen on four of the
# training shards, held out of the training; those of the others are first guesses.
def _video(
    model: str,
    rate: float,
    batch_size: int = 128,
    schedule: str = "cosine",
    epochs: int = 40,
    **args: Any,
) -> Row:
    return Row(
        *(model, args, rate),
        features=("mean_rgb", "mean_audio"),
        batch_size=batch_size,
        schedule=schedule,
        epochs=epochs,
    )


REAL_BASELINE = "starter_moe"
REAL_ROWS = {
    # The recipe: its learning rate first falls after 4 million videos.
    REAL_BASELINE: _video("MoeModel", 0.01, 1024, "constant", 130, num_mixtures=2),
    "MoeModel (batch 128)": _video("MoeModel", 0.01, 128, "constant", num_mixtures=2),
    "CentredMoeModel": _video("CentredMoeModel", 0.005, 128, "constant", 50),
    "CentredMoeModel (pseudo-Huber)": replace(
        _video(
            *("CentredMoeModel", 0.01, 128, "constant", 48),
            num_mixtures=1,
            emphasis=2.0,
            feature_scales=(1.0, 0.4),
        ),
        label_loss="PseudoHuberLoss",
        label_loss_args={"delta": 0.2},
    ),
    "LogisticModel": _video("LogisticModel", 0.01),
    "ResNetLikeModel": _video("ResNetLikeModel", 0.0005, inner_size=1024),
    "DeepCombineChainModel": _video(
        "DeepCombineChainModel", 0.002, head_args={"stages": 1, "cells": 256}
    ),
    "MultiTaskCombineChainModel": _video("MultiTaskCombineChainModel", 0.001),
    "ThsModel": _video("ThsModel", 0.001),
    "MonnModel": _video("MonnModel", 0.001),
    "MlpModel": _video("MlpModel", 0.001, 256, hidden_sizes=(4096,), dropout=0.5),
}

# What is compared with the first row: its model, trained in another way.
_BASE = replace(REAL_ROWS["LogisticModel"], epochs=20)
TECHNIQUES = {
    "LogisticModel": _BASE,
    "mixup": replace(_BASE, mixup=0.4),
    "averaged weights": replace(
        _BASE, optimizer_args={"use_ema": True, "ema_momentum": 0.99}
    ),
    "pseudo-Huber, delta 0.5": replace(_BASE, label_loss="PseudoHuberLoss"),
    "pseudo-Huber, delta 2": replace(
        _BASE, label_loss="PseudoHuberLoss", label_loss_args={"delta": 2.0}
    ),
    "soft ranking": replace(_BASE, label_loss="SoftRankingLoss"),
    "cross entropy + soft ranking": replace(_BASE, ranking_weight=0.1),
    "label smoothing 0.001": replace(_BASE, label_loss_args={"label_smoothing": 0.001}),
    "label smoothing 0.01": replace(_BASE, label_loss_args={"label_smoothing": 0.01}),
}

# Members of an ensemble, each as long as it was best at, and students of it.
MEMBERS = {
    "LogisticModel": REAL_ROWS["LogisticModel"],
    "MoeModel": replace(REAL_ROWS["MoeModel (batch 128)"], epochs=24),
    "CentredMoeModel": REAL_ROWS["CentredMoeModel (pseudo-Huber)"],
    "ResNetLikeModel": REAL_ROWS["ResNetLikeModel"],
    "ThsModel": replace(REAL_ROWS["ThsModel"], epochs=30),
    "MlpModel": REAL_ROWS["MlpModel"],
}
STUDENTS = {
    name: MEMBERS[name] for name in ("LogisticModel", "ResNetLikeModel", "MoeModel")
}

# On frames made up around the real means.
FRAME_ROWS = {
    "FrameLevelLogisticModel": replace(ROWS["FrameLevelLogisticModel"], rate=0.01),
    "DbofModel": _entry(
        "DbofModel",
        *(0.001, "pooling", ""),
        clusters=1024,
        hidden_size=512,
    ),
    "NetVLADModel": _entry(
        "NetVLADModel",
        *(0.001, "pooling", ""),
        clusters=16,
        hidden_size=256,
        gating_probabilities=False,
    ),
}
