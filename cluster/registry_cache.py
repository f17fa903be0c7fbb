"""Ids that a registry has once given, kept in a small file for when it is away.

    {"https://registry.example": {"kinguin.order.status-value": {"7": "1f0a2b…"}}}

registry → subject → id → fingerprint of the shipped version, in hex. The registry is its URL without user and password.
Of several ids of one version the last is the one to write with.
"""

import fcntl
import json
import re
from collections.abc import Mapping
from pathlib import Path

import structlog

from kinguin_streams.cluster.durable_file import replace_whole

log = structlog.get_logger()

Subjects = dict[str, dict[int, str]]
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


class IdFile:
    """The file, of one registry. Several processes may share it: what one adds, the others keep."""

    def __init__(self, path: Path | None, registry: str) -> None:
        """path: None keeps nothing. registry: its URL, without credentials."""
        self.path = path
        self._registry = registry
        self._complained = False

    def read(self) -> Subjects:
        """Return subject → id → fingerprint; nothing if there is no file, or none that can be read."""
        return _of(self._load(), self._registry)

    def add(self, subject: str, schema_id: int, fingerprint: str, *, as_last: bool = False) -> str | None:
        """Keep an id, unless the file has it with another fingerprint, under whatever subject; then return that one.

        as_last: behind the other ids of the subject, also if it was there before.
        Another process may have written that since this one has read the file: replacing it would take from whoever
        starts next what it could notice a rebuilt registry by. A file that cannot be written is complained about once:
        ids are then known until the end only.
        """
        known = self.read()
        other = _other_meaning(known, schema_id, fingerprint)
        if self.path is None or other is not None or _is_kept(known.get(subject, {}), schema_id, as_last):
            return other
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.with_name(f"{self.path.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                content = self._load()
                known = _of(content, self._registry)
                other = _other_meaning(known, schema_id, fingerprint)
                if other is not None:
                    return other
                ids = known.setdefault(subject, {})
                if as_last:
                    ids.pop(schema_id, None)
                ids[schema_id] = fingerprint
                content[self._registry] = known
                replace_whole(self.path, json.dumps(content, indent=1).encode())
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.warning(
                    "registry_ids_not_kept",
                    file=str(self.path),
                    reason=error.strerror,
                    hint="a restart while the registry is away would know no ids: set KINGUIN_REGISTRY__CACHE_FILE",
                )
        return None

    def _load(self) -> dict[str, object]:
        if self.path is None:
            return {}
        try:
            content = json.loads(self.path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            log.warning("registry_ids_unreadable", file=str(self.path), reason=str(error))
            return {}
        return content if isinstance(content, dict) else {}


def _other_meaning(known: Subjects, schema_id: int, fingerprint: str) -> str | None:
    return next((ids[schema_id] for ids in known.values() if ids.get(schema_id, fingerprint) != fingerprint), None)


def _is_kept(ids: Mapping[int, str], schema_id: int, as_last: bool) -> bool:
    of_the_version = [other for other, fingerprint in ids.items() if fingerprint == ids.get(schema_id)]
    return schema_id in (of_the_version[-1:] if as_last else of_the_version)


def _of(content: Mapping[str, object], registry: str) -> Subjects:
    """Return one registry's part; what does not look like an id with a fingerprint is left out."""
    subjects = content.get(registry)
    if not isinstance(subjects, dict):
        return {}
    return {
        subject: {
            int(schema_id): fingerprint
            for schema_id, fingerprint in ids.items()
            if str(schema_id).isdecimal() and isinstance(fingerprint, str) and _FINGERPRINT.fullmatch(fingerprint)
        }
        for subject, ids in subjects.items()
        if isinstance(ids, dict)
    }
