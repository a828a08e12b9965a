"""Agatha: neural networks run off the chain, disputed on it (arXiv 2105.04919).

    from systems.agatha import Challenger, Submitter, Trace, deploy, play
    from systems.evm import TesterChain

    court = deploy(TesterChain())
    submitter, challenger = Submitter(court, alice, model, Trace(wrong)), Challenger(court, bob, model, Trace(right))
    claim = submitter.claim()
    submitter.submit(claim), challenger.challenge(claim)
    play(submitter, challenger, claim).winner

`descriptor` fixes what a node means and how its bytes lie, `commit` hashes them, `players` dispute them.
"""

from systems.agatha.bond import min_bond, worst_gas
from systems.agatha.commit import Job, Model, Trace, Tree, UncheckedModel
from systems.agatha.court import Court, court_at, deploy
from systems.agatha.descriptor import (
    AgathaError,
    Descriptor,
    DescriptorError,
    ExactnessError,
    InconsistentBackend,
    NotYourMove,
    Op,
    Profile,
    ProofError,
    Reverted,
    UnsupportedOperator,
)
from systems.agatha.game import Claim, Game, Phase, replay
from systems.agatha.players import Challenger, Doubter, Submitter, Verdict, localise, play

__all__ = [
    "AgathaError",
    "Challenger",
    "Claim",
    "Court",
    "Descriptor",
    "DescriptorError",
    "Doubter",
    "ExactnessError",
    "Game",
    "InconsistentBackend",
    "Job",
    "Model",
    "NotYourMove",
    "Op",
    "Phase",
    "Profile",
    "ProofError",
    "Reverted",
    "Submitter",
    "Trace",
    "Tree",
    "UncheckedModel",
    "UnsupportedOperator",
    "Verdict",
    "court_at",
    "deploy",
    "localise",
    "min_bond",
    "play",
    "replay",
    "worst_gas",
]
