"""Distances of embeddings from the centres of their labels."""

from keras import ops

from yt8m.losses.cross_entropy import cross_entropy


class CenterLoss:
    """Cross-entropy, and the embedding's squared distance to the centres of its labels.

    L = L_s + center_weight * 1/N sum_k ||e - c_k||^2
    over the N labels k of a video. The centres are weights of the model, which learns
    them by the same gradient; it gives them in training only, so that the loss of an
    evaluation is the cross-entropy L_s. Labels between 0 and 1 weigh as much as they
    are; a video without labels has the cross-entropy alone.

    Args:
        center_weight: the paper's lambda.

    Call arguments:
        outputs: with `embedding` [B, H] and, in training, `centers` [C, H] too.

    Reference: Na et al. 2017, arXiv:1706.07960, equations 21 and 22; Wen et al. 2016,
    ECCV.
    """

    training_outputs = ("centers", "embedding")

    def __init__(self, center_weight: float = 0.001):
        if not center_weight >= 0:
            raise ValueError(
                "`center_weight` must not be negative. "
                f"Received: center_weight={center_weight}"
            )
        self.center_weight = center_weight

    def __call__(self, labels, outputs, weights=None):
        loss = cross_entropy(labels, outputs, weights)
        if "centers" not in outputs:
            return loss
        labels = ops.cast(labels, "float32")
        if weights is not None:  # a class that was not rated draws nothing
            labels = labels * ops.cast(weights, "float32")
        count = ops.sum(labels, axis=-1)
        shares = labels / ops.maximum(count, 1e-7)[..., None]
        embedding = ops.cast(outputs["embedding"], "float32")
        if len(labels.shape) == 3:  # [B, 1, C], of a video's frames
            embedding = embedding[:, None]
        centers = ops.cast(outputs["centers"], "float32")
        # sum_k share_k ||e - c_k||^2, without a tensor [B, C, H].
        distance = (
            ops.sum(ops.square(embedding), axis=-1)
            - 2.0 * ops.sum(embedding * ops.matmul(shares, centers), axis=-1)
            + ops.matmul(shares, ops.sum(ops.square(centers), axis=-1))
        )
        return loss + self.center_weight * ops.where(count > 0, distance, 0.0)
