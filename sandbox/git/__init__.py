"""The only place that runs git (`process`), and what the rest reads (`objects`) and writes (`import_stream`) with it."""

from sandbox.git.formats import ANDON, Identity, blob_sha, checked_sha, is_sha
from sandbox.git.import_stream import NO_OBJECT, ImportStream, remove_abandoned_imports
from sandbox.git.objects import (
    LISTING_BYTES_MAX,
    ObjectReader,
    ObjectStream,
    commit_tree,
    list_tree,
    objects_reader,
    objects_stream,
    sizes,
)
from sandbox.git.process import VERSION_RECOMMENDED, VERSION_REQUIRED, Git, GitOutputTooLarge, Owner, require_version, version
from sandbox.git.thread import in_thread

__all__ = [
    "ANDON",
    "LISTING_BYTES_MAX",
    "NO_OBJECT",
    "VERSION_RECOMMENDED",
    "VERSION_REQUIRED",
    "Git",
    "GitOutputTooLarge",
    "Identity",
    "ImportStream",
    "ObjectReader",
    "ObjectStream",
    "Owner",
    "blob_sha",
    "checked_sha",
    "commit_tree",
    "in_thread",
    "is_sha",
    "list_tree",
    "objects_reader",
    "objects_stream",
    "remove_abandoned_imports",
    "require_version",
    "sizes",
    "version",
]
