"""Takes secrets out of text before others read it: values this host knows, and the shapes keys have; not which text (`log`, `gateway`).

A secret in another encoding (base64 of a file, an image) has no shape and is not found; that is why content is opted in to.
"""

import re
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

REPLACEMENT = "[secret]"
SECRET_CHARS_MAX = 4_096
"""A known value is no longer, and a key's shape is seen in less."""
_KNOWN_CHARS_MIN = 8
"""A shorter value would blank out ordinary words."""
_SHAPES = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----|\Z)"
    r"|(?<![A-Za-z0-9])(?:"
    r"sk-[A-Za-z0-9_-]{12,}|gh[opsur]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}"
    r"|npm_[A-Za-z0-9]{20,}|pypi-[A-Za-z0-9_-]{16,}|xox[abeoprs]-[A-Za-z0-9-]{10,}|AIza[A-Za-z0-9_-]{30,}"
    r"|A(?:KIA|SIA)[A-Z0-9]{16}|S[ACNOUX][A-Z2-7]{56}|eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_.-]{10,}"
    r")"
    r"|(?<=://)[^\s/@:]{0,200}:[^\s/@]{1,400}(?=@)"
    r"|(?<=[Bb]earer )[A-Za-z0-9._~+/=-]{12,}"
)
_PASSWORD = re.compile(r"://[^\s/@:]{0,200}:([^\s/@]{1,400})@")
_NAMES = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|HEADERS)$", re.IGNORECASE)


class Scrub:
    """Replaces what must not be read."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        """Know values besides the shapes; those of fewer than 8 characters are passed over."""
        values = {value for value in known if _KNOWN_CHARS_MIN <= len(value) <= SECRET_CHARS_MAX}
        # The longest first: a part of it would leave the rest.
        self._known = re.compile("|".join(re.escape(value) for value in sorted(values, key=len, reverse=True))) if values else None

    def of(self, text: str) -> str:
        """Return `text` without secrets."""
        plain = self._known.sub(REPLACEMENT, text) if self._known else text
        return _SHAPES.sub(REPLACEMENT, plain)

    def finds(self, text: str) -> bool:
        """Return whether there is a secret in `text`."""
        return bool(_SHAPES.search(text) or (self._known and self._known.search(text)))

    def beginning(self, text: str, chars_max: int) -> str:
        """Return at most so many characters from the beginning of `text`, without secrets, not even a half one where it is cut."""
        looked_at = text[: chars_max + SECRET_CHARS_MAX]
        clean = self.of(looked_at)
        if len(looked_at) < len(text):
            # A secret cut by the first bound has no shape any more; it lies within the last `SECRET_CHARS_MAX` characters.
            clean = clean[:-SECRET_CHARS_MAX]
        return clean[:chars_max]


def secrets_of(environment: Mapping[str, str]) -> set[str]:
    """Return what is secret in an environment: values whose names say so (`NPM_TOKEN`, `DB_PASSWORD`), and passwords in addresses."""
    named = {value.strip() for name, value in environment.items() if _NAMES.search(name)}
    return named | {unquote(found[1]) for value in environment.values() for found in _PASSWORD.finditer(value)}
