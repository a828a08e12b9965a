"""The graph-based pinpoint protocol: claims, games, and the two players.

    court = deploy(chain)                                        # or Court(chain, contract) for one that stands
    claim = Submitter(court, alice, model).submit(trace)
    verdict = play(Submitter(...), Challenger(...), claim)       # until the contract has decided

A player looks at the chain, makes the one move that is its own, and forgets: everything it needs is rebuilt from the
contract's events (`replay`), so a process that dies goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from systems import evm
from systems.agatha.arbiter import pieces
from systems.agatha.commit import Job, Model, Trace, Tree, depth_of, keccak, leaves_of
from systems.agatha.descriptor import (
    LEAF_BYTES,
    MAX_STEPS,
    POOLS,
    Descriptor,
    NotYourMove,
    Profile,
    ProofError,
    Reverted,
)
from systems.agatha.witness import Evidence, gas_of_whole, leaves

CONTRACTS = Path(__file__).with_name("contracts")
ETHER = 10**18
NO_ROOT = bytes(32)
GAS_OF_A_ROUND = 90_000
"""About what picking an element and posting its sums costs: elements that cost less are arbitrated as a whole."""
GAS_OF_A_MOVE = 75_000
"""At most what a move costs besides what it carries: the transaction, storage, context and descriptor, the log."""
GAS_OF_A_BYTE = 52
"""At most what a byte of calldata costs with being hashed and logged."""
MAX_WITNESS = 24_576
"""Bytes of evidence that `gpp.vy` takes in one transaction."""


class Phase(IntEnum):
    """Whose move it is, and which; `gpp.vy` has the same numbers."""

    NONE = 0
    POST = 1
    PICK = 2
    REVEAL = 3
    ELEMENT = 4
    SUM = 5
    STEP = 6
    WON = 7
    LOST = 8
    LEFT = 9

    @property
    def over(self) -> bool:
        """Whether nothing can follow."""
        return self >= Phase.WON

    @property
    def submitter_moves(self) -> bool:
        """Whether the submitter is to move."""
        return self in {Phase.POST, Phase.REVEAL, Phase.SUM}


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
        return keccak(self.job.id + self.output_root + self.trace_root + _word(self.submitter))


def _word(address: str) -> bytes:
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


@dataclass(frozen=True)
class Verdict:
    """How a game ended. `node`, `element`, `step` name what was arbitrated, None where it never came to that."""

    winner: str
    node: int | None
    element: int | None
    step: int | None
    moves: int
    gas: int
    gas_by_move: tuple[tuple[str, int], ...]


# --- the court -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Court:
    """The contract on a chain."""

    chain: evm.Chain
    contract: evm.Contract

    @cached_property
    def bond(self) -> int:
        """Wei."""
        return int(self.chain.call(self.contract, "BOND"))

    @cached_property
    def window(self) -> int:
        """Seconds in which a claim can be challenged."""
        return int(self.chain.call(self.contract, "WINDOW"))

    @cached_property
    def clock(self) -> int:
        """Seconds that a player has for all its moves of one game."""
        return int(self.chain.call(self.contract, "CLOCK"))

    def send(self, function: str, *args: Any, sender: str, value: int = 0) -> evm.Receipt:
        """A transaction. Raises Reverted with the contract's reason."""
        try:
            return self.chain.send(self.contract, function, *args, sender=sender, value=value)
        except evm.Reverted as error:
            raise Reverted(error.reason) from error

    def send_bytes(self, data: bytes, *, sender: str) -> evm.Receipt:
        """A transaction with calldata as given. Raises Reverted."""
        try:
            return self.chain.send_bytes(self.contract, data, sender)
        except evm.Reverted as error:
            raise Reverted(error.reason) from error

    def events(self, since: int = 0) -> tuple[evm.Event, ...]:
        """All events from a block on."""
        return self.chain.events(self.contract, since)

    def game(self, model: Model, claim: bytes, challenger: str) -> Game:
        """A game as it stands. Raises NotYourMove where there is none."""
        found = replay(self.events(), model).get((claim, challenger.lower()))
        if found is None:
            raise NotYourMove(f"{challenger} has not challenged {claim.hex()}")
        return found

    def state(self, claim: bytes, challenger: str) -> tuple[Phase, int]:
        """The phase of a game, and the seconds that the player to move has left."""
        fields, _ = self.chain.call(self.contract, "game_of", claim, challenger)
        phase = Phase(fields[0])
        left = fields[3] if phase.submitter_moves else fields[4]
        return phase, left - (self.chain.now() - fields[2])


