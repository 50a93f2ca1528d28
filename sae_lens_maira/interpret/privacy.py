"""Text and images of studies that may not be shared go to this machine only, or to a host that is named on purpose."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from sae_lens_maira.errors import InterpretError, quoted


def host_of(url: str) -> str:
    """The host that a URL names, in lower case.

    Raises:
        InterpretError: it is no http or https address, or carries a name and a password.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        host, parts = None, None
    if parts is None or parts.scheme not in ("http", "https") or not host:
        raise InterpretError(f"{quoted(url)} is no address of a server; write http://127.0.0.1:8080/v1.")
    if parts.username or parts.password:
        raise InterpretError("The server's address holds a password; put the key into an environment variable instead.")
    return host


def is_loopback(url: str) -> bool:
    """Whether an address is this machine: ``localhost``, 127.0.0.0/8 or ::1. Other names are not looked up."""
    host = host_of(url)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_private_text(url: str, shareable: Iterable[bool], private_host: str | None) -> None:
    """Refuse to send private studies to other machines.

    Args:
        url: of the server.
        shareable: of every study whose text or images may be sent.
        private_host: a host that may receive them, named for this purpose; None allows loopback alone.

    Raises:
        InterpretError: private studies would leave this machine.
    """
    n_private = sum(not is_free for is_free in shareable)
    if not n_private or is_loopback(url):
        return
    host = host_of(url)
    if private_host is None or host != private_host.lower():
        raise InterpretError(
            f"{n_private} studies may not leave this machine, and {quoted(url)} is another one; use a server on "
            f"127.0.0.1, or, if your agreement allows it, name the host with private_host: {host}."
        )
