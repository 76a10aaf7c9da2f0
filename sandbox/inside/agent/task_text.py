"""Turns the task bundle in `/task` into one deterministic text for the first message; not what goes into the bundle.

The text of equal bundles is equal byte for byte (sorted, no dates, no sizes of anything else), so that it is cached.
"""

import os
from pathlib import Path

TEXT_CHARS_MAX = 96_000
FILES_MAX = 500


def read_task_text(task: Path) -> str:
    """Return the bundle's Markdown and YAML files inline, in order of path, and the names of the rest; "" if there is none."""
    inline: list[str] = []
    named: list[str] = []
    room = TEXT_CHARS_MAX
    for path in _files(task):
        name = f"/task/{path.relative_to(task).as_posix()}"
        text = _text_of(path) if path.suffix in {".md", ".yaml", ".yml"} else None
        if text is None or len(text) > room:
            named.append(name)
            continue
        room -= len(text)
        inline.append(f'<file path="{name}">\n{text.rstrip()}\n</file>')
    if named:
        inline.append("More files of this task, to be read when needed:\n" + "\n".join(named))
    return "\n\n".join(inline)


def _files(task: Path) -> list[Path]:
    found = [Path(folder) / name for folder, _, names in os.walk(task) for name in names]
    return sorted(path for path in found if path.is_file() and not path.is_symlink())[:FILES_MAX]


def _text_of(path: Path) -> str | None:
    if path.stat().st_size > TEXT_CHARS_MAX * 4:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
