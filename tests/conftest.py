"""What all tests share: the model in the box, no network on request, and one seed for random tests' budgets."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

import codegen2

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

torch.set_num_threads(2)
# A deadline measures the machine, not the code.
hypothesis.settings.register_profile("codegen2", deadline=None)
hypothesis.settings.load_profile("codegen2")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `shared` where the folder with the released files is not beside the repository."""
    if SHARED.is_dir():
        return
    for item in items:
        if item.get_closest_marker("shared"):
            item.add_marker(pytest.mark.skip(reason="needs ../shared"))


@pytest.fixture(scope="session")
def box_model() -> codegen2.Model:
    """Give the model in the box, loaded once."""
    return codegen2.load()


def _is_local(address: Any) -> bool:
    host = address[0] if isinstance(address, tuple) else address
    if isinstance(host, bytes):
        host = host.decode()
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection and every look-up of a name but the machine's own."""

    def guarded(real: Any) -> Any:
        def connect(self: socket.socket, address: Any) -> Any:
            if self.family != getattr(socket, "AF_UNIX", None) and not _is_local(address):
                raise AssertionError(f"a test tried to reach {address}")
            return real(self, address)

        return connect

    real_look_up = socket.getaddrinfo

    def look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_local(host):
            raise AssertionError(f"a test tried to look up {host}")
        return real_look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
