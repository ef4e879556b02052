"""Downloads shards of YouTube-8M: in parallel, checked, resumed, retried.

Facts of the dataset's own script, `data.yt8m.org/download.py`:

- A partition is VERSION/KIND/SPLIT. Its plan is
  `http://data.yt8m.org/VERSION/download_plans/KIND_SPLIT.json`, that is `{"files":
  {name: MD5 of the file}}`; a file is `http://MIRROR.data.yt8m.org/PARTITION/NAME`.
- Share X of Y holds the names whose own MD5 (the name's, not the file's), as an
  integer modulo Y, is X - 1.
- Names of 2018 and 2019 end in two letters of a-z A-Z 0-9, in this order the digits of
  a number in base 62; on disk they are four decimal digits (`trainaA.tfrecord` is
  written as `train0026.tfrecord`). Those of 2017 (`train-0`, `train--`) are in
  another base, and stay as they are.

A file is written as NAME.part, locked against other processes, and renamed when its
MD5 is that of the plan; a part left behind is gone on with.
"""

import contextlib
import email.utils
import fcntl
import hashlib
import http.client
import json
import logging
import os
import random
import re
import shutil
import string
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, BinaryIO

from yt8m.errors import DataError, UserError, near_matches
from yt8m.progress import Progress

log = logging.getLogger("yt8m")

KINDS = {"1": ("video_level", "frame_level"), "2": ("video", "frame"), "3": ("frame",)}
SPLITS = ("train", "validate", "test")
MIRRORS = ("us", "eu", "asia")
DATASET_URL = "http://data.yt8m.org"
MIRROR_URL = "http://{mirror}.data.yt8m.org"

