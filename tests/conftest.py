"Every test runs on one thread, without the network, and not for long."

import os
import socket

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

LIMIT = 40  # seconds of a test that is not marked slow
LOCAL = {"localhost", "127.0.0.1", "::1", "", None}


def pytest_configure():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def encoder():
    "The small T5 that ships with the package."
    from imagen_nb.text import TextEncoder

    return TextEncoder.toy()


@pytest.fixture(scope="module")
def captions():
    "A hundred and twenty captions, some of them equal."
    from imagen_nb.data import ShapesWorld

    world = ShapesWorld("train", level="full")
    return [world.caption(i) for i in range(120)]


def too_long(terminal) -> list:
    "Tests that ran too long without being marked slow: (seconds, name)."
    reports = (r for kind in ("passed", "failed") for r in terminal.stats.get(kind, []))
    return [
        (r.duration, r.nodeid) for r in reports if r.duration > LIMIT and "slow" not in r.keywords
    ]


def pytest_terminal_summary(terminalreporter):
    "Name them."
    for seconds, name in too_long(terminalreporter):
        terminalreporter.write_line(
            f"{seconds:.0f} s, more than {LIMIT}: shorten {name} or mark it slow"
        )


def pytest_sessionfinish(session, exitstatus):
    "`make test` fails where there are any."
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal and not exitstatus and os.environ.get("BUDGET") == "fail" and too_long(terminal):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _is_local(address) -> bool:
    "Is this an address on this machine: loopback, or a path of a Unix socket?"
    if not isinstance(address, tuple):
        return True
    host = address[0].decode() if isinstance(address[0], bytes) else address[0]
    return host in LOCAL or host.startswith("127.")


@pytest.fixture(autouse=True, scope="session")
def catalogs(tmp_path_factory):
    "Catalogs of pictures are kept apart from the user's."
    os.environ["IMAGEN_NB_CACHE"] = str(tmp_path_factory.mktemp("catalogs"))


@pytest.fixture(autouse=True)
def offline(request, monkeypatch):
    "Refuse every connection and name look-up that would leave this machine."
    if request.node.get_closest_marker("net"):
        return
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
    look_up = socket.getaddrinfo

    def refuse(where):
        raise RuntimeError(f"offline: a test reached for the network, {where!r}")

    def guarded(inner):
        def call(self, address, *args):
            return inner(self, address, *args) if _is_local(address) else refuse(address)

        return call

    def guarded_look_up(host, *args, **kw):
        local = _is_local((host,)) or host == socket.gethostname()
        return look_up(host, *args, **kw) if local else refuse(host)

    monkeypatch.setattr(socket.socket, "connect", guarded(connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
