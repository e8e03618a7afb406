"""``museworkd``: one command for operators and for users of a repository."""

from __future__ import annotations

from museworkd.cli.endings import end_at_once, exit_by_signal, signals_of_a_program

if __name__ == "__main__":
    end_at_once()

import importlib
from typing import Any

import click

_COMMANDS = {
    "serve": ("serve_command", "serve_command"),
    "migrate": ("operator_commands", "migrate_command"),
    "repo": ("operator_commands", "repo_group"),
    "token": ("operator_commands", "token_group"),
    "quota": ("operator_commands", "quota_command"),
    "jobs": ("jobs_commands", "jobs_group"),
    "gc": ("upkeep_commands", "gc_command"),
    "scrub": ("upkeep_commands", "scrub_command"),
    "fsck": ("fsck_command", "fsck_command"),
    "backfill": ("backfill_command", "backfill_command"),
    "migrate-store": ("migrate_store_command", "migrate_store_command"),
    "store": ("store_commands", "store_group"),
    "reindex": ("reindex_command", "reindex_command"),
    "config": ("config_commands", "config_group"),
    "git-import": ("client_commands", "import_command"),
    "push": ("push_command", "push_command"),
    "clone": ("client_commands", "clone_command"),
    "fetch": ("client_commands", "fetch_command"),
    "pull": ("pull_command", "pull_command"),
    "verify": ("client_commands", "verify_command"),
}
"""Name → module and object: a command is imported when it is called, so that a client does not load the server."""


class _Commands(click.Group):
    def main(self, *args: Any, **extra: Any) -> Any:
        """Run as a program: a signal ends it with its own exit code at any moment."""
        with signals_of_a_program():
            return super().main(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a Ctrl-C at a question counts as one, too."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            exit_by_signal()
        except click.Abort as aborted:
            if isinstance(aborted.__context__, KeyboardInterrupt):
                exit_by_signal()
            raise

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"museworkd.cli.{module}"), name)
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 refused or wrong, yours to mend; 2 wrong usage; 3 damaged, unreachable or cut; "
    "4 wrong configuration or schema; 130 interrupted; 143 terminated.",
)
@click.version_option(package_name="museworkd")
def main() -> None:
    """The server of the Muse version-control system, and a client for it."""


if __name__ == "__main__":
    main()
