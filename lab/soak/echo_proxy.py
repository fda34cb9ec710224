"""A SOCKS 5 proxy on a unix socket (the argument), all of whose streams echo."""

import asyncio
import sys
from contextlib import suppress


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Talk to one client."""
    with suppress(OSError, asyncio.IncompleteReadError):
        _, count = await reader.readexactly(2)
        method = 2 if 2 in await reader.readexactly(count) else 0
        writer.write(bytes((5, method)))
        if method:
            await reader.readexactly((await reader.readexactly(2))[1])
            await reader.readexactly((await reader.readexactly(1))[0])
            writer.write(bytes((1, 0)))
        kind = (await reader.readexactly(4))[3]
        await reader.readexactly(({1: 4, 4: 16}.get(kind) or (await reader.readexactly(1))[0]) + 2)
        writer.write(bytes((5, 0, 0, 1)) + bytes(6))
        while octets := await reader.read(1 << 16):
            writer.write(octets)
            await writer.drain()
    with suppress(OSError):
        writer.close()


async def main() -> None:
    """Listen."""
    server = await asyncio.start_unix_server(serve, sys.argv[1])
    print("ready", flush=True)
    await server.serve_forever()


asyncio.run(main())
