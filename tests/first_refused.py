"""A broker that is only about to lead a partition: of two requests that come close together it refuses the first, takes the second."""

import socket
import struct
import threading
from contextlib import suppress
from typing import Final

_PRODUCE: Final = 0
_NOT_LEADER_OR_FOLLOWER: Final = 6
_ANSWERED_ANYWAY_S: Final = 2.0


class FirstRefused:
    """Holds a topic's first Produce request back, and answers it with NOT_LEADER_OR_FOLLOWER once the next one is there.

    The broker never sees the first, and all others as they are. Where no second one comes, the first is answered all the same.
    """

    def __init__(self, topic: str) -> None:
        self._topic = topic.encode()
        self._changing = threading.Lock()
        self._answer: tuple[socket.socket, bytes] | None = None
        self.held = threading.Event()
        """Set once the first one is there."""
        self.in_flight_together = False
        """Whether the second one came before the first one was answered."""

    def passes(self, request: bytes, client: socket.socket) -> bool:
        """Return whether the broker is to have it. request: with its length."""
        api, version, correlation_id = struct.unpack_from(">hhi", request, 4)
        if api != _PRODUCE:
            return True
        assert version in (9, 10), f"written for Produce 9 and 10, and this is {version}"
        topic, partition = _first_partition(request)
        if topic != self._topic:
            return True
        if not self.held.is_set():
            with self._changing:
                self._answer = client, _not_leader(correlation_id, topic, partition)
            self.held.set()
            threading.Timer(_ANSWERED_ANYWAY_S, self._refuse).start()
            return False
        self.in_flight_together |= self._refuse()
        return True

    def _refuse(self) -> bool:
        with self._changing:
            answer, self._answer = self._answer, None
        if answer is None:
            return False
        client, refusal = answer
        with suppress(OSError):
            client.sendall(refusal)
        return True


def _first_partition(request: bytes) -> tuple[bytes, int]:
    """Return topic and partition of a Produce request of librdkafka's: it has one of each."""
    at = 12
    (length,) = struct.unpack_from(">h", request, at)  # of the client id; -1: none
    at += 2 + max(0, length) + 1  # no tagged fields
    length, at = _unsigned(request, at)  # of the transactional id, and 1; 0: none
    at += max(0, length - 1) + 2 + 4  # acks, timeout
    topics, at = _unsigned(request, at)
    length, at = _unsigned(request, at)
    topic = request[at : at + length - 1]
    partitions, at = _unsigned(request, at + length - 1)
    assert (topics, partitions) == (2, 2), "one topic, one partition: arrays say one more"
    (partition,) = struct.unpack_from(">i", request, at)
    return topic, partition


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    """Return an unsigned varint and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _not_leader(correlation_id: int, topic: bytes, partition: int) -> bytes:
    assert len(topic) < 0x7F
    of_partition = struct.pack(">ihqqq", partition, _NOT_LEADER_OR_FOLLOWER, -1, -1, -1)
    # Neither record errors nor a message; then the tagged fields of partition, topic and answer, around the throttle time.
    end = b"\x01\x00" + b"\x00" + b"\x00" + struct.pack(">i", 0) + b"\x00"
    body = b"\x02" + bytes([len(topic) + 1]) + topic + b"\x02" + of_partition + end
    answer = struct.pack(">i", correlation_id) + b"\x00" + body
    return struct.pack(">i", len(answer)) + answer
