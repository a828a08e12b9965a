"""The players: the submitter defends a claim, the challenger plays for the first difference, the doubter for proof.

    claim = Submitter(court, alice, model, trace).claim()
    verdict = play(Submitter(...), Challenger(...), claim)       # until the contract has decided

A player looks at the chain, makes the one move that is its own, and forgets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from systems import evm
from systems.agatha.arbiter import pieces
from systems.agatha.commit import Job, Model, Trace, Tree, keccak
from systems.agatha.court import Court
from systems.agatha.descriptor import LEAF_BYTES, Descriptor, NotYourMove, Profile, ProofError, Reverted
from systems.agatha.game import NO_ROOT, Claim, Focus, Game, Phase, address_word
from systems.agatha.witness import Evidence, cheaper_whole, leaves

MAX_WITNESS = 24_576
"""Bytes of evidence that `gpp.vy` takes in one transaction."""


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
        name, args = self.next_move(claim, self.court.game(claim, challenger))
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
        if game.phase is Phase.DESCRIBE:
            return "describe", (claim.id, game.challenger, *self._described(claim, game))
        if game.phase is Phase.PROVE:
            evidence = Evidence(self.model, self.trace, self.trace.roots, game.node or 0)
            return "prove", (claim.id, game.challenger, *_stepped(claim, game, evidence, game.step or 0))
        raise NotYourMove(f"the game is at {game.phase.name}, which is no move of the submitter")

    def _posted(self, claim: Claim, challenger: str) -> tuple[Any, ...]:
        tree = self.trace.roots
        levels = Focus.on_trace(tree.count).levels()
        children = tree.below(tree.depth, 0, levels)
        last = tree.count - 1
        witness = b"" if levels == tree.depth else b"".join(tree.proof(last, last))
        context = _context(claim, self.trace.root)
        return challenger, context, claim.output_root, claim.trace_root, children, witness

    def _described(self, claim: Claim, game: Game) -> tuple[Any, ...]:
        """The doubted node and the two that it reads, with the proofs that they are the model's."""
        descriptors, tree = self.model.descriptors, self.model.tree
        d = descriptors[game.node or 0]
        shown = [game.node or 0, *((d.input_a, d.input_b) if game.node else ())]
        a, b = (descriptors[min(i, len(descriptors) - 1)] for i in (d.input_a, d.input_b))
        witness = b"".join(b"".join(tree.proof(i, i)) for i in shown if i < len(descriptors))
        return _context(claim, game.trace_root), astuple(d), astuple(a), astuple(b), witness

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
        name, args = self.next_move(claim, self.court.game(claim, self.account))
        return name, self.court.send(name, *args, sender=self.account)

    def next_move(self, claim: Claim, game: Game) -> tuple[str, tuple[Any, ...]]:
        """The function to call, and its arguments."""
        if game.phase is Phase.PICK:
            return self._pick(claim, game)
        if game.phase is Phase.ELEMENT:
            element = self._differing_element(game)
            d = self.model.descriptors[game.node or 0]
            whole = cheaper_whole(d) if self.whole is None else self.whole
            if d.steps and not whole and element < d.elements:
                return "pick_element", (claim.id, element)
            evidence = self._evidence(game)
            witness = evidence.described() + _opened_leaf(game, d, element) + evidence.whole(element)
            return "arbitrate", (claim.id, element, _context(claim, game.trace_root), astuple(d), witness)
        if game.phase is Phase.STEP:
            step = self._differing_step(game)
            return "arbitrate_step", (claim.id, step, *_stepped(claim, game, self._evidence(game), step))
        raise NotYourMove(f"the game is at {game.phase.name}, which is no move of the challenger")

    def _pick(self, claim: Claim, game: Game) -> tuple[str, tuple[Any, ...]]:
        focus = game.focus
        assert focus is not None
        levels = focus.levels()
        tree = self.trace.tree(game.node or 0) if focus.inside else self.trace.roots
        mine = tree.below(focus.depth, focus.index, levels)
        child = self._differing_child(game.children, mine)
        name, args = _picked(claim, game, child)
        picked = focus.child(levels, child)
        if focus.inside or picked.depth:
            return name, args
        witness = args[-1] + Evidence(self.model, self.trace, self.trace.roots, picked.index).described()
        d = self.model.descriptors[picked.index]
        return "pick_node", (*args[:-1], _context(claim, game.trace_root), astuple(d), witness)

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

    def _evidence(self, game: Game) -> Evidence:
        roots = self.trace.roots.patched(dict(game.known))
        return Evidence(self.model, self.trace, roots, game.node or 0)

    def fraud_proof(self, claim: Claim, theirs: Trace) -> tuple[evm.Receipt, evm.Receipt]:
        """Announce and show that a claim which names its trace is wrong, given the trace: the two receipts.

        Raises ProofError where the traces agree, `theirs` is not the claimed one, or the element's evidence is too
        large for one transaction, all before anything is sent; and Reverted.
        """
        args = self.fraud_proof_arguments(claim, theirs)
        digest = keccak(claim.id + keccak(args[-1]) + address_word(self.account))
        announced = self.court.send("announce", digest, sender=self.account)
        return announced, self.court.send("fraud_proof", *args, sender=self.account)

    def fraud_proof_arguments(self, claim: Claim, theirs: Trace) -> tuple[Any, ...]:
        """The arguments of `fraud_proof` in the contract."""
        if theirs.root != claim.trace_root:
            raise ProofError(f"the trace has root {theirs.root.hex()}, the claim {claim.trace_root.hex()}")
        nodes = claim.job.nodes
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
        context = _context(claim, claim.trace_root)
        return claim.output_root, claim.submitter, node, element, context, astuple(d), witness


