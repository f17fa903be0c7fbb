"""One frozen value with every room's settings: command line > environment > file named by the environment > TOML > default."""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import TomlConfigSettingsSource as TomlSource
from pydantic_settings.sources.utils import parse_env_vars

from kinguin_streams.cluster.settings import KafkaSettings, LocalSettings, RegistrySettings
from kinguin_streams.consumers.settings import ConsumerSettings, StateSettings
from kinguin_streams.ingress.settings import IngressSettings, SpoolSettings
from kinguin_streams.replay.settings import ReplaySettings
from kinguin_streams.schemas.events import RecordName
from kinguin_streams.schemas.versions import shipped
from kinguin_streams.telemetry.logs import LogFormat

PREFIX = "KINGUIN_"
TOML_FILE = Path("kinguin-streams.toml")
CONFIG_FILE_VARIABLE = "KINGUIN_CONFIG_FILE"
_NO_SUCH = "no such setting; `kinguin-streams config show` lists them all"
# Read elsewhere: which TOML file, the simulator's secret, and the tests' own.
_NOT_SETTINGS = re.compile(r"KINGUIN_(CONFIG_FILE|SIMULATE_SECRET|TEST_.*)")
_SECRET_KEY = re.compile(r"pass|secret|pem|\.key|token|jaas|oauth", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(://[^:/@]*:).*(@)")  # to the last @: a password may hold one
_URL_SECRET = re.compile(r"([?&][^=&]*(?:pass|secret|token|key)[^=&]*=)[^&]*", re.IGNORECASE)
HIDDEN = "**********"


class ConfigurationError(Exception):
    """Settings that cannot be used. All faults together, each naming its key; the command line exits 2."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class TopicSettings(BaseModel):
    """How topics are named and cut."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefix: str = Field(
        default="kinguin", pattern=r"^[a-zA-Z0-9._-]{1,128}$", description="first part of every topic name"
    )
    partitions: int = Field(
        default=6, ge=1, le=10_000, description="partitions of each topic that `topics apply` makes"
    )


class SchemaSettings(BaseModel):
    """Which schema versions are written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    write: dict[RecordName, int] = Field(
        default_factory=dict,
        description='JSON, holds a record back at a version while readers are upgraded: {"product.update": 2}',
    )

    @field_validator("write")
    @classmethod
    def _is_shipped(cls, write: dict[RecordName, int]) -> dict[RecordName, int]:
        for record, version in write.items():
            versions = [schema.version for schema in shipped().versions(record)]
            if version not in versions:
                raise ValueError(f"{record} has no version {version}, only {', '.join(map(str, versions))}")
        return write


class LogSettings(BaseModel):
    """What is logged, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: LogFormat = Field(default="auto", description="auto: JSON unless stderr is a terminal")
    request_every: int = Field(
        default=100, ge=0, description="of requests that went well, or were refused, log one in so many; 0: none"
    )


class Settings(BaseSettings):
    """Everything that can be set. `load` makes it; nothing else reads the environment."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    kafka: KafkaSettings = KafkaSettings()
    topics: TopicSettings = TopicSettings()
    schemas: SchemaSettings = SchemaSettings()
    registry: RegistrySettings = RegistrySettings()
    ingress: IngressSettings = IngressSettings()
    spool: SpoolSettings = SpoolSettings()
    state: StateSettings = StateSettings()
    consumer: ConsumerSettings = ConsumerSettings()
    replay: ReplaySettings = ReplaySettings()
    local: LocalSettings = LocalSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources, strongest first."""
        return (init_settings, _Environment(settings_cls), _TomlFile(settings_cls, toml_file=_toml_file()))


class _Environment(EnvSettingsSource):
    """KINGUIN_A__B, or KINGUIN_A__B_FILE with the path of a file that holds the value."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return parse_env_vars(
            _with_files(os.environ), self.case_sensitive, self.env_ignore_empty, self.env_parse_none_str
        )

    def decode_complex_value(self, field_name: str, field: Any, value: Any) -> Any:
        """Return the JSON value; what is no JSON is left as it is, so that it is reported together with other faults."""
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


class _TomlFile(TomlSource):
    """The TOML file. One that cannot be read sets nothing, so that what else is wrong is reported together with it."""

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        try:
            return super()._read_file(file_path)
        except (OSError, ValueError):
            return {}  # _bad_files reports it


def load(**overrides: Mapping[str, Any]) -> Settings:
    """Return the settings, with what the command line said (room to keys: `ingress={"port": 9000}`) on top.

    An override of None is not set. Raises ConfigurationError with all faults.
    """
    faults = _unknown_variables(os.environ) + _bad_files(os.environ)
    given = {room: {key: value for key, value in keys.items() if value is not None} for room, keys in overrides.items()}
    try:
        settings = Settings(**{room: keys for room, keys in given.items() if keys})  # type: ignore[arg-type]
    except ValidationError as error:
        faults += [f"{_where(fault['loc'], given)}: {_message(fault)}" for fault in error.errors(include_input=False)]
    if faults:
        raise ConfigurationError(tuple(faults))
    # One folder holds everything that this machine keeps: moving it moves the rest along.
    if settings.registry.cache_file is None:
        cache_file = settings.local.data_dir / "registry-ids.json"
        registry = settings.registry.model_copy(update={"cache_file": cache_file})
        settings = settings.model_copy(update={"registry": registry})
    if "path" not in settings.spool.model_fields_set:
        spool_path = settings.local.data_dir / "spool"
        settings = settings.model_copy(update={"spool": settings.spool.model_copy(update={"path": spool_path})})
    if "receipts" not in settings.replay.model_fields_set:
        receipts = settings.local.data_dir / "replays"
        settings = settings.model_copy(update={"replay": settings.replay.model_copy(update={"receipts": receipts})})
    if "url" not in settings.state.model_fields_set:
        url = f"sqlite:///{settings.local.data_dir / 'state.db'}"
        settings = settings.model_copy(update={"state": settings.state.model_copy(update={"url": url})})
    return settings


def shown(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain values that may be printed: secrets and passwords are stars."""
    values = settings.model_dump(mode="json")
    values["kafka"]["config"] = {
        key: HIDDEN if _SECRET_KEY.search(key) else value for key, value in values["kafka"]["config"].items()
    }
    for room in ("state", "registry"):
        if values[room]["url"]:
            url = _URL_PASSWORD.sub(rf"\1{HIDDEN}\2", values[room]["url"])
            values[room]["url"] = _URL_SECRET.sub(rf"\1{HIDDEN}", url)
    return values


def _toml_file() -> Path:
    return Path(os.environ.get(CONFIG_FILE_VARIABLE, TOML_FILE))


def _with_files(environment: Mapping[str, str]) -> dict[str, str]:
    values = dict(environment)
    for name in _file_variables(environment):
        try:
            values[name.removesuffix("_FILE")] = Path(values.pop(name)).read_text("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError):
            continue  # _bad_files reports it
    return values


def _file_variables(environment: Mapping[str, str]) -> list[str]:
    return [
        name
        for name in environment
        if name.startswith(PREFIX)
        and name.endswith("_FILE")
        and not _NOT_SETTINGS.fullmatch(name)
        and name.upper() not in _settings_that_are_files()
    ]


def _settings_that_are_files() -> set[str]:
    """Return the variables that end in _FILE by their own name, as KINGUIN_REGISTRY__CA_FILE: they hold a path."""
    return {
        f"{PREFIX}{room}__{key}".upper()
        for room in Settings.model_fields
        for key in _keys(room)
        if key.endswith("_file")
    }


def _keys(room: str) -> Iterable[str]:
    """Return the settings that a table of the TOML file has; of one that there is not, none."""
    field = Settings.model_fields.get(room)
    return getattr(field.annotation, "model_fields", ()) if field is not None else ()


def _bad_files(environment: Mapping[str, str]) -> list[str]:
    faults = []
    for name in _file_variables(environment):
        if name.removesuffix("_FILE") in environment:
            faults.append(f"{name}: {name.removesuffix('_FILE')} is set as well; set one of them")
        try:
            Path(environment[name]).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            faults.append(f"{name}: cannot read {environment[name]}: {error}")
    explicit = environment.get(CONFIG_FILE_VARIABLE)
    if explicit is not None and not Path(explicit).is_file():
        faults.append(f"{CONFIG_FILE_VARIABLE} or --config: {explicit}: no such file")
    toml_file = _toml_file()
    if toml_file.is_file():
        try:
            tomllib.loads(toml_file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            faults.append(f"{toml_file}: {error}")
    return faults


def _unknown_variables(environment: Mapping[str, str]) -> list[str]:
    known = tuple(f"{PREFIX}{room.upper()}__" for room in Settings.model_fields)
    return [
        f"{name}: {_NO_SUCH}"
        for name in sorted(environment)
        if name.startswith(PREFIX) and not name.upper().startswith(known) and not _NOT_SETTINGS.fullmatch(name)
    ]


def _where(location: tuple[int | str, ...], given: Mapping[str, Mapping[str, Any]]) -> str:
    """Return where the value at a place of the settings was set: pydantic says the place, not the source."""
    room, *rest = (str(part) for part in location)
    variable, in_toml = _variable(location), _in_toml(room, *rest[:1])
    if in_toml is None:
        return variable
    if rest:
        return variable if rest[0] in given.get(room, {}) or _is_set(f"{PREFIX}{room}__{rest[0]}") else in_toml
    # A fault of a whole room may come of values from several sources.
    return f"{variable} and {in_toml}" if given.get(room) or _is_set(f"{PREFIX}{room}") else in_toml


def _in_toml(room: str, key: str | None = None) -> str | None:
    """Return how a place is called in the TOML file, or None if the file does not set it."""
    try:
        content = tomllib.loads(_toml_file().read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if room not in content:
        return None
    table = content[room]
    if not isinstance(table, dict):
        return f"{_toml_file()}: {room}"
    if key is None:
        return f"{_toml_file()}: [{room}]"
    return f"{_toml_file()}: [{room}] {key}" if key in table else None


def _is_set(variable: str) -> bool:
    """Return whether the environment has it: as it is, in a file, or one of the values inside it."""
    name = variable.upper()
    return any(each == name or each.startswith((f"{name}__", f"{name}_FILE")) for each in map(str.upper, os.environ))


def _variable(location: tuple[int | str, ...]) -> str:
    room, *rest = location
    if not rest:
        return f"{PREFIX}{str(room).upper()}"
    key, *inside = rest
    return f"{PREFIX}{str(room).upper()}__{str(key).upper()}" + "".join(f"[{part}]" for part in inside)


def _message(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        room = str(fault["loc"][0])
        keys = ", ".join(_keys(room))
        return f"no such setting; [{room}] has {keys}" if keys else _NO_SUCH
    as_json = "; in the environment it is written as JSON" if fault["type"] in ("dict_type", "tuple_type") else ""
    return str(fault["msg"]).removeprefix("Value error, ") + as_json
