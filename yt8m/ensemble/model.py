"""Several trained models as one.

mean        logit of sum_i w_i sigmoid(x_i), by
            logsumexp_i(log w_i + log sigmoid(x_i))
            - logsumexp_i(log w_i + log sigmoid(-x_i)), so that no probability
            rounds to 0 or 1
geometric   sum_i w_i x_i
stacked     a classifier of the models' embeddings, side by side
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from yt8m import export
from yt8m.config import DataConfig
from yt8m.errors import UserError
from yt8m.layers.averaging import mean_probability_logits
from yt8m.model import YT8MModel, forward
from yt8m.runs import Run

METHODS = ("mean", "geometric")


class _Combination:
    """Called like a model; gives `logits` alone.

    Args:
        members: built models of one level; one may read features that another does not.
    """

    def __init__(self, members: Sequence[YT8MModel]):
        self.members = list(members)
        self.level = members[0].level
        self.num_classes = members[0].num_classes
        names = [name for member in members for name in member.input_names]
        self.input_names = list(dict.fromkeys(names))

    @property
    def video_embedding_size(self) -> int:
        """The numbers of the embeddings of whole videos that members read.

        Raises:
            UserError: they read embeddings of different sizes.
        """
        sizes = {getattr(member, "video_embedding_size", 0) for member in self.members}
        if len(sizes - {0}) > 1:
            raise UserError(
                "The runs read embeddings of whole videos of different sizes: "
                f"{', '.join(map(str, sorted(sizes - {0})))}."
            )
        return max(sizes)

    @property
    def variables(self) -> list[Any]:
        return [v for member in self.members for v in member.variables]

    def outputs(self, inputs: dict[str, Any], training: bool) -> list[dict[str, Any]]:
        """Of each member."""
        return [
            forward(m, {name: inputs[name] for name in m.input_names}, training)
            for m in self.members
        ]


class EnsembleModel(_Combination):
    """The mean of several models.

    Args:
        members: as `_Combination`.
        weights: [M], which sum to 1.
        method: one of `METHODS`.
    """

    def __init__(
        self, members: Sequence[YT8MModel], weights: np.ndarray, method: str = "mean"
    ):
        # A member of weight 0 adds nothing but bytes.
        super().__init__([m for m, w in zip(members, weights, strict=True) if w])
        self.weights = np.array([w for w in weights if w], np.float32)
        self.method = method

    def __call__(self, inputs: dict[str, Any], training: bool = False):
        logits = [found["logits"] for found in self.outputs(inputs, training)]
        if self.method == "mean":
            return {"logits": mean_probability_logits(logits, self.weights)}
        stacked = keras.ops.stack(logits, axis=-1)
        return {"logits": keras.ops.sum(stacked * self.weights, axis=-1)}


class StackedModel(_Combination):
    """A classifier that was trained on the embeddings of several models.

    Args:
        members: as `_Combination`; each gives an `embedding`.
        classifier: a built video-level model. What it reads are the members'
            embeddings in their order, by whatever names, and beside them features that
            members read, by their own.
    """

    def __init__(self, members: Sequence[YT8MModel], classifier: YT8MModel):
        super().__init__(members)
        self.classifier = classifier
        self.num_classes = classifier.num_classes

    @property
    def variables(self) -> list[Any]:
        return [*super().variables, *self.classifier.variables]

    def __call__(self, inputs: dict[str, Any], training: bool = False):
        embeddings = [
            keras.ops.cast(found["embedding"], "float32")
            for found in self.outputs(inputs, training)
        ]
        read = {
            name: inputs[name] if name in inputs else embeddings.pop(0)
            for name in self.classifier.features
        }
        return {"logits": forward(self.classifier, read, training)["logits"]}


def combine(
    members: Sequence[Run],
    weights: np.ndarray | None = None,
    method: str = "mean",
    classifier: Run | None = None,
) -> tuple[_Combination, DataConfig, dict[str, Any]]:
    """One model of several runs, for `export.write_export`.

    Args:
        members: restored runs that read the same frames or videos.
        weights: [M], which sum to 1; None weighs all alike.
        method: one of `METHODS`.
        classifier: a restored run that was trained on the members' embeddings; its
            scores are given, and not a mean.

    Returns:
        The model, what it reads, and what `export.json` says of the members.

    Raises:
        UserError: the runs read different frames or classes, or the classifier does
            not fit.
    """
    data = joint_data(members)
    if weights is None:
        weights = np.full(len(members), 1 / len(members))
    models = [run.model for run in members]
    if classifier:
        refuse_other_classifier(members, classifier, data)
        model = StackedModel(models, classifier.model)
        data = dataclasses.replace(data, num_classes=classifier.config.data.num_classes)
        record = {
            "method": "stacked",
            "members": [_described(run) for run in members],
            "classifier": _described(classifier),
        }
    else:
        model = EnsembleModel(models, weights, method)
        record = {
            "method": method,
            "members": [
                {**_described(run), "weight": float(weight)}
                for run, weight in zip(members, weights, strict=True)
            ],
        }
    return model, data, record


def _described(run: Run) -> dict[str, Any]:
    return {"run": run.checkpoint.path, "config": dataclasses.asdict(run.config)}


def joint_data(members: Sequence[Run]) -> DataConfig:
    """What runs read together of a record: the features of all, and the same of else.

    Raises:
        UserError: they do not read the same frames, classes, or sizes of a feature.
    """
    first = members[0]
    features, floats = {}, []
    # Of a record of a whole video there are no frames to take.
    free = {"video": ("segments", "frames", "max_frames")}.get(
        first.config.data.level, ("segments",)
    )
    for run in members:
        for field in dataclasses.fields(DataConfig):
            own = getattr(first.config.data, field.name)
            other = getattr(run.config.data, field.name)
            same = str(own) == str(other)
            if field.name == "features":
                same = all(features.get(n, s) == s for n, s in other.items())
                features |= other
            elif field.name == "float_features":
                same, floats = True, [*floats, *(n for n in other if n not in floats)]
            if not same and field.name not in free:
                raise UserError(
                    f"{first.directory} and {run.directory} cannot be one graph: the "
                    f"one has {field.name} {own}, the other {other}; combine their "
                    "predictions by `yt8m ensemble` instead."
                )
    return dataclasses.replace(
        first.config.data, features=features, float_features=floats
    )


def refuse_other_classifier(
    members: Sequence[Run], classifier: Run, data: DataConfig
) -> None:
    """Raises `UserError` if the classifier does not read the members' embeddings.

    Args:
        members, classifier: as of `combine`.
        data: what the members read together.
    """
    wanted = classifier.config.data
    if wanted.level != "video":
        raise UserError(
            f"--classifier={classifier.directory} must be a run of a video-level "
            "model, trained on what `yt8m join` has put side by side."
        )
    given = {name for run in members for name in run.model.input_names}
    read = [name for name in wanted.features if name not in given]
    if len(read) != len(members):
        raise UserError(
            f"--classifier={classifier.directory} reads {len(read)} embeddings "
            f"({', '.join(read)}), but --train_dir names {len(members)} run(s); name "
            "those whose embeddings it was trained on, in the same order."
        )
    for name, run in zip(read, members, strict=True):
        video = export.empty_video(run.model, data)
        embedding = forward(run.model, video).get("embedding")
        size = 0 if embedding is None else embedding.shape[-1]
        if size != wanted.features[name]:
            raise UserError(
                f"--classifier={classifier.directory} reads {name} of size "
                f"{wanted.features[name]}, but the embedding of {run.directory} has "
                f"size {size}; name the runs in the order in which they were joined."
            )
