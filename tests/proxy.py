"""A SOCKS proxy that says what it is told to."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def proxy(where: Path, *says: bytes) -> Iterator[str]:
    """A server on a unix socket that answers what it hears, whatever it is, by these, and hangs up."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(where))
        server.listen()

        def serve() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client, suppress(OSError):
                    for answer in says:
                        if client.recv(4096):
                            client.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"unix:{where}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)
