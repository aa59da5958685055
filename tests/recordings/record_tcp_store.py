#!/usr/bin/env python3
"""Records what torch's own client and server say to each other, byte by byte, as test data for ours.

    python record_tcp_store.py FOLDER      writes FOLDER/tcp_store_libuv.txt and FOLDER/tcp_store_poll.txt

A relay between the two writes down all that passes. The format: "= NAME" begins an exchange with a store of its own, "1> HEX" are bytes
of its first connection's client, "1< HEX" those of the server to it. Whatever one side says in a row is one line: how it was cut into
packets is not part of the protocol, but for the five bytes that a connection begins with, which have a line of their own.
"""
import datetime
import pathlib
import socket
import sys
import threading
import time

import torch
import torch.distributed as dist

SHORT = datetime.timedelta(milliseconds=200)
LONG = datetime.timedelta(seconds=30)


class Relay:
    """Accepts connections, passes them on to `port`, and writes down what passes."""

    def __init__(self, port):
        self.port = port
        self.lines = []  # [connection, direction, bytes]
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.count = 0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.port))
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.count += 1
            for direction, one, other in ((">", near, far), ("<", far, near)):
                threading.Thread(target=self.carry, args=(self.count, direction, one, other), daemon=True).start()

    def carry(self, number, direction, one, other):
        while True:
            try:
                part = one.recv(1 << 20)
            except OSError:
                part = b""
            if not part:
                try:
                    other.shutdown(socket.SHUT_WR)
                except OSError:
                    pass
                return
            with self.lock:
                last = self.lines[-1] if self.lines else None
                # What greets, five bytes in one segment, keeps its own line.
                if last and last[:2] == [number, direction] and last[2] != GREETING:
                    last[2] += part
                else:
                    self.lines.append([number, direction, part])
            other.sendall(part)

    def quiet(self):
        """Waits until nothing has passed for a while, so that the next connection's bytes come behind."""
        before = None
        while before != (now := sum(len(line[2]) for line in self.lines)):
            before = now
            time.sleep(0.1)


GREETING = b"\x00\xce\xf7\x85\x3c"


def connect(port):
    return dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=LONG)


def greeting(relay, port):
    connect(port)


def set_and_get(relay, port):
    store = connect(port)
    store.set("amxt/a", "hello")
    assert store.get("amxt/a") == b"hello"
    store.set("amxt/empty", "")
    assert store.get("amxt/empty") == b""
    store.set("amxt/bytes", bytes(range(256)).decode("latin1"))
    store.get("amxt/bytes")


def add(relay, port):
    store = connect(port)
    assert store.add("amxt/n", 5) == 5
    assert store.add("amxt/n", -7) == -2
    assert store.get("amxt/n") == b"-2"
    store.set("amxt/m", "41")
    assert store.add("amxt/m", 1) == 42


def check(relay, port):
    store = connect(port)
    store.set("amxt/a", "x")
    assert store.check(["amxt/a"])
    assert not store.check(["amxt/a", "amxt/zz"])


def compare_set(relay, port):
    store = connect(port)
    assert store.compare_set("amxt/c", "", "v1") == b"v1"
    assert store.compare_set("amxt/c", "bad", "v2") == b"v1"
    assert store.compare_set("amxt/c", "v1", "v2") == b"v2"
    assert store.compare_set("amxt/d", "bad", "v2") == b"bad"
    assert not store.check(["amxt/d"])


def wait(relay, port):
    store = connect(port)
    store.set("amxt/a", "x")
    store.wait(["amxt/a"])
    try:
        store.wait(["amxt/a", "amxt/never"], SHORT)
        raise AssertionError("a key that nobody set is there")
    except dist.DistStoreError:
        pass
    assert store.check(["amxt/a"])


def wait_for_another(relay, port):
    waiting = connect(port)
    relay.quiet()
    thread = threading.Thread(target=lambda: waiting.wait(["amxt/later", "amxt/last"], LONG))
    thread.start()
    relay.quiet()
    setting = connect(port)
    setting.set("amxt/later", "x")
    assert setting.add("amxt/last", 1) == 1
    thread.join()
    relay.quiet()


def delete_and_count(relay, port):
    store = connect(port)
    store.add("amxt/a", 1)
    assert store.delete_key("amxt/a")
    assert not store.delete_key("amxt/a")
    store.add("amxt/b", 1)
    store.num_keys()


def workers(relay, port):
    """What a client does that belongs to a world of workers."""
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=False, wait_for_workers=True, timeout=LONG)
    store.set("amxt/a", "x")
    assert store.get("amxt/a") == b"x"


def append(relay, port):
    store = connect(port)
    store.append("amxt/a", "one")
    store.append("amxt/a", "two")
    assert store.get("amxt/a") == b"onetwo"


def several(relay, port):
    store = connect(port)
    store.multi_set(["amxt/a", "amxt/b"], ["one", "two"])
    assert store.multi_get(["amxt/b", "amxt/a"]) == [b"two", b"one"]


def list_keys(relay, port):
    """By hand: torch's call holds the interpreter, and with it the relay."""
    store = connect(port)
    assert store.add("amxt/only", 1) == 1
    relay.quiet()
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(GREETING)
        time.sleep(0.1)
        client.sendall(b"\x11")
        assert client.recv(8) == (1).to_bytes(8, "little")
        relay.quiet()


def barrier(relay, port):
    store = connect(port)
    store.barrier("amxt/b", 1)
    store.barrier("amxt/b", 1)
    store.num_keys()


def barrier_of_two(relay, port):
    one = connect(port)
    relay.quiet()
    thread = threading.Thread(target=lambda: one.barrier("amxt/b", 2))
    thread.start()
    relay.quiet()
    two = connect(port)
    two.barrier("amxt/b", 2)
    thread.join()
    relay.quiet()


EXCHANGES = [greeting, set_and_get, add, check, compare_set, wait, wait_for_another, delete_and_count, workers,
             append, several, list_keys, barrier, barrier_of_two]


def record(libuv):
    text = ""
    for exchange in EXCHANGES:
        server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, use_libuv=libuv, timeout=LONG)
        relay = Relay(server.port)
        try:
            exchange(relay, relay.listener.getsockname()[1])
        except Exception as error:
            print(f"{exchange.__name__}, libuv {libuv}: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        relay.quiet()
        relay.listener.close()
        text += f"= {exchange.__name__}\n"
        text += "".join(f"{number}{direction} {part.hex()}\n" for number, direction, part in relay.lines)
    return text


folder = pathlib.Path(sys.argv[1])
for libuv, name in ((True, "libuv"), (False, "poll")):
    head = f"# torch {torch.__version__}, {'with libuv' if libuv else 'without libuv'}; made by record_tcp_store.py\n"
    (folder / f"tcp_store_{name}.txt").write_text(head + record(libuv))