def deploy(
    chain: evm.Chain,
    *,
    bond: int = ETHER // 10,
    window: int = 86_400,
    clock: int = 3 * 86_400,
    sender: str | None = None,
) -> Court:
    """Put the contracts on a chain. `bond` in wei, `window` and `clock` in seconds. Raises evm.Reverted."""
    arbiter = chain.deploy(evm.compile_contract(CONTRACTS / "arbiter.vy"), sender=sender)
    gpp = evm.compile_contract(CONTRACTS / "gpp.vy")
    return Court(chain, chain.deploy(gpp, arbiter.address, bond, window, clock, sender=sender))


def court_at(chain: evm.Chain, address: str) -> Court:
    """The contract that stands at an address already."""
    return Court(chain, evm.Contract(address, evm.compile_contract(CONTRACTS / "gpp.vy")))


def min_bond(model: Model, gas_price: int) -> int:
    """Wei that a bond should be at least: twice what a whole game about a model can cost, at `gas_price` wei."""
    return 2 * worst_gas(model) * gas_price


def worst_gas(model: Model) -> int:
    """A bound on the gas of all moves of one game, both players' together, claim and challenge included.

    It follows the game down to its dearest node: as many rounds as the trees are deep, each with all its children; and
    at the end the cheaper of an element as a whole and one step of its sum, with the longest list of sums that a
    submitter can post.
    """
    nodes = len(model.descriptors)
    path = 32 * GAS_OF_A_BYTE * depth_of(nodes)  # the siblings of one leaf over the nodes
    start = 2 * GAS_OF_A_MOVE + _gas_of_search(Focus.on_trace(nodes)) + 2 * path
    return start + max(_gas_of_judgement(d, path) for d in model.descriptors)


def _gas_of_search(focus: Focus) -> int:
    """Of revealing and picking down to a leaf of the trace, or to the opened leaves of an output."""
    gas = 0
    while focus.depth and (levels := focus.levels()):
        # the focus at the left edge has the most children; to pick one takes a sibling a level
        gas += 2 * GAS_OF_A_MOVE + 32 * GAS_OF_A_BYTE * (focus.width(levels) + levels + 1)
        focus = focus.child(levels, 0)
    return gas or 2 * GAS_OF_A_MOVE


def _gas_of_judgement(d: Descriptor, path: int) -> int:
    focus = Focus.on_output(d.output_bytes)
    opened = GAS_OF_A_MOVE + 4 * LEAF_BYTES * GAS_OF_A_BYTE
    reads = 3 * (path + GAS_OF_A_BYTE * (2 * LEAF_BYTES + 32 * focus.depth))  # the epilogue, and up to two elements
    whole = GAS_OF_A_MOVE + reads + 2 * gas_of_whole(d)
    sums = 2 * GAS_OF_A_BYTE * 4 * MAX_STEPS if d.steps else 0
    step = 3 * GAS_OF_A_MOVE + sums + reads + 2 * gas_of_whole(_one_step(d))
    return _gas_of_search(focus) + opened + (step if d.steps and not _as_whole(d) else whole)


# --- events --------------------------------------------------------------------------------------------------


def replay(events: Iterable[evm.Event], model: Model) -> dict[tuple[bytes, str], Game]:
    """All games that the events tell of, by claim and challenger (in lower case)."""
    games: dict[tuple[bytes, str], Game] = {}
    for event in events:
        if "challenger" not in event.args:
            continue
        key = (bytes(event.args["claim"]), str(event.args["challenger"]).lower())
        before = games.get(key) or Game(*key)
        games[key] = _after(before, event, model)
    return games


def _after(game: Game, event: evm.Event, model: Model) -> Game:
    args = event.args
    match event.name:
        case "Posted":
            focus = Focus.on_trace(len(model.descriptors))
            posted = replace(game, phase=Phase.PICK, trace_root=bytes(args["trace"]), focus=focus)
            return _revealed(posted, args["children"])
        case "Revealed":
            return _revealed(replace(game, phase=Phase.PICK), args["children"])
        case "Picked":
            assert game.focus is not None
            focus = game.focus.child(game.focus.levels(), args["child"])
            return replace(game, phase=Phase.REVEAL, focus=focus)
        case "NodePicked":
            size = model.descriptors[args["node"]].output_bytes
            return replace(game, phase=Phase.REVEAL, node=args["node"], focus=Focus.on_output(size))
        case "Opened":
            return replace(game, phase=Phase.ELEMENT, opened=bytes(args["leaves"]))
        case "ElementPicked":
            return replace(game, phase=Phase.SUM, element=args["element"])
        case "Summed":
            return replace(game, phase=Phase.STEP, sums=bytes(args["sums"]))
        case "Arbitrated":
            step = args["step"] if args["step"] < 1024 or game.phase is Phase.STEP else None
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


