"""Weights in fewer bytes: floats of 16 bits, or codes of 8 bits into a codebook.

A file of compressed weights is an .npz file, not deflated. The weight at place 12 is
one array in it, or two:

    00012.kept         as it was: integers; fewer than two dimensions (biases, norms);
                       fewer than 4,096 values; values that the method cannot hold
    00012.float16      rounded to the nearest
    00012.bfloat16     the upper 16 bits of the nearest, as uint16
    00012.codes        uint8, in the weight's shape, and
    00012.codebook     float32, at most 256 values: the weight is codebook[codes]

A codebook minimises the squared error of its own weight, by Lloyd's algorithm: each
value of it is the mean of those that lie nearest to it. References: Lloyd, "Least
squares quantization in PCM", 1982; for where it starts Panter and Dite, "Quantization
distortion in pulse-count modulation with nonuniform spacing of levels", 1951.
"""

import zipfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np

from yt8m.errors import UserError, near_matches

METHODS = ("float16", "bfloat16", "codebook8")

_CODEBOOK_SIZE = 256
_LEAST_VALUES = 4096  # of a weight worth it: a codebook takes a kilobyte
_MOST_SAMPLES = 1 << 20  # values by which a codebook is found
_QUANTILES = 4096
_MOST_ROUNDS = 1000


def write_weights(file: BinaryIO, weights: Iterable[np.ndarray], method: str) -> None:
    """Writes compressed weights; equal ones give equal bytes.

    Args:
        file: open for writing.
        weights: arrays, by their place.
        method: one of `METHODS`.

    Raises:
        UserError: an unknown method, or a weight that is not finite.
    """
    if method not in METHODS:
        raise UserError(
            f"--method={method} is unknown. {near_matches(method, METHODS)}"
        )
    arrays = {}
    for place, weight in enumerate(weights):
        for form, array in compress(weight, method).items():
            arrays[f"{place:05d}.{form}"] = array
    np.savez(file, **arrays)


def read_weights(file: BinaryIO) -> Iterator[np.ndarray]:
    """The weights in a file of `write_weights`, by their place, one at a time.

    Raises:
        ValueError: it is no such file, or damaged.
    """
    try:
        with zipfile.ZipFile(file) as members:
            # Deflated, a small file could hold more than the memory.
            if any(m.compress_type != zipfile.ZIP_STORED for m in members.infolist()):
                raise ValueError("its arrays are deflated")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            forms: dict[int, dict[str, str]] = {}
            for key in arrays.files:
                place, _, form = key.partition(".")
                forms.setdefault(int(place), {})[form] = key
            if sorted(forms) != list(range(len(forms))):
                raise ValueError("a weight is missing in it")
            for place in range(len(forms)):
                yield expand({form: arrays[key] for form, key in forms[place].items()})
    except (zipfile.BadZipFile, EOFError, LookupError) as e:
        raise ValueError(f"not a file of compressed weights: {e}") from e


def compress(weight: np.ndarray, method: str) -> dict[str, np.ndarray]:
    """The arrays of one weight, by their form (see the file's description).

    Raises:
        UserError: a value is not finite.
    """
    weight = np.asarray(weight)
    if weight.dtype != np.float32 or weight.ndim < 2 or weight.size < _LEAST_VALUES:
        return {"kept": weight}
    if not np.isfinite(weight).all():
        raise UserError(
            f"A weight of shape {list(weight.shape)} holds values that are not finite; "
            "such a model cannot predict. Choose an earlier --checkpoint."
        )
    if method == "codebook8":
        levels = find_codebook(weight)
        return {"codes": nearest(weight, levels), "codebook": levels}
    if method == "bfloat16":
        bits = weight.view(np.uint32)
        # Half of what is cut off is added; a tie goes to the even one.
        upper = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
        arrays = {"bfloat16": upper.astype(np.uint16)}
    else:
        with np.errstate(over="ignore"):
            arrays = {"float16": weight.astype(np.float16)}
    return arrays if np.isfinite(expand(arrays)).all() else {"kept": weight}


def expand(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The weight of which `compress` made the arrays, rounded as they are.

    Raises:
        ValueError: they are none of its forms.
    """
    forms = set(arrays)
    if forms == {"kept"}:
        return arrays["kept"]
    if forms == {"float16"} and arrays["float16"].dtype == np.float16:
        return arrays["float16"].astype(np.float32)
    if forms == {"bfloat16"} and arrays["bfloat16"].dtype == np.uint16:
        return (arrays["bfloat16"].astype(np.uint32) << 16).view(np.float32)
    if forms == {"codes", "codebook"}:
        codes, levels = arrays["codes"], arrays["codebook"]
        if codes.dtype == np.uint8 and levels.dtype == np.float32 and levels.ndim == 1:
            return levels[codes]
    raise ValueError(f"no weight is compressed to {', '.join(sorted(forms))}")


def nearest(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The place of the nearest of ascending `levels`, uint8, for each of `values`."""
    middles = (levels[1:].astype(np.float64) + levels[:-1]) / 2
    codes = np.empty(values.shape, np.uint8)
    for row, found in zip(values, codes, strict=True):  # for the memory's sake
        found[...] = np.searchsorted(middles, row)
    return codes


def find_codebook(values: np.ndarray) -> np.ndarray:
    """The at most 256 values of the least squared error, ascending, float32.

    Of large arrays a part is looked at: values evenly spaced in their order.
    """
    ordered = np.sort(values, axis=None)
    steps = np.diff(ordered)
    if np.count_nonzero(steps) < _CODEBOOK_SIZE:
        return ordered[np.concatenate([[True], steps > 0])]  # no error at all
    if len(ordered) > _MOST_SAMPLES:
        ordered = ordered[np.linspace(0, len(ordered) - 1, _MOST_SAMPLES, dtype=int)]
    ordered = ordered.astype(np.float64)
    levels = _first_levels(ordered)
    sums, squares = (
        np.concatenate([[0.0], np.cumsum(ordered**power)]) for power in (1, 2)
    )
    for _ in range(_MOST_ROUNDS):
        ends = np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
        cells = np.concatenate([[0], ends, [len(ordered)]])
        used = np.diff(cells) > 0
        counts = np.diff(cells)[used]
        means = np.diff(sums[cells])[used] / counts
        errors = np.maximum(np.diff(squares[cells])[used] - counts * means**2, 0)
        # A level that none is nearest to goes where the error is greatest.
        idle = min(_CODEBOOK_SIZE - len(means), len(means))
        split = np.argsort(-errors, kind="stable")[:idle]
        spread = np.sqrt(errors[split] / counts[split])
        moved = np.sort(np.concatenate([means, means[split] + spread]))
        settled = len(moved) == len(levels) and np.allclose(
            moved, levels, rtol=0, atol=1e-4 * np.sqrt(errors.sum() / len(ordered))
        )
        levels = moved
        if settled:
            break
    return np.unique(levels.astype(np.float32))


def _first_levels(ordered: np.ndarray) -> np.ndarray:
    """As dense as the cube root of the values' own density, which is the best in the
    limit of many levels.
    """
    places = np.linspace(0, len(ordered) - 1, _QUANTILES + 1, dtype=int)
    edges = ordered[places]
    # Between two quantiles of a mass m and a distance d: d * (m / d)^(1/3).
    share = np.concatenate([[0.0], np.cumsum(np.diff(edges) ** (2 / 3))])
    wanted = (np.arange(_CODEBOOK_SIZE) + 0.5) / _CODEBOOK_SIZE * share[-1]
    return np.interp(wanted, share, edges)
