"""`sae-lens-maira view`: what is served, to whom, and how it says no."""

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sae_lens_maira.cli.main import main
from sae_lens_maira.dashboard import serve
from sae_lens_maira.dashboard.data_files import put, read
from sae_lens_maira.dashboard.origin import Origin, origin_path
from sae_lens_maira.dashboard.own_folder import mark_gallery
from sae_lens_maira.dashboard.serve import GalleryServer
from sae_lens_maira.errors import ViewError
from tests.dashboard.small_gallery import ALWAYS, D_SAE, make_model, make_sae, make_studies


@contextmanager
def serving(folder):
    with GalleryServer(folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def get(server, path, host="localhost", method="GET", headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=120)
    connection.putrequest(method, path, skip_host=True)
    if host is not None:
        connection.putheader("Host", host)
    for name, value in (headers or {}).items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    return response.status, response.read().decode("utf-8", "replace"), response.headers


@pytest.fixture
def gallery(made, tmp_path):
    return Path(shutil.copytree(made.path, tmp_path / "gallery"))


def test_files_of_the_gallery_are_served_on_the_loopback_interface(gallery):
    with serving(gallery) as server:
        assert server.server_address[0] == "127.0.0.1"
        status, text, headers = get(server, "/")
        assert status == 200
        assert text == (gallery / "index.html").read_text(encoding="utf-8")
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert get(server, "/data/index.js")[2]["Content-Type"].startswith("text/javascript")
        assert get(server, "/images/0-frontal.webp")[2]["Content-Type"] == "image/webp"
        assert get(server, "/data/index.js", method="HEAD")[:2] == (200, "")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", None, "0.0.0.0"])
def test_other_hosts_are_refused(gallery, host):
    with serving(gallery) as server:
        assert get(server, "/", host=host)[0] in (400, 403)
        assert get(server, "/pages/feature_5.html", host=host, method="HEAD")[0] in (400, 403)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:80"])
def test_names_of_this_machine_are_served(gallery, host):
    with serving(gallery) as server:
        assert get(server, "/", host=host)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/data/..%2f..%2fsecret.txt",
        "/linked/secret.txt",
        "/.dashboard.json",
        "/data/.hidden/x.js",
        "/data/",
        "/images/",
        "/nothing.html",
        "/pages/feature_1e3.html",
    ],
)
def test_nothing_outside_and_nothing_hidden_is_served(gallery, path):
    (gallery.parent / "secret.txt").write_text("secret")
    (gallery / ".dashboard.json").write_text('{"sae": "nowhere"}')
    (gallery / "data" / ".hidden").mkdir()
    (gallery / "data" / ".hidden" / "x.js").write_text("secret")
    (gallery / "linked").symlink_to(gallery.parent)
    with serving(gallery) as server:
        status, text, _ = get(server, path)
        assert status == 404
        assert "secret" not in text


@pytest.mark.parametrize(
    ("headers", "path", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "image"}, "/pages/feature_5.html", 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Dest": "document"}, "/pages/feature_5.html", 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "iframe"}, "/", 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}, "/", 200),
        ({"Sec-Fetch-Site": "same-origin"}, "/pages/feature_5.html", 200),
        ({"Sec-Fetch-Site": "none"}, "/pages/feature_5.html", 200),
        ({"Origin": "http://localhost"}, "/data/index.js", 200),
        ({"Origin": "http://localhost:1"}, "/data/index.js", 403),
        ({"Origin": "https://evil.example"}, "/data/index.js", 403),
        ({"Origin": "null"}, "/data/index.js", 403),
    ],
)
def test_other_sites_are_refused(gallery, headers, path, status):
    with serving(gallery) as server:
        assert get(server, path, headers=headers)[0] == status


def test_no_other_site_can_frame_a_page(gallery):
    with serving(gallery) as server:
        headers = get(server, "/")[2]
        assert headers["X-Frame-Options"] == "SAMEORIGIN"
        assert "frame-ancestors 'self'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize("target", ["/%00", "/pages/feature_%00.html", "http://[", "http://[/pages/feature_6.html"])
def test_a_malformed_request_is_answered(gallery, target):
    with serving(gallery) as server, socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as client:
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert client.recv(100).split()[1] in (b"400", b"404")


def test_half_requests_are_dropped_and_the_others_answered(gallery, monkeypatch):
    monkeypatch.setattr(serve._Handler, "timeout", 0.5)
    with serving(gallery) as server:
        address = ("127.0.0.1", server.server_port)
        halves = [socket.create_connection(address, timeout=20) for _ in range(64)]
        for half in halves:
            half.sendall(b"GET / HTTP/1.1\r\nHost:")
        assert get(server, "/")[0] == 200
        assert all(half.recv(1) == b"" for half in halves)
        for half in halves:
            half.close()


