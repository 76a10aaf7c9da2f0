"""Notes in memory."""

import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class Note:
    """One note."""

    id: int
    text: str


class NoteStore:
    """Keeps notes; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._notes: dict[int, Note] = {}
        self._next_id = 1

    def add(self, text: str) -> Note:
        """Keep a new note and return it."""
        with self._lock:
            note = Note(self._next_id, text)
            self._notes[note.id] = note
            self._next_id += 1
            return note

    def all(self) -> list[Note]:
        """Return every note, oldest first."""
        with self._lock:
            return list(self._notes.values())

    def get(self, note_id: int) -> Note | None:
        """Return a note, None if there is no such one."""
        with self._lock:
            return self._notes.get(note_id)

    def remove(self, note_id: int) -> bool:
        """Forget a note and return whether there was one."""
        with self._lock:
            return self._notes.pop(note_id, None) is not None
