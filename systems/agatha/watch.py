"""Players that wait: each looks at the chain, moves when it is its turn, and ends when the contract has decided.

    defend(submitter, claim, say=print)      # answers every challenger, collects the bond when the window is over
    contest(challenger, claim, say=print)    # plays its own game to the end

Nothing is remembered between two looks, so a player that was stopped is started again and goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial

from systems import evm
from systems.agatha.court import Court
from systems.agatha.descriptor import NotYourMove, Reverted
from systems.agatha.game import Claim, Game, Phase, replay
from systems.agatha.players import Challenger, Doubter, Submitter

__all__ = ["State", "contest", "defend", "outcome", "state_of", "story"]

Say = Callable[[str], None]


class State(IntEnum):
    """What became of a claim; `gpp.vy` has the same numbers."""

    NONE = 0
    PENDING = 1
    VOID = 2
    FINAL = 3


def state_of(court: Court, claim: Claim) -> tuple[State, int]:
    """The state of a claim, and the last second in which it can be challenged."""
    _, deadline, _, state = court.chain.call(court.contract, "claim_of", claim.id)
    return State(state), deadline


class _Clock:
    """The time that the next block will have: a chain's own clock stands still between its blocks."""

    def __init__(self, court: Court) -> None:
        self._court = court
        self._seen = (court.chain.block(), time.monotonic())

    def now(self) -> int:
        """Seconds since 1970, a little late rather than early."""
        block = self._court.chain.block()
        if block != self._seen[0]:
            self._seen = (block, time.monotonic())
        return self._court.chain.now() + int(time.monotonic() - self._seen[1])


def defend(submitter: Submitter, claim: Claim, *, poll: float = 1.0, say: Say = print) -> State:
    """Answer every game about a claim until it is void or final; looks every `poll` seconds.

    Collects the bond when the window is over, ends games whose challenger has run out of time, and withdraws what was
    won. Raises Reverted where the contract refuses a move that was due.
    """
    court, clock = submitter.court, _Clock(submitter.court)
    while True:
        state, deadline = state_of(court, claim)
        if state is State.NONE:
            raise NotYourMove(f"the contract at {court.contract.address} knows no claim {claim.id.hex()}")
        if state is not State.PENDING:
            break
        running = [game for game in replay(court.events(), claim).values() if not game.phase.over]
        moved = False
        for game in running:
            if game.phase.submitter_moves:
                moved |= _moved(court, claim, game, say, partial(submitter.move, claim, game.challenger))
            else:
                moved |= _ended(court, claim, game, submitter.account, clock, say)
        if not running and clock.now() > deadline + 1:
            try:
                receipt = submitter.collect(claim)
                say(f"collect: the claim is final ({receipt.gas} gas)")
                moved = True
            except Reverted as error:
                if error.reason not in {"the window is open", "a game is open"}:
                    raise
        if not moved:
            time.sleep(poll)
    _withdraw(court, submitter.account, say)
    return state


def contest(challenger: Challenger | Doubter, claim: Claim, *, poll: float = 1.0, say: Say = print) -> Game:
    """Play the game that a challenger has opened until it is decided: the game; looks every `poll` seconds.

    Ends it when the submitter has run out of time, leaves it when the claim fell in another game, and withdraws what
    was won. Raises NotYourMove where no game was opened, Reverted where the contract refuses a move that was due.
    """
    court, clock = challenger.court, _Clock(challenger.court)
    while True:
        game = court.game(claim, challenger.account)
        if game.phase.over:
            break
        if state_of(court, claim)[0] is State.VOID:
            court.send("leave", claim.id, sender=challenger.account)
            say("leave: the claim fell in another game")
            continue
        if game.phase.submitter_moves:
            moved = _ended(court, claim, game, challenger.account, clock, say)
        else:
            moved = _moved(court, claim, game, say, partial(challenger.move, claim))
        if not moved:
            time.sleep(poll)
    _withdraw(court, challenger.account, say)
    return game


def _moved(court: Court, claim: Claim, game: Game, say: Say, move: Callable[[], tuple[str, evm.Receipt]]) -> bool:
    """Make a move. A refusal counts only where the game still stands as it did, and there is time left for it."""
    try:
        name, receipt = move()
    except Reverted as error:
        phase, _ = court.state(claim.id, game.challenger)
        if state_of(court, claim)[0] is State.PENDING and phase is game.phase and error.reason != "out of time":
            raise
        return False
    say(f"{name}: game of {game.challenger} ({receipt.gas} gas)")
    return True


def _ended(court: Court, claim: Claim, game: Game, account: str, clock: _Clock, say: Say) -> bool:
    """Whether a game was closed because the player to move has used up its time."""
    phase, left = court.state(claim.id, game.challenger)
    elapsed = clock.now() - court.chain.now()
    if phase is not game.phase or left - elapsed >= -1:
        return False
    try:
        court.send("timeout", claim.id, game.challenger, sender=account)
    except Reverted as error:
        if error.reason in {"there is time left", "no open game", "the claim is void"}:
            return False
        raise
    say(f"timeout: the other side of the game of {game.challenger} has used up its clock")
    return True


def _withdraw(court: Court, account: str, say: Say) -> None:
    credit = int(court.chain.call(court.contract, "credit", account))
    if credit:
        court.send("withdraw", sender=account)
        say(f"withdraw: {credit / 10**18:g} ether")


_DETAILS = {
    "Posted": ("trace",),
    "Picked": ("child",),
    "NodePicked": ("node", "size"),
    "Doubted": ("node",),
    "Demanded": ("step",),
    "ElementPicked": ("element",),
    "Arbitrated": ("node", "element", "step", "found", "claimed"),
    "Settled": ("winner", "reward", "burned"),
    "Claimed": ("submitter", "output_root", "deadline"),
    "Collected": ("output_root",),
}


def story(court: Court, claim: Claim) -> Sequence[str]:
    """What the contract's events tell of a claim, one line an event, oldest first."""
    lines = []
    for event in court.events():
        if bytes(event.args.get("claim", b"")) != claim.id:
            continue
        values = [(name, event.args[name]) for name in _DETAILS.get(event.name, ())]
        told = [f"{name} {value.hex() if isinstance(value, bytes) else value}" for name, value in values]
        if "challenger" in event.args:
            told.insert(0, f"game of {event.args['challenger']}")
        lines.append(f"block {event.block:>6}  {event.name:<14}" + ", ".join(told))
    return lines


def outcome(game: Game) -> str:
    """How a game stands, in a sentence."""
    if not game.phase.over:
        side = "submitter" if game.phase.submitter_moves else "challenger"
        return f"game of {game.challenger}: at {game.phase.name}, the {side} is to move"
    place = "" if game.node is None else f" at node {game.node}"
    place += "" if game.element is None else f", element {game.element}"
    place += "" if game.step is None else f", step {game.step}"
    told = {Phase.WON: "won by the challenger", Phase.LOST: "won by the submitter", Phase.LEFT: "left, bond returned"}
    return f"game of {game.challenger}: {told[game.phase]}{place}"
