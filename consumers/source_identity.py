"""Which cluster and which topics these are, by id: names alone do not tell a topic from its successor."""

import time
from concurrent.futures import Future
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, DescribeClusterResult, TopicDescription

from kinguin_streams.cluster.connection import new_client
from kinguin_streams.cluster.topic_admin import unreachable
from kinguin_streams.consumers.kafka_errors import NOT_AUTHORIZED, not_authorized
from kinguin_streams.consumers.source_changed import STATE_HINTS, SourceHints, cluster_changed, topic_replaced
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

WATCH_EVERY_S = 5.0
"""A topic that is deleted and made anew under a running consumer is noticed by its errors or within this time.

Measured: if the new one is longer, the client goes on in it at the old one's offset and reports nothing. What is applied
until then is lost with a state that has to be made anew in any case: no consumer goes on with it.
"""


class SourceIdentity:
    """Asks the cluster who it is, and watches whether it stays so."""

    def __init__(
        self, config: dict[str, Any], topics: list[str], wait_s: float, hints: SourceHints = STATE_HINTS
    ) -> None:
        """config: from cluster.connection.admin_config. topics: names. wait_s: for an answer. hints: once it has changed."""
        self._admin = new_client(AdminClient, config)
        self._topics = topics
        self._wait_s = wait_s
        self._hints = hints
        self._known: tuple[str, dict[str, str]] | None = None
        self._question: _Question | None = None
        self._asked_s = 0.0

    def ask(self) -> tuple[str, dict[str, str]]:
        """Return the cluster's id and the topics' ids by name.

        Raises OperatorError: "topic_missing", "not_authorized", "kafka_unreachable".
        """
        self._question = None  # older than this one
        self._known = _Question(self._admin, self._topics, self._wait_s).answer()
        self._asked_s = time.monotonic()
        return self._known

    def ask_again(self) -> None:
        """Raise OperatorError("topic_replaced") or ("cluster_changed") if the answer has changed, or as `ask` does."""
        known = self._known
        if known is not None:
            self._compare(known, self.ask())

    def is_as_before(self) -> bool:
        """Return whether the cluster has answered, and nothing has changed; False until it has. Never waits for it.

        Raises as ask_again does: "kafka_unreachable" once the answer has not come in time. The next call asks anew.
        """
        if self._question is None:
            self._asked_s = time.monotonic()
            self._question = _Question(self._admin, self._topics, self._wait_s)
        if not self._question.is_answered():
            return False
        question, self._question = self._question, None
        answer = question.answer()
        if self._known is not None:
            self._compare(self._known, answer)
        return True

    def watch(self) -> None:
        """Do as ask_again does, every few seconds, without ever waiting for the cluster."""
        if self._question is not None or time.monotonic() - self._asked_s >= WATCH_EVERY_S:
            try:
                self.is_as_before()
            except OperatorError as error:
                if error.code != "kafka_unreachable":
                    raise
                log.debug("identity_unknown", reason=error.what)

    def _compare(self, known: tuple[str, dict[str, str]], now: tuple[str, dict[str, str]]) -> None:
        if known[0] != now[0]:
            raise cluster_changed(known[0], now[0], self._hints)
        for topic, topic_id in now[1].items():
            if known[1][topic] != topic_id:
                raise topic_replaced(topic, known[1][topic], topic_id, self._hints)


class _Question:
    """One question that is under way."""

    def __init__(self, admin: AdminClient, topics: list[str], wait_s: float) -> None:
        self._cluster: Future[DescribeClusterResult] = admin.describe_cluster(request_timeout=wait_s)
        self._topics: dict[str, Future[TopicDescription]] = admin.describe_topics(
            TopicCollection(topics), request_timeout=wait_s
        )

    def is_answered(self) -> bool:
        return self._cluster.done() and all(future.done() for future in self._topics.values())

    def answer(self) -> tuple[str, dict[str, str]]:
        topic = ""
        try:
            cluster_id = str(self._cluster.result().cluster_id)
            ids: dict[str, str] = {}
            for topic, future in self._topics.items():
                ids[topic] = str(future.result().topic_id)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise OperatorError(
                    "topic_missing",
                    f"There is no topic {topic}.",
                    "Make the topics with `kinguin-streams topics apply`, or check KINGUIN_TOPICS__PREFIX.",
                ) from error
            if error.args[0].code() in NOT_AUTHORIZED:
                raise not_authorized(error.args[0]) from error
            raise unreachable(error) from error
        return cluster_id, ids
