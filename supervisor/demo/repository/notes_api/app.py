"""The application: a request in, a response out."""

import json

from notes_api.http_types import Request, Response, error_response, json_response
from notes_api.store import Note, NoteStore

TEXT_CHARS_MAX = 1000


class Application:
    """Answers the requests of the API."""

    def __init__(self, store: NoteStore) -> None:
        self._store = store

    def handle(self, request: Request) -> Response:
        """Return the reply to one request."""
        return self._route(request)

    def _route(self, request: Request) -> Response:
        parts = [part for part in request.path.split("?")[0].split("/") if part]
        match request.method, parts:
            case "GET", ["health"]:
                return json_response(200, {"status": "ok"})
            case "GET", ["notes"]:
                return json_response(200, {"notes": [_as_json(note) for note in self._store.all()]})
            case "POST", ["notes"]:
                return self._create(request)
            case "GET", ["notes", note_id]:
                note = self._store.get(int(note_id)) if note_id.isdecimal() else None
                return json_response(200, _as_json(note)) if note else error_response(404, "no such note")
            case "DELETE", ["notes", note_id]:
                removed = note_id.isdecimal() and self._store.remove(int(note_id))
                return Response(204) if removed else error_response(404, "no such note")
            case _:
                return error_response(404, "no such route")

    def _create(self, request: Request) -> Response:
        try:
            text = json.loads(request.body)["text"]
        except (ValueError, KeyError, TypeError):
            return error_response(400, "the body is JSON with a text")
        if not isinstance(text, str) or not 1 <= len(text) <= TEXT_CHARS_MAX:
            return error_response(400, f"a text has 1 to {TEXT_CHARS_MAX} characters")
        return json_response(201, _as_json(self._store.add(text)))


def _as_json(note: Note) -> dict[str, object]:
    return {"id": note.id, "text": note.text}
