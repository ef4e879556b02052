"""Downloads shards of the dataset: in parallel, checked, resumed where it stopped.

    yt8m download --partition=2/frame/train --shard=1,100 --output_dir=frame

Partitions are VERSION/KIND/SPLIT: 1 (2017) with video_level and frame_level, 2 (2018)
with video and frame, 3 (2019, rated segments) with frame; train, validate, test. Names
and shares are those of the dataset's download.py. Every file is checked against its
MD5; the same command again checks what is there and goes on with the rest. The exit
status is 1 if any file is missing in the end.
"""

import sys

from absl import flags as absl_flags

from yt8m.cli import flags as shared
from yt8m.data import download
from yt8m.errors import UserError

LOCAL = ("output_dir", "base_url")


def define(flags: shared.FlagValues) -> None:
    def string(name, default, help):
        absl_flags.DEFINE_string(name, default, help, flag_values=flags)

    string("partition", "", "What to download, such as 2/frame/train.")
    shared.output_dir(flags, "Where to write the files; a local directory.")
    string("shard", "1,1", "X,Y: the X-th of Y shares of the files, from 1.")
    absl_flags.DEFINE_enum(
        "mirror",
        download.MIRRORS[0],
        download.MIRRORS,
        "Where to download from.",
        flag_values=flags,
    )
    string(
        "base_url",
        "",
        "A copy of the dataset to use in place of data.yt8m.org and its mirrors, with "
        "the same paths: BASE/2/download_plans/frame_train.json, BASE/2/frame/train/.",
    )
    absl_flags.DEFINE_integer(
        "num_workers", 8, "Files downloaded at the same time.", 1, flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "retries",
        8,
        "How often a file is tried again in a row without getting further.",
        0,
        flag_values=flags,
    )
    absl_flags.DEFINE_float(
        "timeout",
        30.0,
        "Seconds after which a silent connection is given up.",
        0.001,
        flag_values=flags,
    )
    absl_flags.DEFINE_bool(
        "dry_run",
        False,
        "Says how many files and bytes there are, and writes nothing.",
        flag_values=flags,
    )


def run(flags: shared.FlagValues) -> int:
    shared.require(flags, "partition", "No partition to download")
    download.check_partition(flags.partition)
    if not flags.dry_run:
        shared.require(flags, "output_dir", "No directory to write")
    if "://" in flags.output_dir:
        raise UserError(
            f"--output_dir={flags.output_dir} must be local: download to a directory, "
            f"then copy it, as by gsutil -m cp DIR/*.tfrecord {flags.output_dir}"
        )
    if flags.base_url and shared.given(flags, "mirror"):
        raise UserError("--base_url and --mirror exclude each other: give one.")
    index, count = _parse_share(flags.shard)
    downloader = download.Downloader(
        flags.partition,
        flags.base_url or download.DATASET_URL,
        flags.base_url or download.MIRROR_URL.format(mirror=flags.mirror),
        num_workers=flags.num_workers,
        retries=flags.retries,
        timeout=flags.timeout,
    )
    plan = downloader.read_plan()
    shards = download.take_share(plan, index, count)
    if not shards:
        raise UserError(
            f"--shard={flags.shard}: none of the {len(plan):,} files is in this share; "
            "take another, or fewer shares."
        )
    if flags.dry_run:
        _announce(downloader, shards, flags.output_dir)
        return 0
    summary = downloader.download(shards, flags.output_dir)
    for name, reason in summary.failed.items():
        print(f"{name}: {reason}", file=sys.stderr)
    rate = summary.num_bytes / max(summary.seconds, 1e-9)
    print(
        f"{flags.partition}: {len(shards):,} files, {summary.downloaded:,} downloaded, "
        f"{summary.skipped:,} there already, {len(summary.failed):,} failed; "
        f"{download.format_bytes(summary.num_bytes)} in {summary.seconds:,.1f} s, "
        f"{download.format_bytes(int(rate))}/s."
    )
    if summary.failed:
        print("Run the same command again for those that failed.", file=sys.stderr)
    return 1 if summary.failed else 0


def _parse_share(text: str) -> tuple[int, int]:
    try:
        index, count = (int(part) for part in text.split(","))
    except ValueError:
        index, count = 0, 0
    if not 1 <= index <= count:
        raise UserError(
            f"--shard={text} must be X,Y with X from 1 to Y: --shard=1,100."
        )
    return index, count


def _announce(
    downloader: download.Downloader, shards: list[download.Shard], output_dir: str
) -> None:
    sizes = downloader.sizes(shards)
    known = [size for size in sizes if size is not None]
    total = sum(known)
    print(
        f"{downloader.partition}: {len(shards):,} files, "
        f"{download.format_bytes(total)} ({total:,} bytes)."
    )
    if len(known) < len(sizes):
        unknown = len(sizes) - len(known)
        print(f"The server does not tell the size of {unknown:,} of them.")
    if output_dir:
        there = sum(
            download.bytes_there(shard, output_dir, size)
            for shard, size in zip(shards, sizes, strict=True)
        )
        print(f"{output_dir} holds {download.format_bytes(there)} of that, unchecked.")
