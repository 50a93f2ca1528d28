"""``sae-lens-maira view``: serves a gallery on the loopback interface, and makes missing pages.

1. Only files of the gallery's folder are served, only to this machine, and only under its names: a web page elsewhere
   that points its own name at this machine (DNS rebinding) is refused.
2. Pages of other sites, on this machine too, can neither ask for anything nor show the gallery in a frame; a link to
   its first page is followed.
3. A request that does not arrive in time is dropped, and threads are bounded.
"""

from __future__ import annotations

import errno
import html
import json
import logging
import re
import threading
import urllib.parse
import webbrowser
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_maira.dashboard.data_files import INDEX, SERVING, script
from sae_lens_maira.dashboard.origin import Origin
from sae_lens_maira.dashboard.own_folder import gallery_id
from sae_lens_maira.dashboard.playground import FILES, STEER, Playground, static_file
from sae_lens_maira.errors import UserError, ViewError
from sae_lens_maira.files import restore_replaced

if TYPE_CHECKING:
    from sae_lens_maira.dashboard.on_demand import PageMaker

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
DEFAULT_PORT = 8750
_NAMES = ("127.0.0.1", "localhost", "[::1]")
_TIMEOUT_S = 10.0
_MAX_THREADS = 32
_PAGE = re.compile(r"/pages/feature_(\d{1,9})\.html")


class GalleryServer(ThreadingHTTPServer):
    """A gallery on the loopback interface.

    Args:
        folder: the gallery's folder.
        port: the port to listen on; 0 for any free one.
        allow_download: load a model from the Hub, if the gallery was made from one there.

    Raises:
        ViewError: the folder holds no gallery, or the port is taken.
    """

    daemon_threads = True
    allow_reuse_address = False
    request_queue_size = 256

    def __init__(self, folder: Path, port: int = DEFAULT_PORT, *, allow_download: bool = False) -> None:
        self._free_threads = threading.BoundedSemaphore(_MAX_THREADS)
        self._allow_download = allow_download
        restore_replaced(folder)
        if not folder.is_dir():
            raise ViewError(f"There is no folder '{folder}'; make it with sae-lens-maira dashboard SAE --out {folder}.")
        if not (folder / INDEX).is_file():
            raise ViewError(f"'{folder}' holds no gallery; make one with sae-lens-maira dashboard SAE --out FOLDER.")
        self.folder = folder.resolve()
        origin = Origin.read(self.folder, gallery_id(self.folder))
        self.missing = self._missing(origin)
        self.maker: PageMaker | None = None
        self.playground: Playground | None = None
        if origin is not None and not self.missing:
            from sae_lens_maira.dashboard.on_demand import PageMaker

            self.maker, self.playground = PageMaker(self.folder, origin), Playground(self.folder, origin)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise ViewError(f"Port {port} is taken or not allowed; choose another one with --port.") from error
            raise

    def _missing(self, origin: Origin | None) -> str:
        """Why no page can be made; empty if one can."""
        if origin is None:
            return "the gallery does not say what it was made from"
        if not Path(origin.sae).is_dir():
            return "the SAE's folder is not here"
        if not self._allow_download and not origin.is_local:
            return "its model is not on this disk, and view was not started with --allow-download"
        return ""

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, once one is free."""
        self._free_threads.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free_threads.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free_threads.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or was too slow, is no error of ours."""
        logger.debug("A request was not answered.", exc_info=True)

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{HOST}:{self.server_port}/"

    def server_close(self) -> None:
        super().server_close()
        if self.maker is not None:
            self.maker.close()