def test_two_hundred_requests_at_once_are_answered(gallery):
    with serving(gallery) as server, ThreadPoolExecutor(200) as pool:
        assert set(pool.map(lambda _: get(server, "/data/serving.js")[0], range(200))) == {200}


@pytest.mark.parametrize(
    "text",
    [
        '{"sae": 3}',
        '{"sae": "x", "config": []}',
        '{"sae": "x", "settings": "y"}',
        '{"sae": "x", "cache": 1}',
        '{"sae": "\\u0000"}',
        "[" * 100_000,
        "3",
    ],
)
def test_a_private_file_of_odd_types_is_refused_in_one_sentence(gallery, text):
    origin_path(gallery).write_text(text)
    with pytest.raises(ViewError, match=r"; delete it"):
        GalleryServer(gallery, 0)


def test_a_gallery_from_elsewhere_asks_the_hub_for_nothing_unless_allowed(gallery, tmp_path):
    Origin(str(tmp_path), {"model": {"name": "someone/model"}}).write(gallery)
    with serving(gallery) as server:
        assert server.maker is None, "it is another gallery's"
    mark_gallery(gallery, Origin(str(tmp_path), {"model": {"name": "someone/model"}}).gallery_id)
    with serving(gallery) as server:
        assert server.maker is None
        status, text, _ = get(server, "/pages/feature_6.html")
        assert status == 404
        assert "--allow-download" in text
    with GalleryServer(gallery, 0, allow_download=True) as server:
        assert server.maker is not None


def test_a_page_that_cannot_be_made_says_how(gallery):
    with serving(gallery) as server:
        assert get(server, "/pages/feature_5.html")[0] == 200
        status, text, _ = get(server, "/pages/feature_6.html")
        assert status == 404
        assert "does not say what it was made from" in text
        assert "sae-lens-maira dashboard SAE" in text
        assert get(server, "/data/serving.js")[1] == 'GALLERY.put("serving",false);\n'


@pytest.fixture
def run(tmp_path, monkeypatch):
    """An SAE's folder with the configuration that the command line reads."""
    from sae_lens_maira.training.config import TrainConfig
    from tests.conftest import CHECKPOINT_PATH

    monkeypatch.setenv("SAE_LENS_MAIRA_CACHE", str(tmp_path / "rows"))
    sae = make_sae(make_model(make_studies()[:5]))
    sae.save_model(tmp_path / "sae")
    settings = {
        "model": {"name": str(CHECKPOINT_PATH), "device": "cpu"},
        "hook_name": sae.cfg.metadata.hook_name,
        "context_size": 96,
        "source": {"kind": "phantom", "n_studies": 5, "seed": 3, "n_held_out": 0},
        "sae": {"architecture": "jumprelu", "d_sae": D_SAE},
    }
    (tmp_path / "sae" / "config.yaml").write_text(json.dumps(TrainConfig.from_dict(settings).to_dict()))
    return tmp_path


def test_a_gallery_from_the_command_line_and_a_page_on_demand(run, capsys, monkeypatch):
    monkeypatch.chdir(run)
    assert main(["dashboard", "sae", "--out", "gallery", "--pages", "3,", "--n-studies", "4", "--title", "Mine"]) == 0
    assert capsys.readouterr().out == (
        f"{D_SAE} features, 4 studies, 1 sae-dashboard pages; open {Path('gallery') / 'index.html'}\n"
    )
    index = read(run / "gallery" / "data" / "index.js")
    assert (index["title"], index["pages"], index["studies"]) == ("Mine", [3], [0, 1, 2, 3])
    with serving(Path("gallery")) as server:
        assert get(server, "/data/serving.js")[1] == 'GALLERY.put("serving",true);\n'
        status, text, _ = get(server, "/pages/feature_7.html")
        assert status == 200
        assert "DENSITY" in text
        assert read(run / "gallery" / "data" / "index.js")["pages"] == [3, 7]
        assert get(server, f"/pages/feature_{D_SAE}.html")[0] == 404
        assert str(run) not in get(server, "/pages/feature_999.html")[1]