# --- players -------------------------------------------------------------------------------------------------


@dataclass
class Submitter:
    """Claims outputs, and defends them. `sums` says what it answers when asked for partial sums."""

    court: Court
    account: str
    model: Model
    trace: Trace
    sums: Callable[[Submitter, int, int], bytes] | None = field(default=None, repr=False)

    def claim(self, *, eager: bool = False, job: Job | None = None) -> Claim:
        """The claim that this trace's output is the job's; `eager` names the trace root in it."""
        job = job or self.model.job(self.trace.tree(0).root)
        return Claim(job, self.trace.output_root, self.trace.root if eager else NO_ROOT, self.account)

    def submit(self, claim: Claim) -> evm.Receipt:
        """Put a claim on the chain, with the bond."""
        return self.court.send(
            "submit", claim.job.id, claim.output_root, claim.trace_root, sender=self.account, value=self.court.bond
        )

    def collect(self, claim: Claim) -> evm.Receipt:
        """Make a claim final and take the bond back."""
        return self.court.send(
            "collect", claim.job.id, claim.output_root, claim.trace_root, claim.submitter, sender=self.account
        )

    def move(self, claim: Claim, challenger: str) -> tuple[str, evm.Receipt]:
        """Make the one move that is due: its name and receipt. Raises NotYourMove, Reverted."""
        name, args = self.next_move(claim, self.court.game(self.model, claim.id, challenger))
        return name, self.court.send(name, *args, sender=self.account)

    def next_move(self, claim: Claim, game: Game) -> tuple[str, tuple[Any, ...]]:
        """The function to call, and its arguments."""
        if game.phase is Phase.POST:
            return "post_trace", self._posted(claim, game.challenger)
        if game.phase is Phase.REVEAL:
            focus = game.focus
            assert focus is not None
            tree = self.trace.roots if not focus.inside else self.trace.tree(game.node or 0)
            levels = focus.levels()
            if not focus.inside or levels:
                children = tree.below(focus.depth, focus.index, levels)
                return "reveal", (claim.id, game.challenger, children)
            count = focus.width(focus.depth)
            data = leaves(self.trace.tensors[game.node or 0], focus.index << focus.depth, count)
            return "open", (claim.id, game.challenger, data)
        if game.phase is Phase.SUM:
            return "post_sums", (claim.id, game.challenger, self._sums(game.node or 0, game.element or 0))
        raise NotYourMove(f"the game is at {game.phase.name}, which is no move of the submitter")

    def _posted(self, claim: Claim, challenger: str) -> tuple[Any, ...]:
        tree = self.trace.roots
        levels = Focus.on_trace(tree.count).levels()
        children = tree.below(tree.depth, 0, levels)
        last = tree.count - 1
        witness = b"" if levels == tree.depth else b"".join(tree.proof(last, last))
        context = (self.trace.root, claim.job.model_root, claim.job.nodes, claim.job.input_root)
        return challenger, context, claim.output_root, claim.trace_root, children, witness

    def _sums(self, node: int, element: int) -> bytes:
        if self.sums is not None:
            return self.sums(self, node, element)
        return honest_sums(self.model, self.trace, node, element)


def honest_sums(model: Model, trace: Trace, node: int, element: int) -> bytes:
    """The partial sums behind an element, four bytes each, from the trace's own inputs."""
    operands = Evidence(model, trace, trace.roots, node).operands()
    signed = model.descriptors[node].profile is Profile.INT8
    return b"".join(value.to_bytes(4, "big", signed=signed) for value in operands.sums(element))


