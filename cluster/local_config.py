"""What the local broker is told: its server.properties, its logging, its Java command line. Pure."""

import re
from pathlib import Path

# All relative to the broker's working folder, <data_dir>/kafka: Kafka splits log.dirs at commas, and a moved folder works on.
DATA_FOLDER = "data"
SERVER_LOG = "logs/server.log"
CONSOLE_LOG = "logs/console.log"
PROPERTIES_FILE = "server.properties"
LOG4J_FILE = "log4j2.properties"


def server_properties(*, kafka_port: int, controller_port: int, data_folder: str = DATA_FOLDER) -> str:
    """Return the server.properties of one KRaft node, broker and controller at once, that only this machine can reach."""
    entries = {
        "process.roles": "broker,controller",
        "node.id": 1,
        # The static form of the quorum: the dynamic one writes the port into the data, so that it could not be changed.
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://127.0.0.1:{kafka_port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{kafka_port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": data_folder,
        # Topics are made by `topics apply`: a mistyped name must fail, not become a topic with one partition.
        "auto.create.topics.enable": "false",
        # One node can hold one copy; few partitions, because each costs files and start-up time.
        "default.replication.factor": 1,
        "min.insync.replicas": 1,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": 4,
        "group.coordinator.rebalance.protocols": "classic,consumer",
        # The default of 3 s waits for more members to come; here it only delays every first poll.
        "group.initial.rebalance.delay.ms": 0,
        # After kill -9 a restart waits until the controller has given up the old registration: 12 s by default, 3 s so.
        "broker.session.timeout.ms": 1000,
        "broker.heartbeat.interval.ms": 250,
        # The default is 128 MB, taken at start from a heap of 512 MB; 8 MB clean 310,000 distinct keys a pass.
        "log.cleaner.dedupe.buffer.size": 8_388_608,
    }
    return "".join(f"{key}={value}\n" for key, value in entries.items())


def log4j_properties() -> str:
    """Return the Log4j 2 configuration: one file, rolled at 10 MB, three old ones kept."""
    return f"""\
status=error
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName={SERVER_LOG}
appender.file.filePattern={SERVER_LOG}.%i
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=[%d{{yyyy-MM-dd'T'HH:mm:ss.SSSXXX}}] %p %m (%c)%n
appender.file.policies.type=Policies
appender.file.policies.size.type=SizeBasedTriggeringPolicy
appender.file.policies.size.size=10MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max=3
rootLogger.level=info
rootLogger.appenderRef.file.ref=file
"""


def java_command(
    java: Path, java_version: int, jars: tuple[Path, ...], *, heap: str, main: str, arguments: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the command that runs a main class of Kafka in a small, quickly started Java.

    java_version: the feature number, e.g. 25; heap: as Java writes it, e.g. 512m.
    """
    flags = [
        f"-Xmx{heap}",
        # One core is enough for this collector, and the second compiler costs more than it brings in a short life.
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-XX:+ExitOnOutOfMemoryError",
        "-Djava.awt.headless=true",
        f"-Dlog4j2.configurationFile={LOG4J_FILE}",
        "-Dlog4j2.disableJmx=true",
        "--enable-native-access=ALL-UNNAMED",
    ]
    if java_version >= 23:  # it came with 23, and an unknown flag of this form stops an older Java
        flags.append("--sun-misc-unsafe-memory-access=allow")
    return (str(java), *flags, "-cp", ":".join(map(str, jars)), main, *arguments)


_STARTS_A_RECORD = re.compile(r"^\[\d{4}-\d{2}-\d{2}T[^]]*\] (?P<level>[A-Z]+) ")


def telling_lines(log: str, *, at_most: int = 5) -> tuple[str, ...]:
    """Return the lines of a broker's log that tell why it stopped: the last errors, or else the last lines.

    log: the text of server.log, or of what Java wrote by itself. Stack frames and empty lines are left out.
    """
    lines = [line.rstrip() for line in log.splitlines() if line.strip() and not line.startswith(("\tat ", "\t... "))]
    errors: list[str] = []
    in_error = False
    for line in lines:
        record = _STARTS_A_RECORD.match(line)
        if record:
            in_error = record["level"] in ("ERROR", "FATAL")
        elif line.startswith(("Exception in", "Error", "Caused by")):  # Java itself; the reason is often the line below
            in_error = True
        if in_error:
            errors.append(line)
    return tuple((errors or lines)[-at_most:])
