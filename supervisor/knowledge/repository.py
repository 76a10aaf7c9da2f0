"""What a committed tree tells an agent: structure, conventions, the outline of modules; bounded and deterministic. Nothing is executed.

Everything here is text somebody else wrote: it is quoted, and never mixed with the rules of a task.
"""

from collections.abc import Iterable

from sandbox.contract.errors import Rejected
from sandbox.contract.python_source import SOURCE_BYTES_MAX, BadSource, parse, surface_of
from sandbox.contract.tree import Tree
from sandbox.contract.tree_rules import shown

STRUCTURE_CHARS_MAX = 6_000
CONVENTIONS_CHARS_MAX = 10_000
OUTLINE_CHARS_MAX = 12_000
_CONVENTIONS = ("AGENTS.md", "CLAUDE.md", "CONTRIBUTING.md", "docs/CONTRIBUTING.md", ".github/CONTRIBUTING.md")
_SHOWN_PER_DIRECTORY = 12


def structure_of(tree: Tree) -> str:
    """Return the files of a tree by directory, the outer directories first; large ones are counted, not listed."""
    directories: dict[str, list[str]] = {}
    for path in tree.entries():
        folder, _, name = path.rpartition("/")
        directories.setdefault(folder, []).append(name)
    lines: list[str] = []
    room = STRUCTURE_CHARS_MAX
    ordered = sorted(directories, key=lambda folder: (folder.count("/") + bool(folder), folder))
    for at, folder in enumerate(ordered):
        names = sorted(directories[folder])
        more = len(names) - _SHOWN_PER_DIRECTORY
        line = f"{shown(folder) or '.'}/: {', '.join(shown(name) for name in names[:_SHOWN_PER_DIRECTORY])}"
        line += f" and {more} more" if more > 0 else ""
        if len(line) > room:
            lines.append(f"… and {len(ordered) - at} more directories")
            break
        lines.append(line)
        room -= len(line) + 1
    return "\n".join(lines)


def conventions_of(tree: Tree) -> str:
    """Return the repository's own advice to contributors and agents, each line marked as quoted; empty if there is none."""
    parts: list[str] = []
    room = CONVENTIONS_CHARS_MAX
    for path in _CONVENTIONS:
        text = _text(tree, path)
        if text is None or room <= 0:
            continue
        kept = text[:room]
        room -= len(kept)
        cut = "\n| [cut here; the whole file is in /workspace]" if len(kept) < len(text) else ""
        parts.append(f"{path}:\n{quoted(kept)}{cut}")
    return "\n\n".join(parts)


def outline_of(tree: Tree, paths: Iterable[str]) -> str:
    """Return the public names of Python modules with their headers: what exists around a feature.

    Args:
        tree: Where to look.
        paths: Files, or directories whose modules are meant; what is not there is left out.
    """
    wanted = tuple(path.strip("/") for path in paths)
    modules = [
        path for path in sorted(tree.entries()) if path.endswith(".py") and any(path == one or path.startswith(f"{one}/") for one in wanted)
    ]
    parts: list[str] = []
    room = OUTLINE_CHARS_MAX
    for path in modules:
        try:
            surface = surface_of(parse(tree.read(path, SOURCE_BYTES_MAX)))
        except (BadSource, KeyError, Rejected):
            continue
        headers = [text for name, texts in surface.names.items() for text in texts if name not in surface.imports and not _is_private(name)]
        part = f"{shown(path)}:\n{quoted(chr(10).join(headers))}"
        if not headers or len(part) > room:
            continue
        parts.append(part)
        room -= len(part)
    return "\n\n".join(parts)


def quoted(text: str) -> str:
    """Return text with every line marked, so that it cannot be taken for the task's own words."""
    return "\n".join(f"| {line}" for line in text.splitlines())


def _is_private(name: str) -> bool:
    return any(part.startswith("_") for part in name.split("."))


def _text(tree: Tree, path: str) -> str | None:
    try:
        return tree.read(path).decode("utf-8", "replace")
    except (KeyError, Rejected):
        return None
