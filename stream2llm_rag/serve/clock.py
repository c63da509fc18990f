"""Another machine's clock, read through a connection. Pure."""

from __future__ import annotations


class RemoteClock:
    """Translates times of a server to ours, both of :func:`time.monotonic`.

    Of all exchanges the fastest counts: its answer was written within half its round trip of its middle (as in NTP, RFC 5905).
    """

    def __init__(self) -> None:
        self._offset_s = 0.0
        self._round_trip_s = float("inf")

    def note(self, sent_s: float, server_time_s: float, received_s: float) -> None:
        """Take one exchange: asked at ``sent_s``, answered at ``server_time_s`` there, received at ``received_s``."""
        round_trip_s = received_s - sent_s
        if round_trip_s < self._round_trip_s:
            self._round_trip_s = round_trip_s
            self._offset_s = server_time_s - (sent_s + received_s) / 2

    def ours(self, server_time_s: float) -> float:
        """The time here."""
        return server_time_s - self._offset_s