@dataclass
class Doubter:
    """Puts the burden of proof on the submitter: for a node that no one could prove wrong.

    That is a node which is impossible, reads other sizes than there are, or whose descriptor, weights or inputs are
    hidden. The submitter has to describe the node, and then to prove step `step` of the sum behind `element`; one that
    cannot loses by the clock. The doubter needs neither model nor trace. An honest submitter wins this game.
    """

    court: Court
    account: str
    node: int
    element: int = 0
    step: int = 0

    def challenge(self, claim: Claim) -> evm.Receipt:
        """Open a game, with the bond."""
        return self.court.send("challenge", claim.id, sender=self.account, value=self.court.bond)

    def move(self, claim: Claim) -> tuple[str, evm.Receipt]:
        """Make the one move that is due: its name and receipt. Raises NotYourMove, Reverted."""
        name, args = self.next_move(claim, self.court.game(claim, self.account))
        return name, self.court.send(name, *args, sender=self.account)

    def next_move(self, claim: Claim, game: Game) -> tuple[str, tuple[Any, ...]]:
        """The function to call, and its arguments."""
        if game.phase is Phase.PICK:
            focus = game.focus
            assert focus is not None
            levels = focus.levels()
            target = self._leaf(claim, game) if focus.inside else self.node
            child = (target >> focus.depth - levels) - (focus.index << levels)
            if not 0 <= child < len(game.children):
                raise NotYourMove(f"node {self.node} of {claim.job.nodes} has no element {self.element}")
            name, args = _picked(claim, game, child)
            return (name, args) if focus.inside or focus.child(levels, child).depth else ("doubt", args)
        if game.phase is Phase.ELEMENT:
            return "pick_element", (claim.id, self.element)
        if game.phase is Phase.STEP:
            return "demand", (claim.id, self.step)
        raise NotYourMove(f"the game is at {game.phase.name}, which is no move of the challenger")

    def _leaf(self, claim: Claim, game: Game) -> int:
        """The leaf that holds the element: the contract knows how wide one is, since the node was described."""
        fields, _ = self.court.chain.call(self.court.contract, "game_of", claim.id, game.challenger)
        return self.element * int(fields[10]) // LEAF_BYTES


# --- what moves carry ----------------------------------------------------------------------------------------


def _context(claim: Claim, trace_root: bytes) -> tuple[Any, ...]:
    """What all proofs of a game start from."""
    return trace_root, claim.job.model_root, claim.job.nodes, claim.job.input_root


def _picked(claim: Claim, game: Game, child: int) -> tuple[str, tuple[Any, ...]]:
    """The pick of a revealed child, with its siblings."""
    siblings = b"".join(Tree(game.children).proof(child, child))
    return "pick", (claim.id, child, game.children[child], siblings)


def _opened_leaf(game: Game, d: Descriptor, element: int) -> bytes:
    """The opened leaf that holds an element, and its siblings below the focus."""
    assert game.focus is not None
    leaf = element * d.profile.width // LEAF_BYTES - (game.focus.index << game.focus.depth)
    return leaves(game.opened, leaf, 1) + b"".join(Tree.over(game.opened).proof(leaf, leaf))


def _stepped(claim: Claim, game: Game, evidence: Evidence, step: int) -> tuple[Any, ...]:
    """What `arbitrate_step` and `prove` take beyond the game and the step's number."""
    d, element = evidence.descriptor, game.element or 0
    witness = evidence.described()
    if len(game.sums) != 4 * d.steps:
        pass  # their number alone is wrong: nothing else need be shown
    elif step < d.steps:
        witness += evidence.step(element, step)
    else:
        witness += _opened_leaf(game, d, element) + evidence.final(element)
    return Tree.over(game.opened).root, game.sums, _context(claim, game.trace_root), astuple(d), witness


# --- a whole game --------------------------------------------------------------------------------------------


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


def play(submitter: Submitter, challenger: Challenger | Doubter, claim: Claim, *, max_moves: int = 64) -> Verdict:
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
    game = court.game(claim, challenger.account)
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
