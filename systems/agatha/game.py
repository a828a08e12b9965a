"""Claims and games as the contract's events tell them: whose move it is, what is in focus, what was revealed.

    games = replay(court.events(), claim)        # by challenger

Nothing else is remembered: a player that dies rebuilds all it needs from here, and goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from systems import evm
from systems.agatha.commit import Job, Tree, depth_of, keccak, leaves_of
from systems.agatha.descriptor import MAX_STEPS

NO_ROOT = bytes(32)


class Phase(IntEnum):
    """Whose move it is, and which; `gpp.vy` has the same numbers."""

    NONE = 0
    POST = 1
    PICK = 2
    REVEAL = 3
    ELEMENT = 4
    SUM = 5
    STEP = 6
    DESCRIBE = 7
    PROVE = 8
    WON = 9
    LOST = 10
    LEFT = 11

    @property
    def over(self) -> bool:
        """Whether nothing can follow."""
        return self >= Phase.WON

    @property
    def submitter_moves(self) -> bool:
        """Whether the submitter is to move."""
        return self in {Phase.POST, Phase.REVEAL, Phase.SUM, Phase.DESCRIBE, Phase.PROVE}


@dataclass(frozen=True)
class Claim:
    """`submitter` says that `job` has the output behind `output_root`; a trace root of zeros names no trace."""

    job: Job
    output_root: bytes
    trace_root: bytes
    submitter: str

    @property
    def id(self) -> bytes:
        """32 bytes."""
        return keccak(self.job.id + self.output_root + self.trace_root + address_word(self.submitter))


def address_word(address: str) -> bytes:
    """An address as the ABI encodes it, 32 bytes."""
    return int(address, 16).to_bytes(32, "big")


@dataclass(frozen=True)
class Focus:
    """A node of one of the two trees that a game descends: that of the trace, then that of a node's output."""

    inside: bool
    depth: int
    index: int
    size: int

    @property
    def leaves(self) -> int:
        """Leaves of the whole tree."""
        return leaves_of(self.size) if self.inside else self.size

    def levels(self) -> int:
        """Levels that the next move reveals; 0 inside an output: the leaves themselves."""
        if not self.inside:
            return -(-self.depth // max(-(-self.depth // 6), 1))
        return 0 if self.depth <= 2 else -(-(self.depth - 2) // -(-(self.depth - 2) // 5))

    def width(self, levels: int) -> int:
        """Nodes that lie so many levels below the focus."""
        below = self.depth - levels
        return min(1 << levels, (self.leaves + (1 << below) - 1 >> below) - (self.index << levels))

    def child(self, levels: int, child: int) -> Focus:
        """The focus after a pick."""
        return replace(self, depth=self.depth - levels, index=(self.index << levels) + child)

    @classmethod
    def on_trace(cls, nodes: int) -> Focus:
        """The root over all nodes' outputs."""
        return cls(False, depth_of(nodes), 0, nodes)

    @classmethod
    def on_output(cls, size: int) -> Focus:
        """The root of an output of `size` bytes."""
        return cls(True, depth_of(leaves_of(size)), 0, size)


@dataclass(frozen=True)
class Game:
    """A game as its events tell it. `known`: hashes of the submitter's trace tree by (level, index)."""

    claim: bytes
    challenger: str
    phase: Phase = Phase.POST
    trace_root: bytes = NO_ROOT
    focus: Focus | None = None
    children: tuple[bytes, ...] = ()
    known: tuple[tuple[tuple[int, int], bytes], ...] = ()
    node: int | None = None
    opened: bytes = b""
    element: int | None = None
    step: int | None = None
    sums: bytes = b""
    winner: str = ""


# --- events --------------------------------------------------------------------------------------------------


def replay(events: Iterable[evm.Event], claim: Claim) -> dict[str, Game]:
    """All games about a claim that the events tell of, by challenger (in lower case)."""
    games: dict[str, Game] = {}
    for event in events:
        if "challenger" not in event.args or bytes(event.args["claim"]) != claim.id:
            continue
        challenger = str(event.args["challenger"]).lower()
        before = games.get(challenger) or Game(claim.id, challenger)
        games[challenger] = _after(before, event, claim.job.nodes)
    return games


def _after(game: Game, event: evm.Event, nodes: int) -> Game:
    args = event.args
    match event.name:
        case "Posted":
            focus = Focus.on_trace(nodes)
            posted = replace(game, phase=Phase.PICK, trace_root=bytes(args["trace"]), focus=focus)
            return _revealed(posted, args["children"])
        case "Revealed":
            return _revealed(replace(game, phase=Phase.PICK), args["children"])
        case "Picked":
            assert game.focus is not None
            focus = game.focus.child(game.focus.levels(), args["child"])
            return replace(game, phase=Phase.REVEAL, focus=focus)
        case "NodePicked":
            return replace(game, phase=Phase.REVEAL, node=args["node"], focus=Focus.on_output(args["size"]))
        case "Doubted":
            return replace(game, phase=Phase.DESCRIBE, node=args["node"])
        case "Opened":
            return replace(game, phase=Phase.ELEMENT, opened=bytes(args["leaves"]))
        case "ElementPicked":
            return replace(game, phase=Phase.SUM, element=args["element"])
        case "Summed":
            return replace(game, phase=Phase.STEP, sums=bytes(args["sums"]))
        case "Demanded":
            return replace(game, phase=Phase.PROVE, step=args["step"])
        case "Arbitrated":
            by_steps = game.phase in {Phase.STEP, Phase.PROVE}
            step = args["step"] if args["step"] < MAX_STEPS or by_steps else None
            return replace(game, node=args["node"], element=args["element"], step=step)
        case "Settled":
            won = str(args["winner"]).lower() == game.challenger
            phase = Phase.LEFT if won and args["reward"] == 0 else Phase.WON if won else Phase.LOST
            return replace(game, phase=phase, winner=str(args["winner"]))
        case _:
            return game


def _revealed(game: Game, children: Sequence[bytes]) -> Game:
    """The game with the children of its focus, and with what they tell of the trace tree."""
    assert game.focus is not None
    hashes = tuple(bytes(child) for child in children)
    known = game.known
    if not game.focus.inside:
        levels = game.focus.levels()
        below = Tree(hashes).levels
        bottom, start = game.focus.depth - levels, game.focus.index << levels
        known += tuple(
            ((bottom + up, (start >> up) + i), value) for up, row in enumerate(below) for i, value in enumerate(row)
        )
    return replace(game, children=hashes, known=known)
