"""A lack of descriptors is a line of the log and passes; a client that never ends its request's head is cut off."""

import contextlib
import os
import socket
from pathlib import Path

import pytest
from serve_tools import Process, wait_until

# A server that may have few files open.
FEW = """
import resource, sys
from codegen2.cli.main import main
resource.setrlimit(resource.RLIMIT_NOFILE, (40, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
sys.exit(main(sys.argv[1:]))
"""
# A server whose patience is short.
HASTY = """
import sys
from codegen2.cli.main import main
from codegen2.serve import connections
connections._HEAD_SECONDS = 2.0
sys.exit(main(sys.argv[1:]))
"""


def cpu_s(pid):
    """Return the processor time that a process has had, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_connections_without_a_descriptor_wait_and_are_a_line_of_the_log():
    with Process(code=FEW) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(60)]
        wait_until(lambda: server.events("no descriptors"))
        before = cpu_s(server.process.pid)
        idle[-1].settimeout(3)  # meanwhile asyncio asks three times more
        idle[-1].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with pytest.raises(TimeoutError):
            idle[-1].recv(1)
        assert cpu_s(server.process.pid) - before < 1
        for one in idle[:-1]:
            one.close()
        idle[-1].settimeout(300)
        assert b"200 OK" in idle[-1].recv(10_000)
        idle[-1].close()
        assert len(server.events("no descriptors")) == 1
        assert sum(map(len, server.lines)) < 20_000


def test_a_head_that_never_ends_is_cut_off():
    with Process(code=HASTY) as server, socket.create_connection(("127.0.0.1", server.port)) as one:
        one.settimeout(300)
        one.sendall(b"GET /health HTTP/1.1\r\nA: b")
        with contextlib.suppress(ConnectionResetError):
            assert one.recv(1) == b""
        assert server.get("/health")[0] == 200
