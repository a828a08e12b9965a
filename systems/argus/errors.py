"""What can go wrong in a campaign.

ArgusError
├── CapacityError      an image cannot carry a payload
├── NotWatermarked     no payload was found in an image
├── BadChoice          a licensee's choice does not prove that it is one
├── BadBundle          a sealed bundle was tampered with, or is not for this choice
├── DuplicateVersions  two versions of a licence are the same
├── WrongPeriod        a token or a move belongs to another period
└── Reverted           the contract refused a call; `.reason` is its own
"""

from __future__ import annotations


class ArgusError(Exception):
    """Base of the errors of this system."""


class CapacityError(ArgusError, ValueError):
    """An image cannot carry a payload: it is too small, flat or clipped."""


class NotWatermarked(ArgusError):
    """No payload was found in an image."""


class BadChoice(ArgusError, ValueError):
    """A licensee's choice does not prove that every digit is one of the variants."""


class BadBundle(ArgusError, ValueError):
    """A sealed bundle was tampered with, or is not for this choice."""


class DuplicateVersions(ArgusError, ValueError):
    """Two versions of a licence have the same anchor."""


class WrongPeriod(ArgusError, ValueError):
    """A token or a move belongs to another period."""


class Reverted(ArgusError):
    """The contract refused a call. `reason` is the contract's own."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
