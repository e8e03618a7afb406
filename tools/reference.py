"""Write what can be derived from the code: docs/reference/ and conf/museworkd.toml. A test keeps them current.

With ``--check`` nothing is written; the exit code tells whether everything is current.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path

import click

from museworkd import config as config_module
from museworkd.cli.main import main
from wire import errors

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
HEAD = "<!-- Written by tools/reference.py from the code; edit the docstrings there. -->\n\n"


def docstrings(cls: type) -> dict[str, str]:
    """Read the strings that stand below the members of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base is object or base.__module__ in {"enum", "builtins"}:
            continue
        body = ast.parse(inspect.getsource(base)).body[0].body
        for first, second in itertools.pairwise(body):
            target = first.target if isinstance(first, ast.AnnAssign) else getattr(first, "targets", [None])[0]
            if isinstance(target, ast.Name) and isinstance(second, ast.Expr) and isinstance(second.value, ast.Constant):
                found[target.id] = " ".join(str(second.value.value).split())
    return found


def settings() -> Iterator[tuple[str, str, object, str]]:
    """Give section, name, default and meaning of every setting."""
    defaults = config_module.Config()
    own = docstrings(config_module.Config)
    for section in fields(config_module.Config):
        part = getattr(defaults, section.name)
        if not is_dataclass(part):
            yield "", section.name, part, own.get(section.name, "")
            continue
        texts = docstrings(type(part))
        for entry in fields(part):
            yield section.name, entry.name, getattr(part, entry.name), texts.get(entry.name, "")


def as_toml(value: object) -> str:
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, Path):
        value = "" if value == Path() else str(value)
    return json.dumps(value)


def settings_page() -> str:
    out = HEAD + (
        "# Settings\n\nDefaults < TOML file < environment < flags. The file is the one given with `--config`, else "
        "`$MUSEWORKD_CONFIG`, else `museworkd.toml` here or `/etc/museworkd/museworkd.toml`. A setting `section.name` is "
        "`MUSEWORKD_SECTION_NAME` in the environment and `--set section.name=value` on the command line. An unknown "
        "setting anywhere is an error at start-up (exit code 4). `museworkd config show` tells where each value comes "
        "from. Names that end in `_s` are seconds, in `_bytes` bytes.\n"
    )
    current = None
    for section, name, value, text in settings():
        if section != current:
            current = section
            title = f"[{section}]" if section else "Before all sections"
            out += f"\n## {title}\n\n| setting | default | meaning |\n|---|---|---|\n"
        out += f"| `{name}` | `{as_toml(value)}` | {text} |\n"
    return out


def settings_file() -> str:
    out = "# museworkd's settings with their defaults. Written by tools/reference.py; see docs/reference/settings.md.\n"
    current = ""
    for section, name, value, text in settings():
        if section != current:
            current = section
            out += f"\n[{section}]\n"
        for line in wrapped(text):
            out += f"# {line}\n"
        empty = isinstance(value, Path) and value == Path()
        out += f"{'# ' if empty else ''}{name} = {as_toml(value)}\n"
    return out


def wrapped(text: str, width: int = 110) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + len(word) >= width:
            yield line
            line = ""
        line = f"{line} {word}".strip()
    if line:
        yield line


def commands_page() -> str:
    out = HEAD + (
        "# Commands\n\nResults go to stdout, words for people to stderr; `--json` makes results machine-readable.\n\n"
        "| exit code | meaning |\n|---|---|\n| 0 | done |\n| 1 | refused or wrong, yours to mend |\n"
        "| 2 | wrong usage |\n| 3 | damaged, unreachable or cut |\n| 4 | wrong configuration or schema |\n"
        "| 130 | interrupted |\n"
        "| 143 | terminated |\n"
    )
    context = click.Context(main, info_name="museworkd")
    for path, command in walk(context, main):
        if hasattr(command, "_help_option"):  # kept from whoever ran it first, by other names perhaps
            command._help_option = None  # noqa: SLF001
        with click.Context(command, info_name=path, terminal_width=78, help_option_names=["-h", "--help"]) as inner:
            out += f"\n## {path}\n\n```\n{command.get_help(inner)}\n```\n"
    return out


def walk(context: click.Context, group: click.Group) -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        path = f"{context.info_name} {name}"
        if isinstance(command, click.Group):
            yield from walk(click.Context(command, info_name=path), command)
        else:
            yield path, command


def error_codes_page() -> str:
    out = HEAD + (
        "# Error codes\n\nEvery refusal is `{error, detail, request_id, retryable, …}`: as the body of an HTTP answer, or "
        "as the `X` frame that ends a push. Codes are stable: new ones may come, none is renamed. `retryable` says "
        "whether sending the same thing again may succeed.\n\n| code | status | retryable | meaning |\n|---|--:|---|---|\n"
    )
    texts = docstrings(errors.Code)
    for code in errors.Code:
        out += f"| `{code.text}` | {code.status} | {'yes' if code.retryable else 'no'} | {texts.get(code.name, '')} |\n"
    return out


PAGES = {
    REFERENCE / "settings.md": settings_page,
    REFERENCE / "commands.md": commands_page,
    REFERENCE / "error-codes.md": error_codes_page,
    ROOT / "conf" / "museworkd.toml": settings_file,
}


def stale() -> list[Path]:
    """Give the files that differ from what the code says."""
    return [path for path, make in PAGES.items() if not path.exists() or path.read_text("utf-8") != make()]


if __name__ == "__main__":
    if "--check" in sys.argv:
        for path in stale():
            print(f"{path.relative_to(ROOT)} is not current: run tools/reference.py", file=sys.stderr)
        sys.exit(bool(stale()))
    for path, make in PAGES.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make(), "utf-8")
