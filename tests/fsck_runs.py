"""Running ``fsck`` inside a test, over a server's own index and store."""

from __future__ import annotations

from actors.fsck.problems import FsckReport
from actors.fsck.run import FsckOptions, fsck
from museworkd.client.progress import Quiet
from storage.rows import Repository
from tests.handler_runs import services_of
from tests.servers import Server


async def checked(
    server: Server, *, deep: bool = False, repair: bool = False, repository: Repository | None = None
) -> FsckReport:
    services = services_of(server, scrub_bytes_per_s=0)
    return await fsck(services, FsckOptions(deep, repair, repository), Quiet())


def told(report: FsckReport) -> list[str]:
    """The problems' codes, each once."""
    return sorted({found.problem.value for found in report.found})