class _Handler(SimpleHTTPRequestHandler):
    server: Any
    timeout = _TIMEOUT_S
    extensions_map = {  # noqa: RUF012 (the base class's own attribute)
        "": "application/octet-stream",
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".webp": "image/webp",
        ".json": "application/json",
    }

    def __init__(self, request: Any, client_address: Any, server: GalleryServer) -> None:
        super().__init__(request, client_address, server, directory=str(server.folder))

    def do_GET(self) -> None:
        if self._is_allowed() and not self._is_made():
            super().do_GET()

    def do_HEAD(self) -> None:
        if self._is_allowed():
            super().do_HEAD()

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Content-Security-Policy", "frame-ancestors 'self'")
        self.send_header("X-Frame-Options", "SAMEORIGIN")
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)

    def _is_allowed(self) -> bool:
        """Refuse requests for other hosts, and for anything outside the gallery."""
        host = self.headers.get("Host", "")
        if re.sub(r":\d+$", "", host).lower() not in _NAMES:
            self.send_error(HTTPStatus.FORBIDDEN, "Only names of this machine are served")
            return False
        try:
            asked = urllib.parse.urlsplit(self.path).path
            path = Path(self.translate_path(self.path)).resolve()
        except (ValueError, OSError):
            self.send_error(HTTPStatus.BAD_REQUEST)
            return False
        if not self._is_own_site(host, asked):
            self.send_error(HTTPStatus.FORBIDDEN, "Other sites are not served")
            return False
        inside = path == self.server.folder or self.server.folder in path.parents
        if not inside or any(part.startswith(".") for part in path.relative_to(self.server.folder).parts):
            self.send_error(HTTPStatus.NOT_FOUND)
            return False
        return True

    def _is_own_site(self, host: str, path: str) -> bool:
        """Whether a page of the gallery asks, or a person; a link elsewhere may lead to the first page alone."""
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site", "none")
        if origin is not None and origin.lower() != f"http://{host}".lower():
            return False
        is_link = path in ("/", "/index.html") and self.headers.get("Sec-Fetch-Dest") == "document"
        return site in ("none", "same-origin") or is_link

    def _is_made(self) -> bool:
        """Answer requests that are not for a file: whether pages can be made, and pages that do not exist yet."""
        path = urllib.parse.urlsplit(self.path).path
        if path == f"/{SERVING}":
            self._send(HTTPStatus.OK, "text/javascript", script("serving", self.server.maker is not None))
            return True
        if self.server.playground is not None and path in (*FILES, STEER):
            self._play(path)
            return True
        wanted = _PAGE.fullmatch(path)
        if wanted is None or (self.server.folder / path[1:]).is_file():
            return False
        if self.server.maker is None:
            self._explain(
                HTTPStatus.NOT_FOUND,
                f"There is no page of feature {wanted[1]} yet, and it cannot be made because {self.server.missing}. "
                f"Make it with: sae-lens-maira dashboard SAE --out {self.server.folder} --pages {wanted[1]},",
            )
            return True
        try:
            self.server.maker.page(int(wanted[1]))
        except (LookupError, ValueError, OSError, ImportError, RuntimeError) as error:
            logger.warning("The page of feature %s could not be made: %s", wanted[1], error)
            self._explain(HTTPStatus.NOT_FOUND, f"The page could not be made: {error}")
            return True
        return False

    def _play(self, path: str) -> None:
        """Answer a request for the playground: its files, or a pair of reports."""
        if path != STEER:
            self._send(HTTPStatus.OK, FILES[path], static_file(path))
            return
        try:
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            status, answer = HTTPStatus.OK, self.server.playground.steer(query)
        except UserError as error:
            status, answer = HTTPStatus.BAD_REQUEST, {"error": str(error)}
        self._send(status, "application/json", json.dumps(answer))

    def _explain(self, status: HTTPStatus, text: str) -> None:
        page = f"<!doctype html><meta charset=utf-8><title>No page</title><p>{html.escape(text)}</p>\n"
        self._send(status, "text/html", page)

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def view(folder: Path, port: int = DEFAULT_PORT, open_browser: bool = True, *, allow_download: bool = False) -> None:
    """Serve a gallery until Ctrl-C.

    Raises:
        ViewError: the folder holds no gallery, or the port is taken.
    """
    with GalleryServer(folder, port, allow_download=allow_download) as server:
        logger.info("%s (Ctrl-C ends it)", server.address)
        if open_browser:
            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            logger.info("Ended.")
