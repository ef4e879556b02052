"""What changes in a video, without what stays: transforms of the frames over time.

Both are differences of frames, so that a still video gives exact zeros: rounding
errors would be blown up by the normalisation that follows. `frames` are float32
[B, T, D] and `mask` bool [B, T], whose valid frames come first; padding holds finite
values, and zeros in the result.
"""

from typing import Any

from keras import ops

from yt8m.errors import UserError, near_matches
from yt8m.layers.masking import masked_mean

# The high-pass filter of Daubechies' wavelet with 3 vanishing moments.
DB3 = (
    -0.33267055295008263,
    0.8068915093110925,
    -0.45987750211849154,
    -0.13501102001025458,
    0.08544127388202666,
    0.03522629188570953,
)


def minus_mean(frames: Any, mask: Any) -> Any:
    """Each frame minus the mean of the video's frames: x_t - mean_s(x_s).

    Reference:
        Ostyakov et al. 2018, arXiv:1809.04403, section 2 (dynamics, 1).
    """
    moved = ops.where(mask[..., None], frames - frames[:, :1], 0.0)
    moved = moved - masked_mean(moved, mask)[:, None]
    return ops.where(mask[..., None], moved, 0.0)


def wavelet_high_pass(frames: Any, mask: Any) -> Any:
    """The high-pass filter of the db3 wavelet over time: y_t = sum_k g_k x_(t+2-k).

    Beyond its ends a video goes on as in a mirror (x_(-1) is x_0). y_1, y_3, ... are
    the detail coefficients of one level of the discrete wavelet transform, from its
    second on. Since the g_k sum to 0, x_(t+2-k) - x_t gives the same.

    Reference:
        Daubechies 1992, "Ten lectures on wavelets", table 6.1 (N = 3); Ostyakov et al.
        2018, arXiv:1809.04403, section 2 (dynamics, 2), which leaves the number of
        levels and the ends open.
    """
    number = ops.sum(ops.cast(mask, "int32"), axis=1, keepdims=True)
    number = ops.maximum(number, 1)
    batch, length = ops.shape(frames)[0], ops.shape(frames)[1]
    time = ops.arange(length, dtype="int32")[None, :]
    first = length * ops.arange(batch, dtype="int32")[:, None]
    rows = ops.reshape(frames, (-1, frames.shape[-1]))
    filtered = ops.zeros_like(frames)
    for k, weight in enumerate(DB3):
        place = ops.mod(time + 2 - k, 2 * number)
        place = ops.where(place < number, place, 2 * number - 1 - place)
        filtered += weight * (ops.take(rows, first + place, axis=0) - frames)
    return ops.where(mask[..., None], filtered, 0.0)


DYNAMICS = {"minus_mean": minus_mean, "wavelet": wavelet_high_pass}


def find_dynamics(name: str) -> Any:
    """The transform of this name. Raises `UserError` with near matches if none is."""
    if name not in DYNAMICS:
        raise UserError(f"Unknown dynamics {name}. {near_matches(name, DYNAMICS)}")
    return DYNAMICS[name]
