"""Private studies stay on this machine, or go to a host that was named for it."""

import pytest

from sae_lens_maira import phantom
from sae_lens_maira.errors import InterpretError
from sae_lens_maira.interpret.making import make_models
from sae_lens_maira.interpret.privacy import check_private_text, host_of, is_loopback
from sae_lens_maira.interpret.server import ChatServer
from sae_lens_maira.interpret.settings import InterpretSettings, ServerConfig
from tests.interpret.chat_stand_in import ChatStandIn

FREE, PRIVATE = [True, True], [True, False]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080/v1", "http://localhost/v1", "https://[::1]:9/v1", "http://127.9.8.7"]
)
def test_this_machine_may_see_everything(url):
    assert is_loopback(url)
    check_private_text(url, PRIVATE, None)


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.org/v1",
        "http://10.0.0.7:8080/v1",
        "http://127.0.0.1.example.org/v1",
        "http://localhost.example.org/v1",
        "http://127.0.0.1@example.org/v1".replace("127.0.0.1@", ""),
        "http://0.0.0.0:8080/v1",
    ],
)
def test_other_machines_may_not(url):
    assert not is_loopback(url)
    check_private_text(url, FREE, None)
    with pytest.raises(InterpretError, match=r"1 studies may not leave this machine.*private_host: "):
        check_private_text(url, PRIVATE, None)
    with pytest.raises(InterpretError, match="may not leave"):
        check_private_text(url, PRIVATE, "another.example.org")
    check_private_text(url, PRIVATE, host_of(url).upper())


@pytest.mark.parametrize("url", ["api.example.org", "ftp://127.0.0.1", "http://", "http://[::1", "file:///etc/passwd"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(InterpretError, match="is no address of a server"):
        is_loopback(url)


def test_a_password_in_an_address_is_refused():
    with pytest.raises(InterpretError, match="holds a password"):
        host_of("http://127.0.0.1:secret@api.example.org/v1")


def test_nothing_is_sent_before_the_check(tmp_path):
    from dataclasses import replace

    studies = [replace(study, shareable=False) for study in phantom.studies(2, seed=0)]
    settings = InterpretSettings(judge=ServerConfig(url="http://192.0.2.1/v1"))
    with pytest.raises(InterpretError, match="2 studies may not leave"):
        make_models(settings, studies, tmp_path)
    explained = InterpretSettings(explainer=ServerConfig(url="http://192.0.2.1/v1"))
    with pytest.raises(InterpretError, match="2 studies may not leave"):
        make_models(explained, studies, tmp_path)


def test_a_proxy_never_sees_what_goes_to_loopback(monkeypatch):
    with ChatStandIn() as server, ChatStandIn() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert ChatServer(server.url).name == "stand-in"
        assert proxy.bodies == []
