"""What one file may cost, known before memory is taken or time is spent: a small file can declare huge pictures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DecodeLimits:
    """The most pixels of an image or of a frame, and of all frames that a video makes us decode for those looked at.

    The defaults: a quarter of a GiB as RGB, where Pillow, too, begins to suspect an attack; and two hours of full HD at
    30 frames a second, decoded from end to end.

    Raises ValueError for numbers that are not positive.
    """

    max_pixels: int = 89_478_485
    max_decoded_pixels: int = 500_000_000_000

    def __post_init__(self) -> None:
        if self.max_pixels < 1 or self.max_decoded_pixels < 1:
            raise ValueError(
                f"max_pixels={self.max_pixels} and max_decoded_pixels={self.max_decoded_pixels} must be positive"
            )


USUAL_LIMITS = DecodeLimits()
