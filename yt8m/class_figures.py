"""Figures of each class, from CSV files that commands write."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from yt8m import remote
from yt8m.errors import UserError


def read_class_counts(path: str) -> np.ndarray:
    """Number of videos of each class, from a CSV file with a column `Index`.

    The number is in the column Videos or PositiveSegments (of `yt8m count
    --per_class`) or TrainVideoCount (of the dataset's vocabulary.csv).

    Returns:
        int64 [C], up to the last class of the file.

    Raises:
        UserError: the file cannot be read, or a line of it; names it.
    """
    columns = ("Videos", "PositiveSegments", "TrainVideoCount")
    instead = "write it with `yt8m count --per_class=FILE`"
    meaning = "the number of its videos"
    counts = _read(path, "class counts", columns, instead, meaning, int, np.inf)
    found = np.zeros(max(counts, default=-1) + 1, "int64")
    found[list(counts)] = list(counts.values())
    return found


def read_class_rates(path: str, column: str) -> np.ndarray:
    """A figure between 0 and 1 of each class, from a CSV file with a column `Index`.

    Args:
        path: of the file.
        column: its column; a class may have none there (an empty field).

    Returns:
        float64 [C], up to the last class of the file; NaN where there is no figure.

    Raises:
        UserError: the file cannot be read, or a line of it; names it.
    """
    instead, meaning = "take a file that has them", "a number from 0 to 1"
    rates = _read(path, "class figures", (column,), instead, meaning, _rate, 1.0)
    found = np.full(max(rates, default=-1) + 1, np.nan)
    found[list(rates)] = list(rates.values())
    return found


def of_all_classes(
    figures: np.ndarray, num_classes: int, of_the_others: float, path: str
) -> np.ndarray:
    """Figures of all classes of a model: float32 [num_classes].

    Args:
        figures: [C], of the classes up to the last of a file.
        num_classes: of the model.
        of_the_others: what a class after these has.
        path: of the file.

    Raises:
        UserError: the file has a class that the model does not have.
    """
    rest = num_classes - len(figures)
    if rest < 0:
        raise UserError(
            f"{path} has the class {len(figures) - 1}, but the classes are 0 to "
            f"{num_classes - 1}: take a file of the same classes."
        )
    return np.append(figures, np.full(rest, of_the_others)).astype("float32")


def _rate(text: str) -> float:
    return float(text) if text.strip() else np.nan


def _read(
    path: str,
    what: str,
    columns: Sequence[str],
    instead: str,
    meaning: str,
    parse: Callable[[str], Any],
    most: float,
) -> dict[int, Any]:
    """What the first of `columns` that there is says of each class."""
    try:
        rows = csv.DictReader(io.StringIO(_text(path), newline=""))
        header = rows.fieldnames or []
        column = next((c for c in columns if c in header), None)
        if "Index" not in header or column is None:
            raise UserError(
                f"{path} has no columns Index and {' or '.join(columns)}: {instead}."
            )
        figures = {}
        for row in rows:
            try:
                label, figure = int(row["Index"]), parse(row[column])
            except (TypeError, ValueError, AttributeError):
                label = figure = -1
            if label < 0 or label in figures or figure < 0 or figure > most:
                raise UserError(
                    f"{path}, line {rows.line_num}: needs a class, once, and "
                    f"{meaning} in the columns Index and {column}."
                )
            figures[label] = figure
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        reason = getattr(e, "strerror", None) or e
        raise UserError(f"The {what} {path} cannot be read: {reason}.") from e
    return figures


def _text(path: str) -> str:
    """The text of a file; TensorFlow is imported for one like `gs://...` only."""
    if "://" not in path:
        with open(path, "rb") as file:
            return file.read().decode("utf-8-sig")
    import tensorflow as tf

    remote.prepare(path, "class figures")
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return file.read().decode("utf-8-sig")
    except tf.errors.OpError as e:
        raise OSError(e.message.splitlines()[0]) from e
