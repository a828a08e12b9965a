"""Argus: an anti-piracy incentive system without a trusted party (arXiv 2107.06049), on Ethereum.

incentive   what a report earns and an infringer pays, with the Sybil-proofness theorem as executable checks
tokens      secrets, the hash ladder over periods, the tree of versions
transfer    oblivious transfer of a version, so that its maker cannot know which was taken
court       the contract on a chain; roles and the audit stand on it
"""

from systems.argus.errors import (
    ArgusError,
    BadBundle,
    BadChoice,
    CapacityError,
    DuplicateVersions,
    NotWatermarked,
    Reverted,
    WrongPeriod,
)
from systems.argus.incentive import best_response, payouts, penalty, reward
from systems.argus.tokens import VersionTree, anchor, commitment, token
from systems.argus.transfer import OwnerKey, check_choice, choose, open_bundle, seal

__all__ = [
    "ArgusError",
    "BadBundle",
    "BadChoice",
    "CapacityError",
    "DuplicateVersions",
    "NotWatermarked",
    "OwnerKey",
    "Reverted",
    "VersionTree",
    "WrongPeriod",
    "anchor",
    "best_response",
    "check_choice",
    "choose",
    "commitment",
    "open_bundle",
    "payouts",
    "penalty",
    "reward",
    "seal",
    "token",
]
