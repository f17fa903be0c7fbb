"""New secrets without a restart: looked for every two seconds, and at SIGHUP."""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import structlog

from kinguin_streams.ingress.secrets import Secrets
from kinguin_streams.ingress.vigil import Vigil

log = structlog.get_logger()

LOOK_EVERY_S: Final = 2.0

ReadSecrets = Callable[[], Mapping[str, Iterable[str]]]
"""Returns the secrets as they are configured now. Raises whatever is wrong with them."""


class SecretsReload:
    """Keeps `secrets` as they are configured. What cannot be used changes nothing and is said once."""

    def __init__(self, secrets: Secrets, read: ReadSecrets, vigil: Vigil) -> None:
        self._secrets = secrets
        self._read = read
        self._vigil = vigil
        self._wake = threading.Event()
        self._last_failure: str | None = None
        self._thread = threading.Thread(target=self._watch, name="secrets", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def now(self) -> None:
        """Look at once. May be called from a signal handler."""
        self._wake.set()

    def look(self) -> None:
        """Read the secrets, and believe them if they can be used."""
        try:
            secrets = self._read()
            if not secrets:
                raise ValueError("no secret is left")
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a file that somebody is writing just now
            failure = str(error)
            if failure != self._last_failure:
                self._last_failure = failure
                self._vigil.reload_failures += 1
                log.error("secrets_not_reloaded", why=failure, hint="the secrets from before stay in force")
            return
        self._last_failure = None
        if self._secrets.replace(secrets):
            log.info("secrets_reloaded", secrets=_names(self._secrets))

    def _watch(self) -> None:
        while True:
            self._wake.wait(LOOK_EVERY_S)
            self._wake.clear()
            self.look()


def _names(secrets: Secrets) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for use in secrets.uses():
        names.setdefault(use.store, []).append(use.name)
    return names
