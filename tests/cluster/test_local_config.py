"""What the local broker is told, and what of its log is shown to a person."""

from pathlib import Path

from kinguin_streams.cluster.local_config import java_command, server_properties, telling_lines


def _properties() -> dict[str, str]:
    lines = server_properties(kafka_port=1111, controller_port=2222).splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_only_this_machine_can_reach_the_broker() -> None:
    properties = _properties()
    assert properties["listeners"] == "PLAINTEXT://127.0.0.1:1111,CONTROLLER://127.0.0.1:2222"
    assert properties["advertised.listeners"] == "PLAINTEXT://127.0.0.1:1111"


def test_no_internal_topic_asks_for_more_than_one_copy() -> None:
    """One broker cannot give two: the topic would never be made, and its users would wait for ever."""
    asked = {key: value for key, value in _properties().items() if "replication.factor" in key or key.endswith("isr")}
    assert len(asked) >= 6
    assert set(asked.values()) == {"1"}


def test_a_mistyped_topic_is_not_made() -> None:
    assert _properties()["auto.create.topics.enable"] == "false"


def test_the_flag_that_java_23_brought_is_not_given_to_an_older_one() -> None:
    def flags(version: int) -> tuple[str, ...]:
        return java_command(Path("java"), version, (Path("a.jar"),), heap="1m", main="Main", arguments=("x",))

    assert "--sun-misc-unsafe-memory-access=allow" in flags(25)
    assert "--sun-misc-unsafe-memory-access=allow" not in flags(21)


def test_jars_and_arguments_reach_java_in_order() -> None:
    jars = (Path("/b/b.jar"), Path("/a/a.jar"))
    command = java_command(Path("/jre/java"), 25, jars, heap="1g", main="Main", arguments=("one", "two"))
    assert command[:2] == ("/jre/java", "-Xmx1g")
    assert command[-5:] == ("-cp", "/b/b.jar:/a/a.jar", "Main", "one", "two")


LOG = """\
[2026-11-24T15:00:00.000Z] INFO starting (kafka.server.KafkaRaftServer)
[2026-11-24T15:00:01.000Z] ERROR Encountered fatal fault: disk (org.apache.kafka.Fault)
java.io.IOException: No space left on device
\tat java.base/java.nio.Files.write(Files.java:1)
\t... 12 more
Caused by: something deeper

[2026-11-24T15:00:02.000Z] INFO shutting down (kafka.server.KafkaRaftServer)
"""


def test_a_person_sees_the_error_and_its_causes_without_the_stack() -> None:
    assert telling_lines(LOG) == (
        "[2026-11-24T15:00:01.000Z] ERROR Encountered fatal fault: disk (org.apache.kafka.Fault)",
        "java.io.IOException: No space left on device",
        "Caused by: something deeper",
    )


def test_without_an_error_a_person_sees_the_last_lines() -> None:
    assert telling_lines("one\ntwo\n\nthree\n", at_most=2) == ("two", "three")


def test_what_java_itself_says_counts_as_an_error_and_its_reason_is_the_next_line() -> None:
    console = "some warning\nError occurred during initialization of VM\nToo small maximum heap\n"
    assert telling_lines(console) == ("Error occurred during initialization of VM", "Too small maximum heap")
