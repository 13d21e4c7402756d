"""How much of one video is decoded, in pixels, held to its limit before time is spent, and while it is."""

from collections.abc import Iterable, Iterator

import av

from sttts_jax.data.video_file import OpenVideo, VideoError, check_size


class DecodeWork:
    """The work of one pass over a video. A stream may turn out longer or larger than it says, so both are checked."""

    def __init__(self, video: OpenVideo):
        self._video, self._spent = video, 0

    def announce(self, frames: int) -> None:
        """Raises VideoError where decoding so many frames of the stream's size is above the limit."""
        context = self._video.stream.codec_context
        self._check(frames * context.width * context.height)

    def watch(self, frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        """`frames`, as long as they stay within the limit. Raises VideoError."""
        for frame in frames:
            check_size(frame.width, frame.height, self._video.name, self._video.limits)
            self._spent += frame.width * frame.height
            self._check(self._spent)
            yield frame

    def _check(self, pixels: int) -> None:
        limit = self._video.limits.max_decoded_pixels
        if pixels > limit:
            raise VideoError(
                f"{self._video.name}: at least {pixels:,} pixels would have to be decoded, more than {limit:,}; cut or "
                "shrink it, give it more key frames, or raise data.max_decoded_pixels"
            )