def test_a_public_gallery_keeps_no_origin_and_a_copy_takes_none_along(run, capsys, monkeypatch):
    """Neither the folder nor what lies beside it names this machine's folders."""
    monkeypatch.chdir(run)
    arguments = ["dashboard", "sae", "--out", "gallery", "--pages", "none", "--n-studies", "2"]
    assert main(arguments) == 0
    assert str(run) in origin_path(Path("gallery")).read_text()
    copied = Path(shutil.copytree("gallery", run / "elsewhere" / "gallery"))
    for file in copied.rglob("*"):
        assert not file.is_file() or str(run).encode() not in file.read_bytes()
    with serving(copied) as server:
        assert server.maker is None
    with serving(Path("gallery")) as server:
        assert server.maker is not None
    assert main([*arguments, "--public"]) == 0
    assert not origin_path(Path("gallery")).exists()
    with serving(Path("gallery")) as server:
        assert server.maker is None
    capsys.readouterr()
    assert main([*arguments, "--neuronpedia"]) == 2
    assert "neuronpedia writes the features that pages names, and pages is none" in capsys.readouterr().err


@pytest.mark.parametrize("banner", ["Private: 2 studies shown here may not leave this machine.", ""])
def test_a_page_on_demand_holds_private_text_only_under_the_galleries_own_banner(run, monkeypatch, banner):
    """Whatever the origin's settings say, a gallery with no banner gets pages of its shareable studies."""
    private = [replace(study, shareable=index > 1) for index, study in enumerate(make_studies()[:5])]
    monkeypatch.setattr("sae_lens_maira.sources.open_source", lambda _: private)
    monkeypatch.chdir(run)
    arguments = ["dashboard", "sae", "--out", "gallery", "--pages", "none"]
    assert main([*arguments, "--include-private"]) == 0
    index = Path("gallery") / "data" / "index.js"
    put(index, "index", {**read(index), "banner": banner})
    with serving(Path("gallery")) as server:
        assert get(server, f"/pages/feature_{ALWAYS}.html")[0] == 200
        assert server.maker is not None
        subject = server.maker._subject
    assert subject is not None
    assert list(subject.recording.studies) == ([0, 1, 2, 3, 4] if banner else [2, 3, 4])


def test_overrides_of_the_command_line_reach_the_source(run, capsys):
    arguments = ["dashboard", str(run / "sae"), "--out", str(run / "gallery"), "--pages", "none"]
    assert main([*arguments, "--source.n_studies", "2"]) == 0
    assert "2 studies" in capsys.readouterr().out
    assert main([*arguments, "--source.sed", "2"]) == 2
    assert "sed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["view", "nowhere"], "There is no folder 'nowhere'; make it with sae-lens-maira dashboard SAE --out nowhere."),
        (["view", "."], "'.' holds no gallery; make one with sae-lens-maira dashboard SAE --out FOLDER."),
        (["dashboard", "nowhere", "--out", "x"], "There is no SAE in 'nowhere' (cfg.json is missing); give"),
        (["dashboard", "sae", "--out", "sae"], "'sae' holds something other than a gallery; choose another folder."),
        (["dashboard", "bare", "--out", "x"], "so model and studies are unknown; give --config."),
        (["dashboard", "sae", "--out", "x", "--pages", "best"], "pages is 'best'; give a number"),
    ],
)
def test_what_is_missing_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("sae", "bare"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cfg.json").write_text("{}")
        (tmp_path / name / "sae_weights.safetensors").touch()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_port_that_is_taken_is_one_sentence(gallery):
    with serving(gallery) as server, pytest.raises(ViewError, match=r"^Port \d+ is taken or not allowed; .* --port\.$"):
        GalleryServer(gallery, server.server_port)


@pytest.mark.slow
def test_the_view_verb_serves_until_it_is_interrupted(gallery):
    code = "import sys; from sae_lens_maira.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "view", str(gallery), "--port", "0", "--no-browser"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    line = process.stderr.readline()
    port = int(line.split(":")[2].split("/")[0])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/")
    assert connection.getresponse().status == 200
    process.send_signal(2)
    assert process.wait(30) == 0


def test_a_gallery_of_an_sae_that_changed_says_so(run, monkeypatch):
    monkeypatch.chdir(run)
    assert main(["dashboard", "sae", "--out", "gallery", "--pages", "none", "--n-studies", "2"]) == 0
    origin = json.loads(origin_path(run / "gallery").read_text())
    origin["config"]["policy"]["image_tokens"] = "none"
    origin_path(run / "gallery").write_text(json.dumps(origin))
    with serving(run / "gallery") as server:
        status, text, _ = get(server, "/pages/feature_3.html")
        assert status == 404
        assert "token policy has image_tokens" in text
    shutil.rmtree(run / "sae")
    with serving(run / "gallery") as server:
        assert "the SAE&#x27;s folder is not here" in get(server, "/pages/feature_3.html")[1]
    assert torch.is_grad_enabled()