@dataclass
class Challenger:
    """Holds its own trace against a claim, and plays for the first difference.

    `whole` says whether elements are arbitrated as a whole (True), by steps (False), or as it is cheaper (None).
    """

    court: Court
    account: str
    model: Model
    trace: Trace
    whole: bool | None = None

    def challenge(self, claim: Claim) -> evm.Receipt:
        """Open a game, with the bond."""
        return self.court.send("challenge", claim.id, sender=self.account, value=self.court.bond)

    def disagrees(self, claim: Claim) -> bool:
        """Whether the claimed output is another one than this player's."""
        return claim.output_root != self.trace.output_root

    def move(self, claim: Claim) -> tuple[str, evm.Receipt]:
        """Make the one move that is due: its name and receipt. Raises NotYourMove, Reverted."""
        name, args = self.next_move(claim, self.court.game(self.model, claim.id, self.account))
        return name, self.court.send(name, *args, sender=self.account)

    def next_move(self, claim: Claim, game: Game) -> tuple[str, tuple[Any, ...]]:
        """The function to call, and its arguments."""
        if game.phase is Phase.PICK:
            return self._pick(claim, game)
        if game.phase is Phase.ELEMENT:
            element = self._differing_element(game)
            d = self.model.descriptors[game.node or 0]
            whole = _as_whole(d) if self.whole is None else self.whole
            if d.steps and not whole and element < d.elements:
                return "pick_element", (claim.id, element)
            evidence = self._evidence(game)
            witness = evidence.described() + self._opened_leaf(game, element) + evidence.whole(element)
            return "arbitrate", (claim.id, element, self._context(claim, game), _tuple(d), witness)
        if game.phase is Phase.STEP:
            return "arbitrate_step", self._step(claim, game)
        raise NotYourMove(f"the game is at {game.phase.name}, which is no move of the challenger")

    def _pick(self, claim: Claim, game: Game) -> tuple[str, tuple[Any, ...]]:
        focus = game.focus
        assert focus is not None
        levels = focus.levels()
        tree = self.trace.tree(game.node or 0) if focus.inside else self.trace.roots
        mine = tree.below(focus.depth, focus.index, levels)
        child = self._differing_child(game.children, mine)
        siblings = b"".join(Tree(game.children).proof(child, child))
        picked = focus.child(levels, child)
        if focus.inside or picked.depth:
            return "pick", (claim.id, child, game.children[child], siblings)
        witness = siblings + Evidence(self.model, self.trace, self.trace.roots, picked.index).described()
        d = self.model.descriptors[picked.index]
        return "pick_node", (claim.id, child, game.children[child], self._context(claim, game), _tuple(d), witness)

    def _differing_child(self, theirs: Sequence[bytes], mine: Sequence[bytes]) -> int:
        return next((i for i, (a, b) in enumerate(zip(theirs, mine, strict=True)) if a != b), 0)

    def _differing_element(self, game: Game) -> int:
        """The first opened element that is another one than this player's, be it in the tail beyond the tensor."""
        focus, d = game.focus, self.model.descriptors[game.node or 0]
        assert focus is not None
        first = focus.index << focus.depth
        mine = leaves(self.trace.tensors[game.node or 0], first, len(game.opened) // LEAF_BYTES)
        at = next((i for i, (a, b) in enumerate(zip(game.opened, mine, strict=True)) if a != b), 0)
        return (first * LEAF_BYTES + at) // d.profile.width

    def _step(self, claim: Claim, game: Game) -> tuple[Any, ...]:
        node, element = game.node or 0, game.element or 0
        d, evidence = self.model.descriptors[node], self._evidence(game)
        step = self._differing_step(game)
        witness = evidence.described()
        if len(game.sums) != 4 * d.steps:
            pass  # their number alone is wrong: nothing else need be shown
        elif step < d.steps:
            witness += evidence.step(element, step)
        else:
            witness += self._opened_leaf(game, element) + evidence.final(element)
        opened = self._opened_tree(game).root
        return claim.id, step, opened, game.sums, self._context(claim, game), _tuple(d), witness

    def _differing_step(self, game: Game) -> int:
        """The first step that does not lead from the posted sum before it to the posted sum after it."""
        node, element = game.node or 0, game.element or 0
        d = self.model.descriptors[node]
        signed = d.profile is Profile.INT8
        posted = [int.from_bytes(game.sums[i : i + 4], "big", signed=signed) for i in range(0, len(game.sums), 4)]
        if len(posted) != d.steps:
            return 0
        operands = self._evidence(game).operands()
        before = operands.start()
        for step, (piece, after) in enumerate(zip(pieces(d, element, d.chunk), posted, strict=True)):
            if operands.step(before, piece) != after:
                return step
            before = after
        return d.steps

    def _opened_tree(self, game: Game) -> Tree:
        return Tree.over(game.opened)

    def _opened_leaf(self, game: Game, element: int) -> bytes:
        """The opened leaf that holds an element, and its siblings below the focus."""
        focus, d = game.focus, self.model.descriptors[game.node or 0]
        assert focus is not None
        leaf = element * d.profile.width // LEAF_BYTES - (focus.index << focus.depth)
        return leaves(game.opened, leaf, 1) + b"".join(self._opened_tree(game).proof(leaf, leaf))

    def _evidence(self, game: Game) -> Evidence:
        roots = self.trace.roots.patched(dict(game.known))
        return Evidence(self.model, self.trace, roots, game.node or 0)

    def _context(self, claim: Claim, game: Game) -> tuple[Any, ...]:
        return game.trace_root, claim.job.model_root, claim.job.nodes, claim.job.input_root

    def fraud_proof(self, claim: Claim, theirs: Trace) -> tuple[evm.Receipt, evm.Receipt]:
        """Announce and show that a claim which names its trace is wrong, given the trace: the two receipts.

        Raises ProofError where the traces agree, `theirs` is not the claimed one, or the element's evidence is too
        large for one transaction, all before anything is sent; and Reverted.
        """
        args = self.fraud_proof_arguments(claim, theirs)
        digest = keccak(claim.id + keccak(args[-1]) + _word(self.account))
        announced = self.court.send("announce", digest, sender=self.account)
        return announced, self.court.send("fraud_proof", *args, sender=self.account)

    def fraud_proof_arguments(self, claim: Claim, theirs: Trace) -> tuple[Any, ...]:
        """The arguments of `fraud_proof` in the contract."""
        if theirs.root != claim.trace_root:
            raise ProofError(f"the trace has root {theirs.root.hex()}, the claim {claim.trace_root.hex()}")
        nodes = claim.job.nodes
        context = (claim.trace_root, claim.job.model_root, nodes, claim.job.input_root)
        if theirs.output_root != claim.output_root:
            node, element = nodes, 0
        elif theirs.tree(0).root != claim.job.input_root:
            node, element = 0, 0
        else:
            found = localise(theirs, self.trace, self.model)
            if found is None:
                raise ProofError("the traces agree: there is nothing to prove")
            node, element = found
        at = min(node, nodes - 1)
        evidence = Evidence(self.model, self.trace, theirs.roots, at)
        witness = theirs.roots.at(0, at) + b"".join(theirs.roots.proof(at, at))
        d = self.model.descriptors[at]
        if 0 < node < nodes:
            tree, leaf = theirs.tree(node), element * d.profile.width // LEAF_BYTES
            witness += evidence.described() + leaves(theirs.tensors[node], leaf, 1)
            witness += b"".join(tree.proof(leaf, leaf)) + evidence.whole(element)
        if len(witness) > MAX_WITNESS:
            raise ProofError(
                f"element {element} of node {node} ({d.op.name}) takes {len(witness)} bytes of evidence, and one "
                f"transaction holds {MAX_WITNESS}: challenge the claim instead, a game cuts the sum into steps"
            )
        return claim.output_root, claim.submitter, node, element, context, _tuple(d), witness


def _as_whole(d: Descriptor) -> bool:
    """Whether an element of a node is cheaper to arbitrate as a whole than by a step of its sum."""
    return gas_of_whole(d) < GAS_OF_A_ROUND + gas_of_whole(_one_step(d))


def _one_step(d: Descriptor) -> Descriptor:
    """A node whose elements cost about what one step of `d` costs."""
    if d.op in POOLS:
        return replace(d, kh=1, kw=1)
    return replace(d, kh=1, kw=1, groups=1, c_in=min(d.run, d.chunk))


def _tuple(d: Descriptor) -> tuple[Any, ...]:
    """A descriptor as the contract's ABI has it."""
    return astuple(d)


def play(submitter: Submitter, challenger: Challenger, claim: Claim, *, max_moves: int = 64) -> Verdict:
    """Both players in turn until the contract has decided; a player without a move loses by the clock.

    The game must have been opened (`Challenger.challenge`). A move that the contract refuses counts as none.
    """
    court = submitter.court
    moves: list[tuple[str, int]] = []
    while len(moves) < max_moves:
        phase, left = court.state(claim.id, challenger.account)
        if phase.over or phase is Phase.NONE:
            break
        try:
            if phase.submitter_moves:
                name, receipt = submitter.move(claim, challenger.account)
            else:
                name, receipt = challenger.move(claim)
        except (Reverted, NotYourMove):
            court.chain.advance(left + 1)
            winner = challenger.account if phase.submitter_moves else submitter.account
            receipt, name = court.send("timeout", claim.id, challenger.account, sender=winner), "timeout"
        moves.append((name, receipt.gas))
    game = court.game(submitter.model, claim.id, challenger.account)
    total = sum(gas for _, gas in moves)
    return Verdict(game.winner, game.node, game.element, game.step, len(moves), total, tuple(moves))


def localise(a: Trace, b: Trace, model: Model) -> tuple[int, int] | None:
    """The first node in which two traces of a model differ, and the first element in it; None where they agree.

    Off the chain, this is the pinpoint protocol between two machines: it says which operator computed other bits.
    """
    for node, (x, y) in enumerate(zip(a.tensors, b.tensors, strict=True)):
        if x != y:
            width = model.descriptors[node].profile.width
            at = next((i for i, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), min(len(x), len(y)))
            return node, at // width
    return None
