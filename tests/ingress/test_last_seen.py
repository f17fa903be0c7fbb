"""A restart breaks no silence: what one process knows of each store, the next one of the same folder goes by."""

import json
import threading
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from kinguin_streams.ingress import last_seen, left_behind
from kinguin_streams.ingress.last_seen import FILE_NAME, LastSeenFile
from kinguin_streams.ingress.secrets import Secrets
from kinguin_streams.ingress.vigil import Vigil
from kinguin_streams.schemas.events import EVENT_NAMES, StoreName
from tests.conftest import KafkaCluster
from tests.ingress.running_ingress import new_id, order_status, running_ingress, wait_until

SHOP, OTHER = StoreName("shop"), StoreName("other")
HOUR_S = 3600.0
SILENCE_S = 6.5 * HOUR_S


class Clock:
    def __init__(self) -> None:
        self.now_s = time.time() - 100 * HOUR_S

    def __call__(self) -> float:
        return self.now_s


def a_process(folder: Path, clock: Clock, *stores: str) -> tuple[Vigil, LastSeenFile]:
    file = LastSeenFile(folder)
    secrets = Secrets({store: [f"secret of {store}"] for store in stores or (SHOP, OTHER)})
    earlier = file.read()
    return Vigil(
        secrets, CollectorRegistry(), silence_s=SILENCE_S, failure_budget=1, earlier=earlier, now_s=clock
    ), file


def test_stores_are_silent_after_hours_although_no_process_lives_as_long(tmp_path: Path) -> None:
    """One has had an event, the other one never."""
    clock = Clock()
    warned = []
    for number in range(8):
        vigil, file = a_process(tmp_path, clock)
        if number == 1:
            vigil.came(SHOP, "order.status")
        clock.now_s += HOUR_S
        warned.append([warning.split(":")[0] for warning in vigil.warnings()])
        file.write(vigil.silent_since())
    assert warned == [[]] * 6 + [["store other"], ["store other", "store shop"]]
    assert vigil.silence()[SHOP, "order.status"] == pytest.approx(7 * HOUR_S, abs=0.01)
    assert vigil.silence()[SHOP, "order.complete"] == pytest.approx(8 * HOUR_S, abs=0.01)
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"{",
        b"\xff",
        b"[]",
        b'{"format": 1}',
        b'{"format": 2, "silent_since_ms": {"shop": {"order.status": 1}}}',
        b'{"silent_since_ms": {"shop": {"order.status": -1}}}',
        b'{"silent_since_ms": {"shop": {"order.status": 1%s}}}' % (b"0" * 400),
    ],
)
def test_a_file_that_is_missing_or_damaged_means_counting_from_the_start_and_is_written_anew(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / FILE_NAME).write_bytes(content)
    clock = Clock()
    vigil, file = a_process(tmp_path, clock)
    clock.now_s += 5
    assert set(vigil.silence().values()) == {5}
    file.write(vigil.silent_since())
    assert set(file.read()) == {(store, event) for store in (SHOP, OTHER) for event in EVENT_NAMES}


def test_processes_of_one_folder_keep_each_others_younger_news(tmp_path: Path) -> None:
    clock = Clock()
    (one, of_one), (two, of_two) = a_process(tmp_path, clock), a_process(tmp_path, clock)
    clock.now_s += 60
    one.came(SHOP, "order.status")
    two.came(OTHER, "order.status")
    of_one.write(one.silent_since())
    of_two.write(two.silent_since())
    both = LastSeenFile(tmp_path).read()
    assert both[SHOP, "order.status"] == both[OTHER, "order.status"] == pytest.approx(clock.now_s, abs=0.01)


def test_a_store_that_was_taken_out_is_forgotten_and_one_that_is_new_counts_from_the_start(tmp_path: Path) -> None:
    clock = Clock()
    vigil, file = a_process(tmp_path, clock, "shop")
    file.write(vigil.silent_since())
    clock.now_s += HOUR_S
    vigil, file = a_process(tmp_path, clock, "other")
    file.write(vigil.silent_since())
    assert vigil.silence()[OTHER, "order.status"] == 0
    assert {store for store, _ in file.read()} == {OTHER}


def test_one_from_the_future_does_not_count_and_gives_way(tmp_path: Path) -> None:
    file = LastSeenFile(tmp_path)
    file.write({(SHOP, "order.status"): time.time() + HOUR_S})
    assert file.read() == {}
    file.write({(SHOP, "order.status"): 1_700_000_000.5})
    assert file.read() == {(SHOP, "order.status"): 1_700_000_000.5}


def test_a_disk_that_hangs_does_not_keep_a_process_from_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(left_behind, "replace_whole", lambda *_: goes_on.wait(30))
    file = LastSeenFile(tmp_path)
    file.start(lambda: {(SHOP, "order.status"): 1_700_000_000.0})
    began_s = time.monotonic()
    file.stop()
    assert time.monotonic() - began_s < 5
    goes_on.set()


def test_it_is_written_once_in_a_while_and_at_the_stop_and_only_if_there_is_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_seen, "WRITE_EVERY_S", 0.2)
    path = tmp_path / FILE_NAME
    now = {(SHOP, "order.status"): 1_700_000_000.123}
    file = LastSeenFile(tmp_path)
    file.start(lambda: now)
    assert not path.exists()
    wait_until(path.exists, 5, "a file")
    first = path.stat().st_ino
    time.sleep(0.5)
    assert path.stat().st_ino == first  # a new one would be another file
    monkeypatch.setattr(last_seen, "WRITE_EVERY_S", 600)
    time.sleep(0.3)
    now[SHOP, "order.status"] += 1
    file.stop()
    assert json.loads(path.read_bytes())["silent_since_ms"] == {"shop": {"order.status": 1_700_000_001_123}}


def test_a_folder_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    LastSeenFile(tmp_path / "is-not-there").write({(SHOP, "order.status"): 1_700_000_000.0})


@pytest.mark.kafka
@pytest.mark.parametrize("with_spool", [True, False], ids=["with the spool", "without"])
def test_an_ingress_that_is_restarted_knows_how_long_a_store_has_been_silent(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, with_spool: bool
) -> None:
    settings: dict[str, object] = {"spool__enabled": with_spool}
    of_status = ("kinguin_ingress_silence_seconds", (("event", "order.status"), ("store", "default")))
    with running_ingress(kafka.bootstrap_servers, topic_prefix, tmp_path, **settings) as first:
        assert first.post(order_status(new_id())).status == 204
        came_s = time.time()
    time.sleep(10)  # longer than it takes to start and be asked
    started_s = time.time()
    with running_ingress(kafka.bootstrap_servers, topic_prefix, tmp_path, **settings) as second:
        silent_s = second.metrics()[of_status]
        if with_spool:
            assert silent_s == pytest.approx(time.time() - came_s, abs=1)
        else:
            assert silent_s < time.time() - started_s
        assert (tmp_path / ".data" / "spool" / FILE_NAME).exists() == with_spool
