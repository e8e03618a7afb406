"""Whose name requests to an S3-compatible store are made in: read from where operators keep secrets, read again later.

The first of these that is there counts:

1. the file that the settings name;
2. the file ``s3`` in ``$CREDENTIALS_DIRECTORY``, as systemd's ``LoadCredential=s3:/path`` puts it there;
3. the variables ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY`` and ``AWS_SESSION_TOKEN``.

A file is in the AWS form: ``aws_access_key_id = …`` and so on, below ``[default]``. It is looked at again every half
minute, and at once when the store refuses what it held, so keys may be exchanged while the daemon runs.
"""

from __future__ import annotations

import configparser
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from storage.environment import Environment
from storage.errors import StoreUnavailable

LOOK_AGAIN_S = 30.0
SYSTEMD_NAME = "s3"
_LARGEST_BYTES = 64 * 1024
_SECTION = "default"


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key; its secret parts are in no ``repr``."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    """Of keys that expire."""


class CredentialSource:
    """Gives the credentials to use now; used from many threads."""

    def __init__(
        self, environment: Environment, file: Path | None = None, variables: Mapping[str, str] | None = None
    ) -> None:
        self._environment = environment
        self._variables = os.environ if variables is None else variables
        self._file = file or self._systemd_file()
        self._lock = threading.Lock()
        self._held: Credentials | None = None
        self._looked_at = 0.0

    @property
    def origin(self) -> str:
        """Where they come from, for people."""
        return "the environment" if self._file is None else str(self._file)

    def current(self) -> Credentials:
        """Give them.

        Raises:
            StoreUnavailable: there are none.
        """
        with self._lock:
            now = self._environment.now().timestamp()
            if self._held is None or not 0 <= now - self._looked_at < LOOK_AGAIN_S:
                try:
                    self._held = self._read()
                except StoreUnavailable:
                    if self._held is None:  # else a file that is being exchanged: they may be good for a while
                        raise
                self._looked_at = now
            return self._held

    def look_again(self, refused: Credentials) -> bool:
        """Tell whether there are others by now than those the store refused."""
        with self._lock:
            try:
                self._held = self._read()
            except StoreUnavailable:
                return False
            self._looked_at = self._environment.now().timestamp()
            return self._held != refused

    def _systemd_file(self) -> Path | None:
        directory = self._variables.get("CREDENTIALS_DIRECTORY")
        path = Path(directory) / SYSTEMD_NAME if directory else None
        return path if path is not None and path.is_file() else None

    def _read(self) -> Credentials:
        if self._file is None:
            return _credentials(
                {name.lower(): value for name, value in self._variables.items() if name.startswith("AWS_")},
                "in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)",
            )
        try:
            with self._file.open("rb") as opened:
                text = opened.read(_LARGEST_BYTES).decode("utf-8")
            parser = configparser.ConfigParser(interpolation=None, default_section="")
            parser.read_string(text)
            found = dict(parser[_SECTION])
        except (OSError, UnicodeDecodeError) as error:
            raise StoreUnavailable(
                f"the credentials of the S3 store cannot be read: {error}", temporary=False
            ) from None
        except (configparser.Error, KeyError):  # their texts quote lines, and lines hold secrets
            raise StoreUnavailable(
                f"{self._file} holds no credentials: aws_access_key_id and aws_secret_access_key below [default]",
                temporary=False,
            ) from None
        return _credentials(found, f"in {self._file}")


def _credentials(found: Mapping[str, str], where: str) -> Credentials:
    access_key, secret_key = found.get("aws_access_key_id"), found.get("aws_secret_access_key")
    if not access_key or not secret_key:
        raise StoreUnavailable(f"there are no credentials for the S3 store {where}", temporary=False)
    return Credentials(access_key, secret_key, found.get("aws_session_token") or None)
