"""What a client command can fail of, and the exit code each kind gives."""

from __future__ import annotations


class ClientError(Exception):
    """The user can mend it: wrong arguments, no rights, a refused push. Exit code 1."""

    exit_code = 1
    kind = "failed_here"
    """What stands for a code when the server gave none."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code
        """The server's stable error code, when it was the server that refused."""


class IntegrityError(ClientError):
    """Bytes are not what they should be, or could not be read or written. Exit code 3."""

    exit_code = 3
    kind = "integrity_failed"


class TransferError(ClientError):
    """The server could not be reached, or the connection was lost. Exit code 3; trying again is safe."""

    exit_code = 3
    kind = "transfer_failed"

    def __init__(self, message: str, code: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, code)
        self.retry_after_s = retry_after_s
        """When the server wants to be asked again, if it said so."""


class GivenUpError(TransferError):
    """It was tried often enough."""


class StaleUrlError(TransferError):
    """A URL has expired, or is not taken for another reason: a new one may be."""


def printable(text: str) -> str:
    """Make text from elsewhere safe for a terminal (threat T26)."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
