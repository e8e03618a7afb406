"""``museworkd``: one command for operators and for users of a repository."""

from __future__ import annotations

import click

from museworkd.cli.client_commands import clone_command, fetch_command, import_command, push_command, verify_command
from museworkd.cli.config_commands import config_group
from museworkd.cli.operator_commands import migrate_command, repo_group, token_group
from museworkd.cli.serve_command import serve_command


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 refused or wrong, yours to mend; 2 wrong usage; 3 damaged, unreachable or cut; "
    "4 wrong configuration or schema; 130 interrupted.",
)
@click.version_option(package_name="museworkd")
def main() -> None:
    """The server of the Muse version-control system, and a client for it."""


for _command in (
    serve_command, migrate_command, repo_group, token_group, config_group,
    import_command, push_command, clone_command, fetch_command, verify_command,
):  # fmt: skip
    main.add_command(_command)

if __name__ == "__main__":
    main()
