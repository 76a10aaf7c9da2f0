"""Takes examples out of the documents, so that tests run what people copy."""

import re
from pathlib import Path


def block_of(page: Path, language: str) -> str:
    """Return the one fenced block of a language on a page."""
    found = re.findall(rf"(?ms)^```{language}\n(.*?)^```$", page.read_text())
    assert len(found) == 1, f"{page.name} has {len(found)} blocks of {language}"
    return str(found[0])
