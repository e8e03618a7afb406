"""Opening an S3-compatible store: with its credentials, and not without having tried out what is relied on.

A service that does not answer now is opened all the same: it may answer when it is needed, and until then the daemon
says so at ``/readyz``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import structlog
import trio

from museworkd.config import Config, ConfigError
from storage.environment import Environment
from storage.errors import StoreUnavailable
from storage.objects.check import Finding, Outcome
from storage.objects.s3 import S3Store
from storage.objects.s3_check import S3Check
from storage.objects.s3_credentials import CredentialSource
from storage.objects.s3_settings import S3Settings

log = structlog.get_logger("museworkd")

START_CHECK_S = 20.0
FULL_CHECK_S = 120.0


async def open_s3(config: Config, settings: S3Settings, environment: Environment) -> S3Store:
    """Open it.

    Raises:
        ConfigError: it does not let us in, or lacks what is relied on.
    """
    store = _store(config, settings, environment)
    findings = await checked(store, environment, quick=True)
    _say(settings, findings)
    if any(finding.name == "signed URLs" and finding.outcome is Outcome.DEGRADED for finding in findings):
        store.give_up_signing()
    return store


async def check_s3(config: Config, settings: S3Settings, environment: Environment) -> list[Finding]:
    """Try everything out, for an operator to look at."""
    return await checked(_store(config, settings, environment), environment, quick=False)


async def checked(store: S3Store, environment: Environment, *, quick: bool) -> list[Finding]:
    """Try a store out; what takes too long counts as unreachable."""
    limit_s = START_CHECK_S if quick else FULL_CHECK_S
    found: list[Finding] = []

    def try_out(append: Callable[[Finding], None]) -> None:
        for finding in S3Check(store.settings, store.credentials, environment).findings(quick=quick):
            append(finding)

    with trio.move_on_after(limit_s) as limit:
        await trio.to_thread.run_sync(try_out, found.append, abandon_on_cancel=True)
    if limit.cancelled_caught:
        found.append(Finding("time", "starting", Outcome.UNREACHABLE, f"the checks took more than {limit_s:.0f} s"))
    return found


def _store(config: Config, settings: S3Settings, environment: Environment) -> S3Store:
    named = config.store.credentials_file
    try:
        credentials = CredentialSource(environment, named if named != Path() else None)
        credentials.current()
        store = S3Store(settings, credentials, environment, config.store.parallel_puts, config.store.parallel_gets)
    except (StoreUnavailable, OSError) as error:
        raise ConfigError(str(error)) from error
    return store


def _say(settings: S3Settings, findings: list[Finding]) -> None:
    for finding in findings:
        if finding.outcome is Outcome.REFUSED:
            raise ConfigError(
                f"{settings.origin.url} cannot be the object store ({finding.name}, for {finding.relied_on_by}): "
                f"{finding.detail}"
            )
        if finding.outcome is Outcome.DEGRADED:
            log.warning("the S3 service does not do all we like", check=finding.name, detail=finding.detail)
        elif finding.outcome is Outcome.UNREACHABLE:
            log.warning("the S3 service does not answer now: its checks are left out", detail=finding.detail)
