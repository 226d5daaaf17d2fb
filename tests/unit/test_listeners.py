"""A kernel id's listeners: no port of a kernel that is starting and has not bound yet is taken for another's."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from jupyter_client.connect import LocalPortCache

from jupyter_kernelpool.identity import CHANNELS, Identity


@pytest.fixture
def cache():
    cache = LocalPortCache.instance()
    before = set(cache.currently_used_ports)
    yield cache.currently_used_ports
    assert cache.currently_used_ports == before, "all ports were given back"


def manager() -> Any:
    return SimpleNamespace(transport="tcp", ip="127.0.0.1", **{f"{channel}_port": 0 for channel in CHANNELS})


def test_port_that_another_kernel_is_to_bind_is_passed_over(cache, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        promised = probe.getsockname()[1]
    cache.add(promised)
    offers = [promised, 0, 0, 0, 0, 0]
    listen = Identity._listen_tcp
    monkeypatch.setattr(Identity, "_listen_tcp", lambda self, port: listen(self, port or offers.pop(0)))
    identity = Identity(manager())
    try:
        assert identity.bind()
        ports = [identity._manager.__dict__[f"{channel}_port"] for channel in CHANNELS]
        assert not offers, "it was offered the promised one, and looked further"
        assert promised not in ports
        assert len(set(ports)) == len(CHANNELS)
        with socket.create_server(("127.0.0.1", promised)):
            pass  # nobody holds it: who it was promised to can bind
    finally:
        identity.close()
        cache.discard(promised)


def test_port_of_the_kernels_own_is_bound_again_after_it_was_let_go(cache):
    identity = Identity(manager())
    try:
        assert identity.bind()
        before = identity._manager.shell_port
        identity.release()
        assert identity.bind()
        assert identity._manager.shell_port == before
    finally:
        identity.close()


def connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_ports_are_kept_from_others_while_a_process_of_stocks_is_to_bind_them(cache):
    identity = Identity(manager())
    context = zmq.Context()
    try:
        for _ in range(3):
            assert identity.bind()
            ports = identity._ports()
            identity.release()
            assert not identity.bound
            for port in ports:
                assert not connects(port)
                with socket.socket() as other, pytest.raises(OSError, match="in use"):
                    other.bind(("127.0.0.1", port))
            theirs = context.socket(zmq.ROUTER)
            theirs.bind(f"tcp://127.0.0.1:{ports[2]}")
            assert connects(ports[2])
            assert not identity.bind(), "the process has one of them"
            assert not connects(ports[0]), "and none is ours meanwhile"
            theirs.close(linger=0)
            context.term()
            context = zmq.Context()
            assert identity.bind()
            assert identity._ports() == ports
            assert all(connects(port) for port in ports)
    finally:
        identity.close()
        context.term()
    with socket.create_server(("127.0.0.1", ports[0])):
        pass  # the id is gone, and its ports are free


def test_new_ports_are_bound_where_the_kernel_is_to_have_new_ones(cache):
    identity = Identity(manager())
    try:
        assert identity.bind()
        before = identity._ports()
        identity.release()
        for channel in CHANNELS:
            setattr(identity._manager, f"{channel}_port", 0)
        assert identity.bind()
        assert not set(before) & set(identity._ports())
    finally:
        identity.close()
