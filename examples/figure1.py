"""The paper's Figure 1, a simple one-way bridge: python examples/figure1.py SOURCE DESTINATION (as root)."""

import asyncio
import sys

from vtl_tools.common.device.spec import open_device


async def main(source: str, destination: str) -> None:
    async with open_device(source) as src, open_device(destination) as dst:
        async for batch in src:
            dst.write(batch)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
