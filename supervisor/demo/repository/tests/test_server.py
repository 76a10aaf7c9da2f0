"""The API over HTTP."""

import json
import threading
import urllib.request

import pytest

from notes_api.server import make_server


@pytest.fixture
def url():
    with make_server("127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_note_goes_in_and_comes_out_over_http(url):
    request = urllib.request.Request(f"{url}/notes", data=b'{"text": "hello"}', method="POST")

    with urllib.request.urlopen(request) as created:
        assert created.status == 201

    with urllib.request.urlopen(f"{url}/notes") as listed:
        assert json.load(listed)["notes"] == [{"id": 1, "text": "hello"}]
