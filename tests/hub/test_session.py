"""How long is waited for the Hub, what is said meanwhile, and what is never shown."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from huggingface_hub import HfApi, get_session, hf_hub_download
from huggingface_hub.utils import hf_raise_for_status, httpx

from shortv_export.errors import ShortVError
from shortv_export.hub import client, patience, session
from shortv_export.hub.client import hub_error, is_transient, retry, seconds_to_wait
from shortv_export.processes import stopping


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("READ_SECONDS", 0.5), ("PATIENCE_SECONDS", 1.5), ("NOTICE_SECONDS", 0.1)):
        monkeypatch.setattr(patience, name, seconds)
    patience.silence.end()
    monkeypatch.setattr(client, "DELAYS", (0.0,) * 5)


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("impatient")
def test_a_silent_hub(hub: Any, caplog: pytest.LogCaptureFixture) -> None:
    hub.create_repo("acme/base", files={"config.json": b"{}"})
    hub.fail(action="hang", times=1000)
    requests: dict[str, Any] = {
        "model acme/base": lambda: HfApi().model_info("acme/base"),
        "its files": lambda: list(HfApi().list_repo_tree("acme/base")),
        "its config": lambda: hf_hub_download("acme/base", "config.json"),
    }
    for what, request in requests.items():
        caplog.clear()
        before = len(hub.requests)
        with pytest.raises(ShortVError, match=f"^{what} could not be reached .*; check the network"):
            retry(request, what)
        assert len(hub.requests) - before < 12, "it is not asked again and again"
        assert "waiting for the Hub (model acme/base) ..." in caplog.messages


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("impatient")
def test_a_head_that_comes_byte_by_byte() -> None:
    """Each byte arrives in time; the head does not."""
    ended = threading.Event()

    def drip() -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Padding: ")
            while not ended.wait(0.05):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        before = time.monotonic()
        with pytest.raises(httpx.ReadTimeout), session._client() as ours:
            ours.get(f"http://127.0.0.1:{server.getsockname()[1]}/")
        assert time.monotonic() - before < 10
        ended.set()
        thread.join()


@pytest.mark.usefixtures("impatient")
def test_an_answer_in_time_is_waited_for(hub: Any) -> None:
    hub.create_repo("acme/base", files={"config.json": b"{}"})
    hub.fail(action="stall", seconds=0.2)
    assert retry(lambda: HfApi().model_info("acme/base"), "model").id == "acme/base"
    hub.fail(action="hang", nth=1)
    assert retry(lambda: HfApi().model_info("acme/base"), "model").id == "acme/base", "one lost answer does no harm"


@pytest.mark.usefixtures("impatient")
def test_refusals_for_long_are_told(
    hub: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.create_repo("acme/base")
    hub.fail(status=503, times=4)
    monkeypatch.setattr(client, "DELAYS", (0.06,) * 5)
    retry(lambda: HfApi().model_info("acme/base"), "model")
    assert "waiting for the Hub (model acme/base), which answers with status 503 ..." in caplog.messages


def test_the_cache_helps_if_the_hub_is_silent(hub: Any, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.create_repo("acme/base", files={"config.json": b"{}"})
    path = hf_hub_download("acme/base", "config.json")
    hub.fail(action="hang", times=1000)
    assert hf_hub_download("acme/base", "config.json") == path


def test_large_uploads_have_time() -> None:
    with session._client() as ours:
        for size, least in ((0, 29), (1 << 30, 45), (5 << 30, 130)):
            request = ours.build_request("PUT", "http://127.0.0.1/x", headers={"Content-Length": str(size)})
            patience.set_timeouts(request)
            assert request.extensions["timeout"]["read"] >= least


def test_everything_of_huggingface_hub_goes_through_this_client() -> None:
    assert isinstance(get_session(), session.Client)


def test_nothing_is_sent_while_the_command_is_being_stopped(hub: Any) -> None:
    stopping.set()
    try:
        with pytest.raises(patience.NoAnswer):
            get_session().get(hub.url)
    finally:
        stopping.clear()
    assert hub.requests == []


@pytest.mark.parametrize("status", [403, 500, 503])
def test_signed_addresses_are_not_shown(status: int) -> None:
    url = "https://user:SECRET@bucket.s3.amazonaws.com/a/b?X-Amz-Signature=SECRET&X-Amz-Expires=900"
    with pytest.raises(httpx.HTTPError) as raised:
        hf_raise_for_status(httpx.Response(status, request=httpx.Request("PUT", url)))
    wrapped = RuntimeError("Error while uploading 'model.safetensors' to the Hub.")
    wrapped.__cause__ = raised.value
    for error in (raised.value, wrapped):
        message = str(hub_error(error, "loopback/model"))
        assert "SECRET" not in message
        assert "bucket.s3.amazonaws.com/a/b" in message


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [("3", 3), ("0", 0), ("1000000000", 60), ("9" * 400, 60), ("-5", 7), ("\u00b2", 7), ("Wed, 21 Oct", 7), ("", 7)],
)
def test_what_the_hub_asks_to_wait(asked: str, seconds: float) -> None:
    response = httpx.Response(429, headers=[(b"Retry-After", asked.encode())])
    error = httpx.HTTPStatusError("slow down", request=httpx.Request("GET", "http://x"), response=response)
    assert seconds_to_wait(error, 7) == seconds


def test_what_may_pass() -> None:
    assert is_transient(httpx.ReadTimeout(""))
    assert is_transient(httpx.ConnectError(""))
    for error in (patience.NoAnswer(""), session.BadAnswer(""), httpx.TooManyRedirects(""), KeyError(), ValueError()):
        assert not is_transient(error)
    silent = patience.NoAnswer("")
    silent.__cause__ = httpx.ReadTimeout("")
    assert not is_transient(silent)


@pytest.mark.parametrize("error", [KeyError("sha"), TypeError("no list"), AttributeError("get"), RecursionError()])
def test_what_the_client_cannot_take_apart(error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(ShortVError, match=r"^model: the Hub's answer cannot be read \("):
        retry(fail, "model")


def test_own_files_are_not_the_hubs_fault() -> None:
    message = str(hub_error(FileNotFoundError(2, "No such file or directory", "/tmp/x"), "loopback/model"))
    assert message == "loopback/model failed: [Errno 2] No such file or directory: '/tmp/x'."


def test_retries_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(client, "DELAYS", (50.0,) * 10)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    with pytest.raises(ShortVError):
        retry(lambda: (_ for _ in ()).throw(httpx.ConnectError("refused")), "the Hub")
    assert now[0] == 100
