"""Addresses of this machine."""

from __future__ import annotations

import errno
import ipaddress
import socket

from dispatcher.cli.failures import Failure


def is_loopback(host: str) -> bool:
    """Whether a host is this machine and nothing else."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 is any free one. Raises Failure saying what is in the way."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, or asyncio leaves Nagle on: 40 ms for a small answer
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        hint = "Another program listens there; choose a port with --port, or any free one with --port 0." if _taken(error) else ""
        raise Failure(f"cannot listen on {host}:{port}: {error.strerror or error}", hint=hint) from None
    return bound


def forget_stalled(bound: socket.socket, seconds: float) -> None:
    """Have the kernel drop connections whose other side takes nothing for twice as long, where it can: closing one waits for its reader."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 2000))


def url_of(bound: socket.socket) -> str:
    """Where a bound socket is found."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _taken(error: OSError) -> bool:
    return error.errno == errno.EADDRINUSE
