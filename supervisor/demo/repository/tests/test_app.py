"""The application, without HTTP."""

import json

from notes_api.app import Application
from notes_api.http_types import Request
from notes_api.store import NoteStore


def post(application, text):
    return application.handle(Request("POST", "/notes", json.dumps({"text": text}).encode()))


def test_health_is_ok():
    response = Application(NoteStore()).handle(Request("GET", "/health"))

    assert response.status == 200
    assert json.loads(response.body) == {"status": "ok"}


def test_a_created_note_can_be_read():
    application = Application(NoteStore())

    created = post(application, "buy milk")

    assert created.status == 201
    read = application.handle(Request("GET", "/notes/1"))
    assert json.loads(read.body) == {"id": 1, "text": "buy milk"}


def test_notes_are_listed_oldest_first():
    application = Application(NoteStore())
    post(application, "one")
    post(application, "two")

    listed = application.handle(Request("GET", "/notes"))

    assert [note["text"] for note in json.loads(listed.body)["notes"]] == ["one", "two"]


def test_a_deleted_note_is_gone():
    application = Application(NoteStore())
    post(application, "one")

    deleted = application.handle(Request("DELETE", "/notes/1"))

    assert deleted.status == 204
    assert application.handle(Request("GET", "/notes/1")).status == 404


def test_an_empty_text_is_refused():
    assert post(Application(NoteStore()), "").status == 400


def test_an_unknown_route_is_not_found():
    assert Application(NoteStore()).handle(Request("GET", "/nowhere")).status == 404
