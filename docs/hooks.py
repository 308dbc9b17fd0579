"""What mkdocs does besides: the home page is the README, and the command line's page comes from the parser.

Pages link to the rest of the repository with `../`, as GitHub needs it. Here these links become addresses of the
repository, and pictures of it become files of the site.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
PICTURES = "benchmarks/results"


def on_files(files: Any, config: Any) -> Any:
    """Add the README as the home page, and the pictures of the benchmarks."""
    from mkdocs.structure.files import File

    repository = config.extra["repository"]
    home = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for address in (f"{repository}/blob/main/docs/", f"{repository}/raw/main/docs/"):
        home = home.replace(address, "")
    home = home.replace(f"{repository}/raw/main/{PICTURES}/", f"{PICTURES}/")
    files.append(File.generated(config, "index.md", content=home))
    for picture in sorted((REPOSITORY / PICTURES).glob("*.[ps][nv]g")):
        files.append(File.generated(config, f"{PICTURES}/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Write the commands, and turn links to the rest of the repository into addresses."""
    if page.file.src_uri == "command_line.md":
        markdown = markdown.replace("<!-- commands -->", commands())
    markdown = markdown.replace(f"](../{PICTURES}/", f"]({PICTURES}/")
    return re.sub(r"\]\(\.\./([^)]+)\)", rf"]({config.extra['repository']}/blob/main/\1)", markdown)


def commands() -> str:
    """Return every command of the parser in Markdown: purpose, usage, options by group, examples."""
    for folder in ("runtime", "export"):
        if str(REPOSITORY / folder) not in sys.path:
            sys.path.insert(0, str(REPOSITORY / folder))
    from e5onnx.cli import COMMANDS

    lines: list[str] = []
    for name, command in COMMANDS.items():
        parser = argparse.ArgumentParser(prog=f"e5onnx {name}")
        parser.add_argument("--quiet", action="store_true", help="show neither progress nor notes, only warnings")
        command.add_arguments(parser)
        groups = [(group.title or "", group._group_actions) for group in parser._action_groups]
        names = [_name(action) for _, actions in groups for action in actions if not action.option_strings]
        lines += [
            f"## e5onnx {name}\n\n{command.purpose[0].upper()}{command.purpose[1:]}.\n",
            f"```text\ne5onnx {name} [OPTIONS] {' '.join(names)}".rstrip() + "\n```\n",
        ]
        lines += ["| argument | meaning |\n|---|---|"]
        for title, actions in groups:
            rows = [f"| `{_name(action)}` | {_help(parser, action)} |" for action in actions if action.dest != "help"]
            lines += [f"| **{title}** | |" if rows and title not in ("positional arguments", "options") else "", *rows]
        lines = [line for line in lines if line]
        lines += ["\n```sh\n" + "\n".join(command.examples) + "\n```\n"]
    return "\n".join(lines)


def _name(action: argparse.Action) -> str:
    metavar = action.metavar
    if metavar is None and action.choices:
        metavar = "{" + ",".join(map(str, action.choices)) + "}"
    value = "" if action.nargs == 0 else str(metavar or action.dest.upper())
    if action.option_strings:
        return f"{', '.join(action.option_strings)} {value}".rstrip().replace("|", r"\|")
    return f"[{value}]" if action.nargs == "?" else f"{value} ..." if action.nargs in ("*", "+") else value


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    return text.replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*")
