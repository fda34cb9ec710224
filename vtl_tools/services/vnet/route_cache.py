"""The routes of frames that were sent a moment ago, so that most frames are not decided on again. Sans-IO."""

from collections.abc import Callable
from typing import Final

from vtl_tools.common.packet.vnet import VNET
from vtl_tools.services.vnet.fields import FrameFields, fields_of, key_of
from vtl_tools.services.vnet.service_flows import FlowSegment, may_be_marked, segment_of
from vtl_tools.services.vnet.switch import NET, FrameRoute, LinkSide, VnetSwitch

_ROUTES_MAX: Final = 8192
_UNREADABLE: Final = FrameRoute((), "malformed")


class RouteCache:
    """Routes by the octets that they depend on. on_move: gets an address, its link before and now."""

    def __init__(self, switch: VnetSwitch, on_move: Callable[[bytes, str, str], object]) -> None:
        self._switch, self._on_move = switch, on_move
        self._plain: dict[tuple[LinkSide, bytes | FrameFields | None], FrameRoute] = {}
        """Those that hold for each frame with the same octets, whatever its connection."""
        self._others: dict[tuple[LinkSide, bytes | FrameFields], FrameRoute] = {}
        self._by_flow: dict[tuple[LinkSide, FlowSegment], FrameRoute] = {}
        self._generation = -1

    def clear(self) -> None:
        """Forget all routes: they hold for a second at most."""
        self._plain.clear()
        self._others.clear()
        self._by_flow.clear()

    def check(self) -> None:
        """Forget all routes if the switch has changed."""
        most = max(len(self._plain), len(self._others), len(self._by_flow))
        if self._generation != self._switch.generation or most > _ROUTES_MAX:
            self.clear()
            self._generation = self._switch.generation

    def find(self, ingress: LinkSide, frame: memoryview, now: float) -> FrameRoute:
        """Return the route of a frame of FIXED octets at least."""
        key = key_of(frame)
        route = self._plain.get((ingress, key))
        if route is not None:
            return route
        return _UNREADABLE if key is None else self._find(ingress, key, frame, now)

    def _find(self, ingress: LinkSide, key: bytes | FrameFields, frame: memoryview, now: float) -> FrameRoute:
        route = self._others.get((ingress, key))
        if ingress.side == NET and (ingress.link, bytes(frame[VNET + 6 : VNET + 12])) in self._switch.claims:
            route = None  # it is the proof of the claim
        if route is None or route.by_flow:
            route = self._decide(ingress, key, frame, now)
        if route.tracked and may_be_marked(frame):
            self._note(route, frame, now)
        return route

    def _decide(
        self, ingress: LinkSide, key: bytes | FrameFields, frame: memoryview, now: float
    ) -> FrameRoute:
        fields = fields_of(frame)
        assert fields is not None
        segment = segment_of(frame, fields)
        place = None if segment is None or segment.is_marked else (ingress, segment)
        if place is not None and (route := self._by_flow.get(place)) is not None:
            return route
        route = self._switch.decide(fields, ingress, now, segment)
        if route.moved:
            self._on_move(fields.src, route.moved, route.at)
            route = route._replace(moved="")
        if route.by_flow or route.tracked or ingress.side == NET:
            self._others[ingress, key] = route
        else:
            self._plain[ingress, key] = route
        if place is not None and route.by_flow:
            self._by_flow[place] = route
        return route

    def _note(self, route: FrameRoute, frame: memoryview, now: float) -> None:
        fields = fields_of(frame)
        if fields is not None and (segment := segment_of(frame, fields)) is not None and segment.is_marked:
            for flows in route.tracked:
                flows.note(segment, now)
