"""The loop of waitress as it is turned here: who connects is not kept waiting by those who are served already."""

import socket
from contextlib import ExitStack
from typing import cast

from waitress import wasyncore

from kinguin_streams.ingress.answering import Webhooks
from kinguin_streams.ingress.exchange import Answer, Asked
from kinguin_streams.ingress.settings import IngressSettings
from kinguin_streams.ingress.waiting import Steps
from kinguin_streams.ingress.waitress_front import WaitressFront

CLIENTS = 60
TURNS = 6
"""To accept, to read, and to write, twice over. One connection a turn would take as many turns as there are clients."""


class Greeting:
    """Stands where the webhooks' answers are found, and needs no Kafka."""

    def answer(self, _asked: Asked) -> Steps[Answer]:
        yield from ()
        return Answer(204, (), b"")


def test_all_who_have_connected_at_once_are_accepted_in_one_turn() -> None:
    with ExitStack() as stack:
        listener = socket.create_server(("127.0.0.1", 0), backlog=CLIENTS)
        front = WaitressFront(listener, cast("Webhooks", Greeting()), IngressSettings())
        stack.callback(wasyncore.close_all, front._sockets)  # elsewhere the end of the process does it
        stack.callback(front.stop_accepting)
        clients = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(CLIENTS)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        for _ in range(TURNS):
            front.turn(0.1)
        for client in clients:
            client.settimeout(0)
        assert [client.recv(12) for client in clients] == [b"HTTP/1.1 204"] * CLIENTS


def test_above_its_limit_of_connections_it_takes_no_more_until_one_has_gone() -> None:
    with ExitStack() as stack:
        listener = socket.create_server(("127.0.0.1", 0), backlog=CLIENTS)
        front = WaitressFront(listener, cast("Webhooks", Greeting()), IngressSettings(connection_limit=10))
        stack.callback(wasyncore.close_all, front._sockets)  # elsewhere the end of the process does it
        stack.callback(front.stop_accepting)
        clients = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(CLIENTS)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        front.turn(0.1)
        answered = 0
        for _ in range(CLIENTS):
            front.turn(0.01)
            answered = sum(_has_answer(client) for client in clients)
            if answered == CLIENTS:
                break
        assert answered == CLIENTS


def _has_answer(client: socket.socket) -> bool:
    client.settimeout(0)
    try:
        return client.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 204"
    except BlockingIOError:
        return False