_DIGITS = string.ascii_lowercase + string.ascii_uppercase + string.digits
_CHUNK = 1 << 18  # bytes
_MOST_PLAN_BYTES = 1 << 25  # a plan of 3,844 files takes 230 kB
_MEGABYTE = 10**6
# Too slow, too many, out of order for a while; 416 if a part is longer than its file.
_PASSING_STATUS = {408, 416, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Shard:
    """A file of a plan.

    Attributes:
        name: in the plan and the URL.
        file_name: on disk.
        md5: of its content, 32 hexadecimal digits.
    """

    name: str
    file_name: str
    md5: str


@dataclass(frozen=True)
class Summary:
    """What a download did.

    Attributes:
        downloaded: number of files.
        skipped: number of files that were there already, with the right MD5.
        failed: why, for the name of each file that is still missing.
        num_bytes: bytes received, repeated ones included.
        seconds: time taken.
    """

    downloaded: int
    skipped: int
    failed: dict[str, str]
    num_bytes: int
    seconds: float


def check_partition(partition: str) -> None:
    """Raises `UserError` with near matches if there is no such partition."""
    known = [
        f"{v}/{k}/{s}" for v, kinds in KINDS.items() for k in kinds for s in SPLITS
    ]
    if partition not in known:
        raise UserError(
            f"--partition={partition} is unknown. {near_matches(partition, known)}"
        )


def number_letters(name: str) -> str | None:
    """The name on disk, or None if the letters are none of base 62.

    `trainaa.tfrecord` gives `train0000.tfrecord`.
    """
    stem, dot, suffix = name.partition(".")
    if len(stem) < 2 or not all(c in _DIGITS for c in stem[-2:]):
        return None
    first, second = (_DIGITS.index(c) for c in stem[-2:])
    return f"{stem[:-2]}{len(_DIGITS) * first + second:04d}{dot}{suffix}"


def parse_plan(text: bytes, source: str) -> list[Shard]:
    """Reads a plan; `source` is named in errors. Shards are sorted by name on disk.

    Raises:
        DataError: it is not a plan, or names a file that is not a plain name.
    """
    try:
        files = json.loads(text)["files"]
        md5_of = {name: md5.lower() for name, md5 in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise DataError(
            f'{source} is not a download plan, {{"files": {{name: MD5}}}}; see what '
            "it holds, or try again later."
        ) from e
    for name, md5 in md5_of.items():
        # The name becomes one on disk: nothing that leads out of the directory.
        if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", name):
            raise DataError(f"{source} names a file that no shard is called: {name!r}.")
        if not re.fullmatch("[0-9a-f]{32}", md5):
            raise DataError(f"{source}: the MD5 of {name} is {md5!r}.")
    if not md5_of:
        raise DataError(f"{source} names no file.")
    on_disk = {name: number_letters(name) for name in md5_of}
    if None in on_disk.values():  # 2017
        on_disk = {name: name for name in md5_of}
    shards = [Shard(name, on_disk[name], md5) for name, md5 in md5_of.items()]
    return sorted(shards, key=lambda shard: shard.file_name)


def take_share(shards: Sequence[Shard], index: int, count: int) -> list[Shard]:
    """Share `index` (from 1) of `count`: the same files as the dataset's script."""

    def number(shard: Shard) -> int:
        digest = hashlib.md5(shard.name.encode(), usedforsecurity=False)
        return int(digest.hexdigest(), 16)

    return [shard for shard in shards if number(shard) % count == index - 1]


def retry_delay(
    failures: int, retry_after: float = 0.0, first: float = 1.0, longest: float = 60.0
) -> float:
    """Seconds before the next try, after `failures` in a row, at least one.

    Doubles with every failure, less up to a half at random, so that clients do not
    come back together; at least the server's `retry_after`, at most `longest`.
    """
    backoff = first * 2.0 ** min(failures - 1, 30) * random.uniform(0.5, 1.0)
    return min(max(backoff, retry_after), longest)


class Client:
    """Reads from web servers, and tries again what fails for a while.

    Args:
        retries: how often a file is tried again in a row without getting further.
        timeout: seconds after which a silent connection is given up.
        first_delay: seconds before the first retry; doubles from there.
        longest_delay: seconds, the most that is waited, whatever a server asks.
    """

    def __init__(
        self,
        retries: int = 8,
        timeout: float = 30.0,
        first_delay: float = 1.0,
        longest_delay: float = 60.0,
    ):
        self.retries = retries
        self.timeout = timeout
        self.first_delay = first_delay
        self.longest_delay = longest_delay
        self._stop = threading.Event()

    def read(self, url: str, most_bytes: int) -> bytes:
        """What is at `url`, cut after `most_bytes`.

        Raises:
            UserError: it cannot be read.
        """
        try:
            return self._read(url, most_bytes)
        except _Failed as e:
            raise UserError(f"{url} cannot be read: {e}.") from e

    def _read(self, url: str, most_bytes: int) -> bytes:
        def attempt() -> bytes:
            text = bytearray()
            with self._request(url) as response:
                for chunk in _receive(response):
                    text += chunk
                    if len(text) > most_bytes:
                        break
            return bytes(text[:most_bytes])

        return self._persist(attempt, url)

    def _request(self, url: str, method: str = "GET", start: int = 0):
        headers = {"User-Agent": "yt8m"} | (
            {"Range": f"bytes={start}-"} if start else {}
        )
        request = urllib.request.Request(url, headers=headers, method=method)
        try:
            return urllib.request.urlopen(request, timeout=self.timeout)
        except urllib.error.HTTPError as e:
            e.close()
            raise _Failed(
                f"HTTP {e.code} {e.reason}",
                status=e.code,
                passing=e.code in _PASSING_STATUS,
                retry_after=_seconds(e.headers.get("Retry-After", "")),
            ) from e
        except (http.client.InvalidURL, UnicodeError) as e:  # of --base_url
            raise _Failed(str(e), passing=False) from e
        except (OSError, http.client.HTTPException) as e:
            raise _Failed(_reason(e)) from e

    def _persist(
        self, attempt: Callable[[], Any], name: str, position=lambda: 0
    ) -> Any:
        """Tries until it succeeds or has failed too often without getting further."""
        failures, furthest = 0, position()
        while True:
            try:
                return attempt()
            except _Failed as e:
                failures = 1 if position() > furthest else failures + 1
                furthest = max(furthest, position())
                if not e.passing or failures > self.retries:
                    raise
                delay = retry_delay(
                    failures, e.retry_after, self.first_delay, self.longest_delay
                )
                log.warning("%s: %s; again in %.1f s", name, e, delay)
            if self._stop.wait(delay):
                raise _Stopped


class Downloader(Client):
    """Downloads the shards of a partition.

        downloader = Downloader("2/frame/train")
        shards = take_share(downloader.read_plan(), 1, 100)
        summary = downloader.download(shards, "frame")

    Args:
        partition: VERSION/KIND/SPLIT.
        plan_url: where the plans are, without `/VERSION/download_plans/...`.
        file_url: where the files are, without `/VERSION/KIND/SPLIT/...`.
        num_workers: files downloaded at the same time.
        Others as `Client`.

    Raises:
        UserError: an unknown partition, or a URL that is not one.
    """

    def __init__(
        self,
        partition: str,
        plan_url: str = DATASET_URL,
        file_url: str = MIRROR_URL.format(mirror=MIRRORS[0]),
        *,
        num_workers: int = 8,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_partition(partition)
        for url in (plan_url, file_url):
            if not re.match("https?://[^/]", url):
                raise UserError(f"{url} must begin with http:// or https://.")
        version, kind, split = partition.split("/")
        plans = f"{plan_url.rstrip('/')}/{version}/download_plans"
        self.partition = partition
        self.plan_url = f"{plans}/{kind}_{split}.json"
        self.file_url = f"{file_url.rstrip('/')}/{partition}"
        self.num_workers = num_workers

    def read_plan(self) -> list[Shard]:
        """The partition's shards.

        Raises:
            UserError: the plan cannot be read.
            DataError: it is not a plan.
        """

        try:
            # Cut, it is no JSON.
            text = self._read(self.plan_url, _MOST_PLAN_BYTES)
        except _Failed as e:
            raise UserError(
                f"The plan of --partition={self.partition}, {self.plan_url}, cannot be "
                f"read: {e}."
            ) from e
        return parse_plan(text, self.plan_url)

    def sizes(self, shards: Sequence[Shard]) -> list[int | None]:
        """Bytes of each shard; None where the server does not tell."""

        def size(shard: Shard) -> int | None:
            def attempt() -> int | None:
                with self._request(self._url(shard), "HEAD") as response:
                    return _content_length(response)

            return self._persist(attempt, shard.name)

        log.info("Asking for the sizes of %s files.", f"{len(shards):,}")
        sizes = self._map(size, shards)
        return [None if isinstance(size, _Failed) else size for size in sizes]

    def download(self, shards: Sequence[Shard], output_dir: str) -> Summary:
        """Downloads what is missing; files that are there are checked.

        Ctrl-C and SIGTERM stop within `timeout` seconds and leave the parts.

        Raises:
            UserError: the directory cannot be written, has too little space, or holds
            other files under the same names.
        """
        start = time.monotonic()
        with _explained(output_dir):
            os.makedirs(output_dir, exist_ok=True)
        sizes = self.sizes(shards)
        missing = {
            shard.name: (size or 0) - bytes_there(shard, output_dir, size)
            for shard, size in zip(shards, sizes, strict=True)
        }
        _refuse_others(output_dir, shards, sizes)
        _check_space(output_dir, sum(missing.values()))
        with _Bar(missing) as bar:
            results = self._map(lambda s: self._fetch(s, output_dir, bar), shards)
        outcomes = dict(zip((shard.name for shard in shards), results, strict=True))
        return Summary(
            downloaded=results.count("downloaded"),
            skipped=results.count("skipped"),
            failed={n: str(r) for n, r in outcomes.items() if isinstance(r, _Failed)},
            num_bytes=bar.received,
            seconds=time.monotonic() - start,
        )

    # --- one file --------------------------------------------------------------------

    def _fetch(self, shard: Shard, output_dir: str, bar: "_Bar") -> str:
        try:
            # The dataset's script also accepts what older versions of it wrote.
            for name in dict.fromkeys((shard.file_name, shard.name)):
                if self._is_right(os.path.join(output_dir, name), shard.md5):
                    return "skipped"
            path = os.path.join(output_dir, shard.file_name)
            if os.path.isfile(path):
                log.warning("%s: its MD5 is not that of the plan; replacing it", path)
            with _Part(f"{path}.part", self._stop) as part:
                self._persist(
                    lambda: self._continue(shard, part, bar),
                    shard.name,
                    lambda: part.size,
                )
                part.rename(path)
            return "downloaded"
        finally:
            if not self._stop.is_set():
                bar.finish(shard.name)

    def _is_right(self, path: str, md5: str) -> bool:
        if not os.path.isfile(path):
            return False
        with _explained(path), open(path, "rb") as file:
            return _md5(file, self._stop).hexdigest() == md5

    def _continue(self, shard: Shard, part: "_Part", bar: "_Bar") -> None:
        """Receives what the part misses.

        Raises:
            _Failed: it is not the file yet; what is usable stays in the part.
        """
        if part.md5 == shard.md5:  # stopped between the last byte and the renaming
            return
        try:
            response = self._request(self._url(shard), start=part.size)
        except _Failed as e:
            if e.status == 416:
                part.restart()
            raise
        with response:
            total = _content_length(response)
            if response.status == 206:
                first, total = _content_range(response)
                if first != part.size:
                    part.restart()
                    raise _Failed("the server sent another range than the one asked")
            else:
                part.restart()
            bar.expect(shard.name, (total or 0) - part.size)
            for chunk in _receive(response):
                if self._stop.is_set():
                    raise _Stopped
                part.append(chunk)
                bar.receive(shard.name, len(chunk))
        if total is not None and part.size < total:
            raise _Failed(f"the server sent {part.size:,} of {total:,} bytes")
        if part.md5 != shard.md5:
            wrong = part.md5
            part.restart()
            raise _Failed(f"its MD5 is {wrong}, by the plan it is {shard.md5}")

    # --- the network -----------------------------------------------------------------

    def _url(self, shard: Shard) -> str:
        return f"{self.file_url}/{shard.name}"

    def _map(self, function: Callable[[Shard], Any], shards: Sequence[Shard]) -> list:
        """`function` of each shard, in parallel; the `_Failed` of those that fail."""

        def outcome(shard: Shard) -> Any:
            try:
                return function(shard)
            except _Failed as e:
                return e

        self._stop.clear()
        with ThreadPoolExecutor(self.num_workers) as pool:
            try:
                futures = [pool.submit(outcome, shard) for shard in shards]
                for future in as_completed(futures):
                    future.result()
            except BaseException as e:
                if not isinstance(e, Exception):
                    log.info("Stopping; the same command goes on from there.")
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [future.result() for future in futures]


def bytes_there(shard: Shard, output_dir: str, size: int | None) -> int:
    """How many of a shard's `size` bytes the directory holds, going by sizes alone."""
    if size is None:
        return 0
    for name in (shard.file_name, shard.name):
        if _file_size(os.path.join(output_dir, name)) == size:
            return size
    return min(_file_size(os.path.join(output_dir, f"{shard.file_name}.part")), size)


def format_bytes(count: int) -> str:
    """`12.4 GB`, `3.1 MB`."""
    unit, name = (10**9, "GB") if count >= 10**9 else (_MEGABYTE, "MB")
    return f"{count / unit:,.1f} {name}"


class _Failed(Exception):
    """A request, or a file, that failed; `passing` if it may succeed later."""

    def __init__(
        self,
        reason: str,
        *,
        status: int | None = None,
        passing: bool = True,
        retry_after: float = 0.0,
    ):
        super().__init__(reason)
        self.status = status
        self.passing = passing
        self.retry_after = retry_after


class _Stopped(Exception):
    """The main thread has given up."""


class _Bar:
    """One progress bar for all files: the megabytes that are yet to be received.

    Args:
        missing: bytes expected of each file; unknown ones are added once known.
    """

    def __init__(self, missing: dict[str, int]):
        self.received = 0
        self._missing = dict(missing)
        self._left = sum(missing.values())
        self._finished = 0
        self._lock = threading.Lock()
        self._progress = Progress(unit="MB")
        self._show()

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *exception) -> None:
        self._progress.close()

    def expect(self, name: str, count: int) -> None:
        """Notes that `count` bytes of a file are missing."""
        with self._lock:
            self._left += max(count, 0) - self._missing[name]
            self._missing[name] = max(count, 0)
            self._show()

    def receive(self, name: str, count: int) -> None:
        with self._lock:
            expected = min(count, self._missing[name])
            self._missing[name] -= expected
            self._left -= expected
            self.received += count
            self._show()

    def finish(self, name: str) -> None:
        """Notes that no more of a file will come, be it whole or not."""
        with self._lock:
            self._left -= self._missing.pop(name)
            self._finished += 1
            self._show()

    def _show(self) -> None:
        files = f"{self._finished:,} of {self._finished + len(self._missing):,}"
        done, left = self.received // _MEGABYTE, -(-self._left // _MEGABYTE)
        self._progress.total = done + left
        self._progress.update(done - self._progress.done, files=files)


class _Part:
    """The beginning of a file, on disk under a temporary name, locked, and its MD5.

    What was there before is kept and hashed.

    Raises:
        _Failed: another process holds it.
        UserError: it cannot be written.
    """

    def __init__(self, path: str, stop: threading.Event):
        self.path = path
        self._file = self._open()
        try:
            with _explained(path):
                self._file.seek(0)
                self._hash = _md5(self._file, stop)
                self.size = self._file.tell()
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> BinaryIO:
        while True:
            with _explained(self.path):
                file = open(self.path, "a+b")  # noqa: SIM115
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                file.close()
                raise _Failed("another process is downloading it", passing=False) from e
            except OSError:
                pass  # a file system without locks
            # Another process may have renamed or removed it before it was locked.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                    return file
            file.close()

    @property
    def md5(self) -> str:
        """MD5 of what is there, in hexadecimal."""
        return self._hash.hexdigest()

    def append(self, data: bytes) -> None:
        with _explained(self.path):
            self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    def restart(self) -> None:
        """Throws away what is there."""
        with _explained(self.path):
            self._file.truncate(0)
        self._hash, self.size = hashlib.md5(usedforsecurity=False), 0

    def rename(self, path: str) -> None:
        with _explained(path):
            self._file.flush()
            os.replace(self.path, path)

    def __enter__(self) -> "_Part":
        return self

    def __exit__(self, kind, *exception) -> None:
        with contextlib.suppress(OSError):  # what fails here failed before
            if kind is not None and not self.size:
                os.remove(self.path)
        with contextlib.suppress(OSError):
            self._file.close()


def _md5(file: BinaryIO, stop: threading.Event):
    """The MD5 object of the rest of a file, in bounded memory."""
    digest = hashlib.md5(usedforsecurity=False)
    while chunk := file.read(_CHUNK):
        if stop.is_set():
            raise _Stopped
        digest.update(chunk)
    return digest


def _receive(response) -> Iterator[bytes]:
    """The body as it comes; raises `_Failed` if it ends early."""
    missing = _content_length(response)
    while missing is None or missing > 0:
        try:
            chunk = response.read1(min(missing or _CHUNK, _CHUNK))
        except (OSError, http.client.HTTPException) as e:
            raise _Failed(_reason(e)) from e
        if not chunk:
            break
        if missing is not None:
            missing -= len(chunk)
        yield chunk
    if missing:
        raise _Failed(f"the connection was cut {missing:,} bytes before the end")


def _content_length(response) -> int | None:
    text = response.headers.get("Content-Length", "")
    chunked = response.headers.get("Transfer-Encoding")
    return int(text) if re.fullmatch("[0-9]{1,18}", text) and not chunked else None


def _content_range(response) -> tuple[int | None, int | None]:
    """The first byte's place and the size of the file; None if they are not told."""
    text = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", text.strip())
    if not found:
        return None, None
    first, total = found.groups()
    return int(first), None if total == "*" else int(total)


def _seconds(retry_after: str) -> float:
    """A Retry-After header, seconds or a date, as seconds; 0 if it is neither."""
    if re.fullmatch("[0-9]{1,9}", retry_after.strip()):
        return float(retry_after)
    with contextlib.suppress(ValueError, OverflowError):
        date = email.utils.parsedate_tz(retry_after)
        if date:
            return max(email.utils.mktime_tz(date) - time.time(), 0.0)
    return 0.0


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)  # of a URLError
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return text[:1].lower() + text[1:]


def _file_size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def _refuse_others(
    output_dir: str, shards: Sequence[Shard], sizes: Sequence[int | None]
) -> None:
    """Keeps the files of another partition, whose names are the same, from loss."""
    found = [
        (_file_size(os.path.join(output_dir, shard.file_name)), size)
        for shard, size in zip(shards, sizes, strict=True)
    ]
    found = [(here, size) for here, size in found if here and size is not None]
    # One alone may be the rest of a download that was cut short.
    if len(found) > 1 and all(here != size for here, size in found):
        raise UserError(
            f"{output_dir} holds {len(found):,} files of these names, and none has the "
            "right size: if they are of another partition, give another --output_dir; "
            "if not, remove them."
        )


def _check_space(output_dir: str, needed: int) -> None:
    with _explained(output_dir):
        disk = shutil.disk_usage(output_dir)
    if disk.total and needed > disk.free:  # some file systems report nothing at all
        raise UserError(
            f"{output_dir} has {format_bytes(disk.free)} free and "
            f"{format_bytes(needed)} are to come: make space, or take a share of the "
            "files, such as --shard=1,100."
        )


@contextlib.contextmanager
def _explained(path: str):
    """Words an error of the local disk: it ends everything, unlike one of a network."""
    try:
        yield
    except OSError as e:
        reason = e.strerror or e
        raise UserError(
            f"{path}: {reason}; mend it and run the same command again, which goes on "
            "from there."
        ) from e
