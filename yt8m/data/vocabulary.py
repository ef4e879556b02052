"""Names of classes and their verticals, from the files that list them.

Told apart by their header:

    Index,TrainVideoCount,KnowledgeGraphId,Name,...,Vertical1,...   vocabulary.csv
    Index,KnowledgeGraphId,Name,...                                 segments of 2019
    label_id,label_name                                             Kaggle 2017, 2018
    (none: line n names class n, from 0)                            MediaPipe's map

The rows of `vocabulary.csv` are sorted by frequency, so that a class is what the
column `Index` says, not the number of its row.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field

import tensorflow as tf

from yt8m.errors import DataError, UserError

_UNNAMED = ("", "???")  # the second in MediaPipe's map
_COLUMNS = {"Index": "Name", "label_id": "label_name"}


@dataclass(frozen=True)
class Vocabulary:
    """Names of classes.

    Attributes:
        names: the name of a class, or its Knowledge Graph id if it has none; classes
            without either are left out.
        verticals: the verticals of a class, the first the main one; those without
            any are left out.
        size: number of classes listed.
    """

    names: dict[int, str] = field(default_factory=dict)
    verticals: dict[int, list[str]] = field(default_factory=dict)
    size: int = 0

    def __len__(self) -> int:
        return self.size

    def name(self, index: int) -> str:
        """The class's name; `class 12` if it is not known."""
        return self.names.get(index, f"class {index}")


def load_vocabulary(path: str) -> Vocabulary:
    """Reads a vocabulary of any of the formats above.

    Raises:
        DataError: another kind of file, or a row that cannot be read; names the file
            and the line.
        UserError: the file cannot be read.
    """
    rows = _rows(path)
    _, header = next(rows, (1, []))
    index_column = next((c for c in _COLUMNS if c in header), None)
    if index_column is None:
        if path.endswith(".csv"):
            raise DataError(
                f"{path}, line 1: a vocabulary's header has the columns Index and "
                f"Name, or label_id and label_name; found {','.join(header)[:60]!r}."
            )
        return _label_map(path)
    name_column = _COLUMNS[index_column]
    if name_column not in header:
        raise DataError(f"{path}, line 1: there is no column {name_column}.")
    names, verticals, listed = {}, {}, set()
    for line, row in rows:
        if header == [
            "label_id",
            "label_name",
        ]:  # Kaggle's names of 2018 have bare commas
            row = [row[0], ",".join(row[1:])]
        if len(row) != len(header):
            raise DataError(
                f"{path}, line {line}: {len(row)} fields, where the header has "
                f"{len(header)}."
            )
        fields = {c: v.strip() for c, v in zip(header, row, strict=True)}
        index = _index(fields[index_column], f"{path}, line {line}")
        if index in listed:
            raise DataError(f"{path}, line {line}: class {index} is there twice.")
        listed.add(index)
        name = fields[name_column] or fields.get("KnowledgeGraphId")
        if name:
            names[index] = name
        own = [v for c, v in fields.items() if c.startswith("Vertical") and v]
        if own:
            verticals[index] = own
    return Vocabulary(names, verticals, len(listed))


def _label_map(path: str) -> Vocabulary:
    lines = [text.strip() for _, text in _lines(path)]
    if not lines:
        raise DataError(f"{path} is empty; a vocabulary names a class in each line.")
    names = {i: name for i, name in enumerate(lines) if name not in _UNNAMED}
    return Vocabulary(names, {}, len(lines))


def _index(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise DataError(f"{where}: a class must be a whole number, not {text!r}.")
    return int(text)


def _rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """Each row's last line, from 1, and fields; a row may take several lines."""
    reader = csv.reader(text for _, text in _lines(path))
    try:
        for row in reader:
            if row:  # not an empty line
                yield reader.line_num, row
    except csv.Error as e:
        raise DataError(f"{path}, line {reader.line_num}: {e}.") from e


def _lines(path: str) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with tf.io.gfile.GFile(path, "rb") as f:
            for number, line in enumerate(f, 1):
                # Some editors put a mark of the encoding first.
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as e:
        raise DataError(f"{path}, line {number}: not text in UTF-8.") from e
    except tf.errors.OpError as e:
        reason = e.message.splitlines()[0]
        raise UserError(f"{path} cannot be read: {reason}") from e
