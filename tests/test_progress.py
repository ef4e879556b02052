"""The progress line: what it says, when, and where."""

import io

import pytest

from yt8m.progress import Progress


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make(stream, **kwargs):
    clock = Clock()
    return Progress(stream=stream, clock=clock, **kwargs), clock


def test_a_log_gets_one_line_in_ten_seconds_and_one_at_the_end():
    stream = io.StringIO()
    progress, clock = make(stream, total=1000)
    for _ in range(21):
        clock.now += 1.0
        progress.update(10)
    progress.close()
    lines = stream.getvalue().splitlines()
    assert lines == [
        "100 of 1,000 videos (10.0%) | 10 videos/s | 0:10 elapsed, 1:30 left",
        "200 of 1,000 videos (20.0%) | 10 videos/s | 0:20 elapsed, 1:20 left",
        "210 of 1,000 videos (21.0%) | 10 videos/s | 0:21 elapsed",
    ]


def test_the_first_update_does_not_enter_the_time_left():
    stream = io.StringIO()
    progress, clock = make(stream, total=300)
    clock.now += 5.0  # tracing
    progress.update(100)
    clock.now += 5.0
    progress.update(100)
    assert "20 videos/s" in stream.getvalue()
    assert "0:05 left" in stream.getvalue()


def test_the_last_line_gives_the_rate_over_the_whole_time():
    stream = io.StringIO()
    progress, clock = make(stream, total=20)
    clock.now += 3.0
    progress.update(10)
    clock.now += 1.0
    progress.update(10)
    progress.close()
    assert stream.getvalue() == "20 of 20 videos (100.0%) | 5 videos/s | 0:04 elapsed\n"


def test_what_was_done_before_counts_but_not_in_the_rate():
    stream = io.StringIO()
    progress, clock = make(stream, total=1000, unit="steps", initial=900)
    clock.now += 10.0
    progress.update(20)
    assert stream.getvalue() == (
        "920 of 1,000 steps (92.0%) | 2 steps/s | 0:10 elapsed, 0:40 left\n"
    )


@pytest.mark.parametrize("total", [None, 0])
def test_without_a_total_there_is_no_percentage_and_no_time_left(total):
    stream = io.StringIO()
    progress, clock = make(stream, total=total)
    clock.now += 3600 + 125
    progress.update(7450)
    progress.close()
    last = stream.getvalue().splitlines()[-1]
    assert last == "7,450 videos | 2 videos/s | 1:02:05 elapsed"


def test_fields_stay_until_they_change():
    stream = io.StringIO()
    progress, clock = make(stream)
    progress.update(0, loss=1.23456789, GAP="0.500")
    progress.update(0, loss=0.5)
    clock.now += 10.0
    progress.update(5)
    assert stream.getvalue().endswith("| loss 0.5 | GAP 0.500\n")


def test_a_terminal_gets_a_bar_drawn_over_itself_in_one_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    progress, clock = make(stream, total=40)
    for _ in range(4):
        clock.now += 1.0
        progress.update(10)
    progress.close()
    drawn = stream.getvalue().split("\r")[1:]
    assert len(drawn) == 5
    assert drawn[1].startswith("[##########..........] 20 of 40 videos (50.0%)")
    assert all(len(d.removesuffix("\n").removesuffix("\x1b[K")) < 60 for d in drawn)
    assert stream.getvalue().count("\n") == 1 and stream.getvalue().endswith("\n")


def test_a_terminal_is_not_redrawn_more_than_ten_times_a_second():
    stream = Terminal()
    progress, clock = make(stream, total=1000)
    for _ in range(1000):
        clock.now += 0.001
        progress.update(1)
    assert stream.getvalue().count("\r") <= 10


def test_closing_twice_or_by_an_exception_writes_one_last_line():
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Progress(stream=stream) as progress:
        progress.update(3)
        raise KeyboardInterrupt
    progress.close()
    assert stream.getvalue().startswith("3 videos | ")
    assert stream.getvalue().count("\n") == 1


def test_the_stream_is_standard_error_unless_told(capsys):
    with Progress(total=1) as progress:
        progress.update(1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("1 of 1 videos (100.0%)")
