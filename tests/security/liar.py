"""An executor that writes git objects, packs and bundle headers as it likes; no rule of git's is checked."""

import struct
import zlib
from hashlib import sha1

from sandbox.mirror import Mirror
from sandbox.quarantine import BUNDLE_HEADER, RESULT_REF


class Liar:
    """An executor that writes objects, packs and headers as it likes."""

    def __init__(self, mirror: Mirror, base: str) -> None:
        self.mirror, self.base = mirror, base
        self._objects: dict[bytes, tuple[int, bytes]] = {}
        self.last = b""

    def store(self, kind: str, data: bytes) -> bytes:
        """Put an object into the pack to come; returns its 20-byte name. No rule is checked."""
        name = sha1(b"%s %d\0" % (kind.encode(), len(data)) + data).digest()
        self.last = name
        self._objects[name] = ({"commit": 1, "tree": 2, "blob": 3, "tag": 4}[kind], data)
        return name

    def tree(self, *entries: tuple[str, bytes, bytes]) -> bytes:
        """(mode, name, object) as they are, in this order."""
        return self.store("tree", b"".join(mode.encode() + b" " + name + b"\0" + target for mode, name, target in entries))

    def with_base(self, *entries: tuple[str, bytes, bytes]) -> bytes:
        """The base's root tree with entries added, sorted as git does."""
        raw = self.mirror.git.run("cat-file", "tree", f"{self.base}^{{tree}}")
        all_entries = {name: (mode, name, target) for mode, name, target in [*_entries(raw), *entries]}
        return self.tree(*sorted(all_entries.values(), key=lambda entry: entry[1] + (b"/" if entry[0] == "40000" else b"")))

    def commit(self, tree: bytes, *parents: str) -> str:
        """A commit; the base is its parent unless others are given."""
        lines = [f"tree {tree.hex()}", *(f"parent {parent}" for parent in parents or (self.base,))]
        lines += ["author a <a@b> 0 +0000", "committer a <a@b> 0 +0000", "", "m", ""]
        return self.store("commit", "\n".join(lines).encode()).hex()

    def bundle(self, commit: str) -> bytes:
        """A bundle with a right header and exactly the stored objects."""
        return BUNDLE_HEADER + f"-{self.base}\n{commit} {RESULT_REF}\n\n".encode() + self.pack()

    def pack(self) -> bytes:
        body = b"".join(_packed(kind, data) for kind, data in self._objects.values())
        head = b"PACK" + struct.pack(">II", 2, len(self._objects))
        return head + body + sha1(head + body).digest()


def _packed(kind: int, data: bytes) -> bytes:
    size, first = len(data) >> 4, (kind << 4) | (len(data) & 15)
    header = bytearray()
    while size:
        header.append(first | 128)
        first, size = size & 127, size >> 7
    header.append(first)
    return bytes(header) + zlib.compress(data, 1)


def _entries(raw: bytes) -> list[tuple[str, bytes, bytes]]:
    entries = []
    while raw:
        head, _, rest = raw.partition(b"\0")
        mode, _, name = head.partition(b" ")
        entries.append((mode.decode(), name, rest[:20]))
        raw = rest[20:]
    return entries
