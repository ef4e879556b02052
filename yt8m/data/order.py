"""Which record comes when: a function of the seed, the epoch and the files alone.

An epoch goes through the files in a permuted order, in groups of `GROUP_FILES`. The
files of a group are read in turns, one record of each, and pass a shuffle buffer of
`window` records, which is emptied before the next group. So every group is a
reproducible stream of its own: a run that resumes finds its group from the counts of
records, and its place within the group by running the same shuffle over record
numbers instead of records. Thread counts play no part.

Without a seed the order is that of the files: groups of one file, no shuffle.
"""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

GROUP_FILES = 16

# What a random draw is for; keeps the draws of one seed apart.
_FILES, _BUFFER, FRAMES = range(3)


def draw_seed(seed: int, purpose: int, number: tf.Tensor) -> tf.Tensor:
    """The seed int64 [2] of draw `number` of `purpose`, in a graph or outside."""
    base = tf.constant([seed, purpose], tf.int64)
    return tf.random.fold_in(base, tf.cast(number, tf.int64))


class Order:
    """The order of the records of `num_files` files over all epochs.

    Groups are numbered through all epochs from 0 on.

    Args:
        num_files: number of files.
        seed: of all draws; None keeps the order of the files.
        window: records in the shuffle buffer.
    """

    def __init__(self, num_files: int, seed: int | None, window: int):
        self._num_files, self._seed, self._window = num_files, seed, window
        self.group_files = 1 if seed is None else GROUP_FILES
        self.groups_per_epoch = -(-num_files // self.group_files)

    def files(self, group: tf.Tensor) -> tf.Tensor:
        """The numbers of the files of `group`, int64 [at most `group_files`]."""
        epoch, place = group // self.groups_per_epoch, group % self.groups_per_epoch
        first = place * self.group_files
        return self._permutation(epoch)[first : first + self.group_files]

    def _permutation(self, epoch: tf.Tensor) -> tf.Tensor:
        """The numbers of all files in the order of `epoch`, int64 [files]."""
        files = tf.range(self._num_files, dtype=tf.int64)
        if self._seed is None:
            return files
        draw = draw_seed(self._seed, _FILES, epoch)
        return tf.random.experimental.stateless_shuffle(files, draw)

    def shuffle(self, records: tf.data.Dataset, group: tf.Tensor) -> tf.data.Dataset:
        """Passes the records of `group` through the shuffle buffer."""
        if self._seed is None:
            return records
        draw = draw_seed(self._seed, _BUFFER, group)
        # `Dataset.shuffle` would mix in TensorFlow's global seed.
        shuffled = tf.raw_ops.ShuffleDataset(
            input_dataset=tf.data.experimental.to_variant(records),
            buffer_size=self._window,
            seed=draw[0],
            seed2=draw[1],
            reshuffle_each_iteration=False,
            output_types=[records.element_spec.dtype],
            output_shapes=[records.element_spec.shape],
        )
        return tf.data.experimental.from_variant(shuffled, records.element_spec)

    def find(self, position: int, counts: np.ndarray) -> tuple[int, int]:
        """The group of the record at `position` of the stream, and its place there."""
        epoch, rest = divmod(position, int(counts.sum()))
        sizes = counts[self._permutation(tf.constant(epoch, tf.int64)).numpy()]
        firsts = np.arange(0, self._num_files, self.group_files)
        ends = np.cumsum(np.add.reduceat(sizes, firsts))
        place = int(np.searchsorted(ends, rest, side="right"))
        group = epoch * self.groups_per_epoch + place
        return group, rest - int(ends[place - 1] if place else 0)

    def sequence(self, group: int, counts: np.ndarray) -> np.ndarray:
        """The records of `group` in their order: int64 [N, 2], file and number."""
        files = self.files(tf.constant(group, tf.int64)).numpy()
        sizes = counts[files]
        numbers = np.concatenate([np.arange(size) for size in sizes])
        turns = np.repeat(np.arange(len(files)), sizes)
        records = np.stack([np.repeat(files, sizes), numbers], axis=1)
        records = records[np.lexsort((turns, numbers))]
        if not len(records):
            return records
        shuffled = self.shuffle(tf.data.Dataset.range(len(records)), group)
        return records[shuffled.batch(len(records)).get_single_element().numpy()]

    def between(
        self, position: int, end: int, counts: np.ndarray
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Each group that overlaps `position` .. `end` - 1 and its records there."""
        while position < end:
            group, place = self.find(position, counts)
            records = self.sequence(group, counts)[place : place + end - position]
            yield group, records
            position += len(records)
