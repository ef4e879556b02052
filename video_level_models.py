"""The models that read one vector a video. Add yours here: see README.md."""

from yt8m.layers.heads import LogisticHead, MoEHead
from yt8m.model import VideoLevelModel
from yt8m.registry import register


@register(level="video", paper="Abu-El-Haija et al. 2016, arXiv:1609.08675, 4.3.1")
class LogisticModel(VideoLevelModel):
    """Logistic regression on the video's features.

    [B, D] -> dense C -> logits [B, C].

    Args:
        l2_penalty: the loss gets l2_penalty * sum(w^2) / 2.
    """

    def __init__(self, l2_penalty: float = 1e-8, **kwargs):
        super().__init__(**kwargs)
        self.l2_penalty = l2_penalty
        self.head = LogisticHead(
            self.num_classes,
            l2_penalty=l2_penalty,
            dtype=self.dtype_policy,
            name="head",
        )

    def classify(self, video, training=False):
        return {**self.head(video, training=training), "embedding": video}


@register(level="video", paper="Abu-El-Haija et al. 2016, arXiv:1609.08675, 4.3.3")
class MoeModel(VideoLevelModel):
    """Mixture of logistic experts, one mixture for each class.

    [B, D] -> gates C * (M + 1), experts C * M -> logits [B, C].

    Args:
        num_mixtures: experts M of each class, beside one that always says no.
        l2_penalty: the loss gets l2_penalty * sum(w^2) / 2 of gates and experts.
    """

    def __init__(self, num_mixtures: int = 2, l2_penalty: float = 1e-8, **kwargs):
        super().__init__(**kwargs)
        self.num_mixtures = num_mixtures
        self.l2_penalty = l2_penalty
        self.head = MoEHead(
            self.num_classes,
            num_mixtures=num_mixtures,
            l2_penalty=l2_penalty,
            dtype=self.dtype_policy,
            name="head",
        )

    def classify(self, video, training=False):
        return {**self.head(video, training=training), "embedding": video}
