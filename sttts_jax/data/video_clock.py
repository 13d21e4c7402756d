"""Recordings written one after the other into one file, whose clocks start anew: their times joined to one clock."""

import av
from av.format import Flags

BACK = 0.1  # seconds: decoding times that go back by more than this begin a new recording,
AHEAD = 10.0  # and so do those of a container made for joining that leap by more than this, as ffmpeg has it
JOINING = Flags.ts_discont.value  # containers of broadcasts, whose clocks may leap


class JoinedClock:
    """Moves the packets of one stream, given in the order of the file, to where a player shows them: each recording
    follows the one before at once. One clock a pass over the file.
    """

    def __init__(self, container: av.container.InputContainer):
        self._leaps = bool(container.format.flags & JOINING)
        self._shift = 0
        self._last: int | None = None  # the newest decoding time, moved
        self._next = 0  # when the packet after it is due
        self.joined = False  # whether a second recording was met

    def correct(self, packet: av.Packet) -> None:
        """Changes the times of a packet in place."""
        if packet.dts is None or packet.time_base is None:
            packet.pts = None if packet.pts is None else packet.pts + self._shift
            return
        at = packet.dts + self._shift
        if self._last is not None and self._begins_anew(packet, at):
            self._shift += self._next - at
            self.joined, at = True, self._next
        # The step so far is a better guess than a duration, which many a container makes up.
        step = packet.duration or 0 if self._last is None or self._last >= at else at - self._last
        self._last, self._next = at, at + step
        packet.dts = at
        packet.pts = None if packet.pts is None else packet.pts + self._shift

    def _begins_anew(self, packet: av.Packet, at: int) -> bool:
        assert self._last is not None
        second = 1 / packet.time_base
        if at < self._last - BACK * second:
            return self._leaps or packet.is_keyframe
        return self._leaps and abs(at - self._next) > AHEAD * second
