"""The served report: it follows the records, answers this machine only, and says why a port cannot be had."""

from __future__ import annotations

import http.client
import threading

import pytest

from backbench.errors import BackbenchError
from benchmarks.records import store
from benchmarks.report.serve import Live, server


@pytest.fixture
def served(tmp_path, make):
    store.write(tmp_path, make(50.0))
    with server(Live(tmp_path, None, {}), 0) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def ask(served, path, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", served.server_port, timeout=60)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer


def test_page_and_version_change_with_the_records(served, tmp_path, make):
    status, page, answer = ask(served, "/")
    version = ask(served, "/version")[1]
    assert status == 200 and f'data-served="{version}"' in page and "connect-src 'self'" in page.replace("&#39;", "'")
    assert answer.headers["Cache-Control"] == "no-store"
    assert ask(served, "/version")[1] == version
    store.write(tmp_path, make(60.0, name="later", weights="b"))
    assert ask(served, "/version")[1] != version and "later (resnet50)" in ask(served, "/")[1]


def test_nothing_is_written(served, tmp_path):
    before = sorted(path for path in tmp_path.rglob("*") if path.name != ".intervals")
    ask(served, "/")
    assert sorted(path for path in tmp_path.rglob("*") if path.name != ".intervals") == before


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/report.html", "/?x", "/version/"])
def test_other_paths_are_not_found(served, path):
    assert ask(served, path)[0] == 404


@pytest.mark.parametrize("host", ["example.org", "example.org:8000", "127.0.0.1.example.org:80", ""])
def test_a_page_of_another_site_gets_nothing(served, host):
    """A name of theirs that resolves to this machine (DNS rebinding)."""
    status, text, _ = ask(served, "/", Host=host)
    assert status == 403 and "50.0" not in text


def test_only_this_machine_can_connect(served):
    assert served.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("port", ["taken", 70_000])
def test_a_port_that_cannot_be_had_is_a_sentence(served, port, tmp_path):
    number = served.server_port if port == "taken" else port
    with pytest.raises(BackbenchError, match="`--serve 0` takes any free port"):
        server(Live(tmp_path, None, {}), number)
