"""Tokens of flows: what a flow is known by on other sessions than the one that it was opened on.

The near module makes a random one for each flow, and tells it in the flow's opening, which is encrypted. So
that near module knows it and no other one, and no other one can send or receive octets of the flow.
"""

from hmac import compare_digest
from typing import Final, Generic, Protocol, TypeVar

from vtl_tools.common.errors import Malformed

TOKEN: Final = 16
"""Octets of a token. The first half finds the flow, and the comparison of all takes the same time always."""
NO_TOKEN: Final = bytes(TOKEN)
"""The token of a flow that stays on its session."""


class HasToken(Protocol):
    """A flow."""

    token: bytes


Flow = TypeVar("Flow", bound=HasToken)


class FlowTokens(Generic[Flow]):
    """The flows that may be joined, of all sessions of a listener."""

    def __init__(self) -> None:
        self._flows: dict[bytes, Flow] = {}

    def add(self, flow: Flow) -> None:
        """Let a flow be found. Raises Malformed if another one has such a token."""
        if flow.token == NO_TOKEN:
            return
        if flow.token[: TOKEN // 2] in self._flows:
            raise Malformed("open.token")
        self._flows[flow.token[: TOKEN // 2]] = flow

    def find(self, token: bytes) -> Flow | None:
        """Return the flow of a token; None: there is none, or it has just ended."""
        flow = self._flows.get(token[: TOKEN // 2])
        return flow if flow is not None and compare_digest(flow.token, token) else None

    def remove(self, flow: Flow) -> None:
        """Let go of a flow. Idempotent."""
        if self._flows.get(flow.token[: TOKEN // 2]) is flow:
            del self._flows[flow.token[: TOKEN // 2]]
