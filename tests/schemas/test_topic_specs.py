"""Topics as data."""

import pytest

from kinguin_streams.schemas.topics import MAX_RECORD_BYTES, MAX_STATE_BYTES, topics
from kinguin_streams.schemas.versions import RECORD_NAMES

DAY_MS = 24 * 60 * 60 * 1000


def test_every_record_has_a_topic_and_every_topic_a_record() -> None:
    declared = topics()
    assert [(spec.record, spec.name, spec.partitions) for spec in declared.specs] == [
        ("product.update", "kinguin.product.update", 6),
        ("order.status", "kinguin.order.status", 6),
        ("order.complete", "kinguin.order.complete", 6),
        ("dead-letter", "kinguin.dead-letter", 6),
        ("dead-letter.trail", "kinguin.dead-letter.trail", 6),
        ("order.state", "kinguin.order.state", 6),
        ("product.state", "kinguin.product.state", 6),
    ]
    for record in RECORD_NAMES:
        assert declared.record(declared.name(record)) == record


def test_order_events_and_dead_letters_are_kept_for_ever_and_product_updates_half_a_year() -> None:
    assert {spec.record: spec.config["retention.ms"] for spec in topics().specs} == {
        "product.update": str(180 * DAY_MS),
        "order.status": "-1",
        "order.complete": "-1",
        "dead-letter": "-1",
        "dead-letter.trail": "-1",
        "order.state": "-1",
        "product.state": "-1",
    }


def test_no_topic_takes_the_brokers_time_or_loses_by_election() -> None:
    for spec in topics().specs:
        assert spec.config["message.timestamp.type"] == "CreateTime"
        assert spec.config["unclean.leader.election.enable"] == "false"


def test_only_the_derived_topics_and_the_trail_are_compacted_and_the_ingress_has_no_part_in_them() -> None:
    declared = topics()
    compacted = {spec.record for spec in declared.specs if spec.config["cleanup.policy"] == "compact"}
    assert compacted == {"order.state", "product.state", "dead-letter.trail"}
    assert compacted.isdisjoint({spec.record for spec in declared.of_ingress.specs})
    assert {spec.config["cleanup.policy"] for spec in declared.of_ingress.specs} == {"delete"}


def test_a_topic_takes_the_largest_record_that_there_can_be() -> None:
    for spec in topics().specs:
        most = MAX_STATE_BYTES if spec.compacted else MAX_RECORD_BYTES
        assert spec.config["max.message.bytes"] == str(most)
    assert (MAX_RECORD_BYTES, MAX_STATE_BYTES) == (262_144, 524_288)


def test_prefix_and_partitions_are_the_users() -> None:
    declared = topics("shop-7", partitions=12)
    assert declared.name("order.status") == "shop-7.order.status"
    assert {spec.partitions for spec in declared.specs} == {12}


def test_a_topic_of_somebody_else_holds_none_of_our_records() -> None:
    with pytest.raises(KeyError):
        topics().record("other.order.status")
