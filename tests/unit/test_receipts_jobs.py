"""A bundle whose lines several processes share: the same report as from one, and the same error of the same line."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest

import muniment.receipts_jobs as jobs
from muniment.errors import FormatError, OutOfOrder, VerificationError
from muniment.receipt import Receipt
from muniment.receipts import Header, ReceiptsWriter
from muniment.receipts_jobs import verify_receipts_with
from muniment.receipts_report import verify_receipts
from tests.client.fake_log import FakeLog

COUNT = 24


@pytest.fixture(scope="module")
def log() -> FakeLog:
    made = FakeLog()
    made.add_events([{"actor": f"a{n}", "n": n, f"m{n % 5}": n} for n in range(COUNT - 2)])
    made.add_raw([b"raw"])
    return made


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of four lines, and a pool for three of them."""
    monkeypatch.setattr(jobs, "LINES", 4)
    monkeypatch.setattr(jobs, "WORTH", 3)
    monkeypatch.setattr(jobs, "_AHEAD", 1)


def bundle(
    log: FakeLog, indices: list[int], claimed: tuple[int, int] | None, cut: Callable[[Receipt], Receipt] = lambda r: r
) -> list[bytes]:
    lines: list[bytes] = []
    writer = ReceiptsWriter(lines.append, Header(log.origin, log.note(log.size), claimed))
    for index in indices:
        writer.add(cut(log.receipt(index)))
    writer.end()
    return lines


def outcome(run: Callable[[], object]) -> object:
    """What a verifier says: its report, or its error with the line."""
    try:
        report = run()
    except (FormatError, VerificationError) as error:
        return type(error), str(error), error.line
    return report.to_json(), report.proved_text(), report.shown  # type: ignore[attr-defined]


def compare(log: FakeLog, lines: list[bytes]) -> object:
    one = outcome(lambda: verify_receipts(lines, log.policy))
    assert outcome(lambda: verify_receipts_with(2, lines, log.policy, ThreadPoolExecutor)) == one
    return one


def test_the_same_report(log: FakeLog) -> None:
    hidden = lambda receipt: receipt.disclose(()) if receipt.commitment else receipt  # noqa: E731
    erased = [
        line.replace(b'"hashes":', b'"erasures":[{}],"hashes":') for line in bundle(log, list(range(COUNT)), None)
    ]
    for lines in (
        bundle(log, list(range(COUNT)), (0, COUNT)),
        bundle(log, list(range(0, COUNT, 2)), None),
        bundle(log, list(range(1, COUNT)), (1, COUNT), hidden),
        bundle(log, [1, 2], None),
        bundle(log, [], None),
        erased,
    ):
        assert isinstance(compare(log, lines), tuple)
        assert outcome(lambda lines=lines: verify_receipts_with(2, lines, log.policy))[0]["verified"]  # type: ignore[misc,index]


def test_many_names_are_counted_alike() -> None:
    log = FakeLog()
    log.add_events([{f"m{(7 * n + k) % 150}": 1 for k in range(30)} for n in range(20)])
    compare(log, bundle(log, list(range(21)), (0, 21), lambda r: r.disclose(()) if r.commitment else r))


@pytest.mark.parametrize("claimed", [(0, COUNT), None])
def test_the_same_error_of_the_same_line(log: FakeLog, claimed: tuple[int, int] | None) -> None:
    good = bundle(log, list(range(COUNT)), claimed)
    end = good[-1]
    for at in range(len(good)):
        without = [*good[:at], *good[at + 1 :]]
        for lines in (
            without,
            [*good[:at], good[at][:-1] + b" \n", *good[at + 1 :]],
            [*good[:at], good[at].replace(b'"leaf":"', b'"leaf":"AAAA'), *good[at + 1 :]],
            [*good[: at + 1], good[at], *good[at + 1 :]],
            [*good[: at + 1], end, *good[at + 1 :]],
            [*good[: at + 1], b'{"count":%d,"typ":"muniment/receipts-end@v1"}\n' % at, *good[at + 1 :]],
            good[:at],
            [*good[:at], good[at][:-1]],
            [*good[: max(1, at - 1)], *good[max(1, at - 1) : at + 1][::-1], *good[at + 1 :]],
        ):
            compare(log, lines)
    assert compare(log, [*good, b"\n"])[0] is OutOfOrder  # type: ignore[index]


def test_few_lines_are_read_ahead(log: FakeLog) -> None:
    taken = 0

    def counted() -> object:
        nonlocal taken
        for line in bundle(log, list(range(COUNT)), (0, COUNT)):
            taken += 1
            yield line

    class Pool(ThreadPoolExecutor):
        most = 0

        def submit(self, *words: object, **more: object) -> object:  # type: ignore[override]
            part = words[3]
            assert isinstance(part, jobs.Part)
            assert taken - part.count <= 4 * 4 + 3
            return super().submit(*words, **more)  # type: ignore[arg-type]

    verify_receipts_with(2, counted(), log.policy, Pool)  # type: ignore[arg-type]


def test_processes_of_their_own(log: FakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    processes = jobs._processes

    def counted(count: int) -> Executor:
        made.append(count)
        return processes(count)

    monkeypatch.setattr(jobs, "_processes", counted)
    good = bundle(log, list(range(COUNT)), (0, COUNT))
    report = verify_receipts_with(2, good, log.policy)
    assert (report.to_json(), made) == (verify_receipts(good, log.policy).to_json(), [2])
    verify_receipts_with(1, good, log.policy)
    assert made == [2], "one job is done in this process"
