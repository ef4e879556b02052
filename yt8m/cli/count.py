"""Counts what shards hold: videos and labels, or rated segments and their classes.

    yt8m count --input_data_pattern='train*.tfrecord' --per_class=videos.csv
    yt8m count --input_data_pattern='validate*.tfrecord' --segments \\
        --output_file=segment_label_ids.csv

--output_file is what `inference.py --segment_label_ids_file` takes: the classes that
are rated in the shards.
"""

from collections import Counter

from absl import flags as absl_flags

from yt8m.cli import flags as shared

_SHOWN_CLASSES = 10


def define(flags: shared.FlagValues) -> None:
    absl_flags.DEFINE_string(
        "input_data_pattern", "", "Shards of either level: globs.", flag_values=flags
    )
    absl_flags.DEFINE_bool(
        "segments", False, "Count rated segments, not videos.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "output_file",
        None,
        "With --segments: a file to write with the classes that are rated.",
        flag_values=flags,
    )
    absl_flags.DEFINE_string(
        "per_class",
        None,
        "A CSV file to write with the number of videos, or of positive and of rated "
        "segments, of each class.",
        flag_values=flags,
    )
    shared.vocabulary(flags, "A file with the names of the classes.")


def run(flags: shared.FlagValues) -> int:
    from yt8m.data import files as data_files
    from yt8m.data.vocabulary import load_vocabulary
    from yt8m.errors import UserError

    shared.require(flags, "input_data_pattern", "No shards to count")
    if flags.output_file and not flags.segments:
        raise UserError("--output_file is for the classes of segments: add --segments.")
    files = data_files.list_files(flags.input_data_pattern, "--input_data_pattern")
    for name in ("output_file", "per_class"):
        shared.prepare_output(flags, name, [*files, flags.vocabulary])
    vocabulary = load_vocabulary(flags.vocabulary) if flags.vocabulary else None
    _, sniffed = data_files.sniff_first(files)
    sizes = {name: size for name, (_, size) in sniffed.features.items()}
    features = data_files.describe(sizes) or "no features"
    print(f"files: {len(files):,}, of {sniffed.level} level with {features}")
    columns = _count_segments(files) if flags.segments else _count_videos(files)
    first = next(iter(columns.values()))
    for label, _ in first.most_common(_SHOWN_CLASSES):
        values = [f"{column[label]:,} {name}" for name, column in columns.items()]
        name = "" if vocabulary is None else f" ({vocabulary.name(label)})"
        print(f"class {label}{name}: {', '.join(values)}")
    if flags.output_file:
        from yt8m.data.segments import write_class_ids

        write_class_ids(flags.output_file, sorted(columns["rated segments"]))
    if flags.per_class:
        _write_per_class(flags.per_class, columns, vocabulary)
    return 0


def _count_videos(files: list[str]) -> dict[str, Counter]:
    """Prints the numbers of labels; returns the number of videos of each class."""
    from yt8m.data.index import RecordIndex
    from yt8m.data.labels import read_labels
    from yt8m.progress import Progress

    videos = Counter[int]()
    sizes = Counter[int]()  # number of labels -> number of videos
    index = RecordIndex()
    with Progress(total=sum(index.counts(files))) as progress:
        for block in read_labels(files, index=index):
            for labels in block:
                videos.update(labels)
                sizes[len(labels)] += 1
            progress.update(len(block.ids))
    total, without = sizes.total(), sizes.pop(0, 0)
    print(f"videos: {total:,}, of which {without:,} ({without / total:.1%}) unlabelled")
    if sizes:
        print(
            f"labels: {videos.total():,} of {len(videos):,} classes; "
            f"{min(sizes)} to {max(sizes)} a labelled video, "
            f"{videos.total() / sizes.total():.3f} on average"
        )
    return {"videos": videos}


def _count_segments(files: list[str]) -> dict[str, Counter]:
    """Prints the numbers of ratings; returns those of each class."""
    from yt8m.data.segments import read_ratings
    from yt8m.progress import Progress

    positive, rated = Counter[int](), Counter[int]()
    segments = videos = 0
    last = None
    with Progress(unit="segments") as progress:
        for segment in read_ratings(files):
            rated.update(list(segment.ratings))
            positive.update([c for c, score in segment.ratings.items() if score])
            segments += 1
            videos += segment.video_id != last
            last = segment.video_id
            progress.update(1)
    print(
        f"rated segments: {segments:,} in {videos:,} videos, "
        f"{segments / videos:.3f} on average"
    )
    print(
        f"ratings: {rated.total():,} of {len(rated):,} classes; "
        f"{positive.total():,} ({positive.total() / rated.total():.1%}) are positive"
    )
    return {"positive segments": positive, "rated segments": rated}


def _write_per_class(path: str, columns: dict[str, Counter], vocabulary) -> None:
    import csv
    import io

    from yt8m import whole_files

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ["Index", *(name.title().replace(" ", "") for name in columns)]
    writer.writerow(header if vocabulary is None else [*header, "Name"])
    for label in sorted(set().union(*columns.values())):
        row = [label, *(column[label] for column in columns.values())]
        writer.writerow(row if vocabulary is None else [*row, vocabulary.name(label)])
    whole_files.write_file(path, text.getvalue())
