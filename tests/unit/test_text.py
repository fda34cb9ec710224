"""Text of others' making reaches the terminal as text: no escape, no markup, no line of its own."""

import importlib
import json
import logging
import socket
import threading
from contextlib import contextmanager, suppress

import click
import pytest

from vtl_tools.common.cli import output
from vtl_tools.common.cli.tool import Tool
from vtl_tools.common.errors import VTLError
from vtl_tools.common.runtime import control, watch
from vtl_tools.common.table import Screen, fitted
from vtl_tools.common.text import LENGTH_MAX, printable
from vtl_tools.services.tor import proxy_check

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\nvtl-tor: all is well\u202egpj.exe\u2028\ud800"


@pytest.mark.parametrize(
    "character", [*map(chr, range(32)), *map(chr, range(127, 160)), *HOSTILE[-1:], "\u200b"]
)
def test_no_character_that_a_terminal_obeys_passes(character):
    assert printable(f"a{character}b").isprintable()


def test_what_is_visible_stays_as_it_is():
    for text in "10.0.0.1", "[abcd::1]:80", "größe 🙂 日本", "a\\b":
        assert printable(text) == text
    assert printable(HOSTILE).encode()
    assert len(printable("x" * (LENGTH_MAX + 1000))) == LENGTH_MAX + 3


def drawn(*tables):
    return "\n".join(line for table in tables for line in fitted(table, Screen(400, 50)))


@pytest.mark.parametrize(
    "text", ["[abcd::1]:443", "[red]x[/red]", "[/]", ":smile:", "[link=http://x]y[/link]"]
)
def test_an_address_that_looks_like_markup_is_in_the_table_of_connections(text, capsys):
    output.print_table(("from", "to"), [(text, "x")])
    assert text in capsys.readouterr().out


def status(name):
    return {
        "service": name, "pid": 1, "uptime_s": 1.0, "cpu_s": {"user": 0.0, "system": 0.0},
        "links": [{"link": name, "up": True, "rx_frames": 1, "tx_frames": 1, "rx_octets": 1, "tx_octets": 1,
                   "drops": {name: 1}}],
        "drops": {name: 1}, "details": {name: {name: name}}, name: {"x": 1.5},
    }  # fmt: skip


def test_no_part_of_a_status_is_obeyed():
    for name in "[abcd::1]", "[/]":
        assert drawn(*watch.draw(status(name))).count(name) >= 7
        assert "\n".join(watch.lines_of(status(name))).count(name) >= 7
    assert "\x1b" not in drawn(*watch.draw(status(HOSTILE)))
    lines = list(watch.lines_of(status(HOSTILE)))
    assert len(lines) == 5
    assert all(line.replace("\t", "").isprintable() for line in lines)


def test_an_error_and_a_log_line_are_one_line_and_no_escape(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    @click.group("vtl-test", cls=Tool)
    def tool():
        logging.getLogger("x").warning("%s", HOSTILE)
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            logging.getLogger("x").exception("it broke")
        output.echo(HOSTILE)
        raise VTLError(HOSTILE)

    with pytest.raises(SystemExit):
        tool.main([])
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "\nvtl-tor: all is well" not in out + err
    assert len(out.splitlines()) == 1


# --- what a service that was taken over may answer

FROZEN = {"began": True, "can_hold": HOSTILE, "connections": HOSTILE, "cannot_hold": {HOSTILE: HOSTILE}}
KEPT = {
    "state": f"vtl-fw 2 moved\n{HOSTILE}", "connections": HOSTILE, "identity": HOSTILE, "link": HOSTILE,
    "mac": HOSTILE, "addresses": [HOSTILE], "ended": HOSTILE,
}  # fmt: skip
WHY = {
    "verdict": HOSTILE, "rule": HOSTILE, "text": HOSTILE,
    "steps": [dict.fromkeys(("rule", "text", "why"), HOSTILE)],
    "identity": {"verdict": "deny", "reason": HOSTILE, "text": HOSTILE, "remedy": HOSTILE}, "known": HOSTILE,
}  # fmt: skip


@pytest.mark.parametrize(
    ("tool", "words", "answer"),
    [
        ("freeze", ["start"], FROZEN),
        ("freeze", ["stop"], {"ended": True, "frozen_s": HOSTILE}),
        ("fw", ["export"], KEPT),
        ("fw", ["forget"], KEPT),
        ("fw", ["explain", "out", "tcp", "10.0.0.5:1", "10.0.0.6:2"], WHY),
    ],
)
def test_the_answer_of_a_service_that_was_taken_over_is_no_escape(tool, words, answer, capsys, monkeypatch):
    monkeypatch.setattr(control, "ask", lambda *_, **__: answer)
    command = importlib.import_module(f"vtl_tools.cmd.{tool}").main
    with suppress(SystemExit):
        command.main([*words, "--link", "/nowhere/x.sock"])
    out, err = capsys.readouterr()
    assert out + err
    assert "internal error" not in out + err
    assert all(line.isprintable() for line in (out + err).split("\n"))
    assert "\nvtl-tor: all is well" not in out + err


# --- what an exit relay's web service may answer


@contextmanager
def service(tmp_path, body):
    """A SOCKS proxy on a unix socket; whatever is called by it answers with a body."""
    path = str(tmp_path / "socks")

    def take(sock):
        with sock, suppress(OSError):  # who only sees whether somebody listens has gone
            sock.recv(100)
            sock.send(b"\5\0")
            if len(sock.recv(300)) > 3:
                sock.send(b"\5\0\0\1" + bytes(6))
                sock.recv(1000)
                sock.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + body)

    def serve():
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=take, args=(sock,), daemon=True).start()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield path
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    "body", [b"[" * 16000, b'{"a":' * 3000, b'{"IP": 1' + b"0" * 9000, b"", b"<html>", b'{"IP"', b"[]", b"{}"]
)
def test_an_answer_that_is_none_is_told_in_one_line(tmp_path, body):
    with service(tmp_path, body) as proxy, pytest.raises(VTLError, match="tells no address"):
        proxy_check.exit_address(proxy, "http://check.test/")


def test_of_an_answer_only_what_is_text_or_a_number_is_taken(tmp_path):
    deep = json.loads("[" * 400 + "]" * 400)
    body = json.dumps({"IP": HOSTILE, "IsTor": True, "deep": deep, "more": {"IP": "x"}}).encode()
    with service(tmp_path, body) as proxy:
        seen = proxy_check.exit_address(proxy, "http://check.test/")
    assert seen == {"IP": HOSTILE, "IsTor": True}
    assert json.loads(json.dumps(seen)) == seen


def test_the_address_that_an_exit_tells_is_no_escape_for_the_terminal(tmp_path, capsys):
    from vtl_tools.cmd import tor

    with service(tmp_path, json.dumps({"IP": HOSTILE}).encode()) as proxy, pytest.raises(SystemExit):
        tor.main.main(["check", "--socks", f"unix:{proxy}", "--url", "http://check.test/"])
    out, err = capsys.readouterr()
    assert "the world sees" in out
    assert "\x1b" not in out + err
    assert "\nvtl-tor: all is well" not in out + err
