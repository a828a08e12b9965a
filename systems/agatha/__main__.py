"""Agatha as a tool: compile a network, run it, claim its output on a chain, defend the claim or dispute it.

A dispute between two processes, over a node (start one by `anvil --port 8545`):

  python -m systems.agatha compile digits --out digits.graph
  python -m systems.agatha run digits.graph --seed 5 --out right.trace
  python -m systems.agatha run digits.graph --seed 5 --out wrong.trace --fault 2:77

  # the submitter, with a machine that got element 77 of node 2 wrong; --deploy puts the contracts on the chain
  python -m systems.agatha submit digits.graph wrong.trace claim.json --account 1 --deploy
  python -m systems.agatha watch digits.graph wrong.trace claim.json --account 1

  # the challenger, in another terminal, with its own trace; it needs the network, the input and claim.json
  python -m systems.agatha challenge digits.graph right.trace claim.json --account 2
  python -m systems.agatha replay digits.graph claim.json

A claim about a network that cannot be run or checked (a node that contradicts itself, weights that nobody has) is
fought by making its submitter prove a node: `doubt claim.json --node 3 --account 2`.

Where a game stands is on the chain and nowhere else: a command that was stopped is started again (a challenger goes
on by `watch`). $AGATHA_MODELS names a folder of compiled networks: `compile` without --out keeps them there and does
not compile twice, and the other commands look there for a graph that is no path. Exit status: 0 as hoped for, 1 when a
claim or a game was lost, 2 when something was refused.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from systems import evm
from systems.agatha import court as courts
from systems.agatha import game, players, records, watch
from systems.agatha.bond import min_bond
from systems.agatha.commit import Model, Trace
from systems.agatha.descriptor import AgathaError, ProofError, Reverted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from systems.agatha.graph import Graph

NETWORKS = ("digits", "mobilenet", "resnet50", "vgg16")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = _parser().parse_args(arguments)
    try:
        return int(given.act(given))
    except (AgathaError, evm.ChainError, ValueError, OSError) as error:
        print(f"agatha {given.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"agatha {given.command}: stopped; start it again to go on", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m systems.agatha", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    compiling = commands.add_parser("compile", help="a network to a graph file, whose root is the network's name")
    compiling.add_argument("network", choices=NETWORKS, help="digits takes seconds; the others are for 224 x 224")
    compiling.add_argument("--out", type=Path, help="the file to write (default: one in $AGATHA_MODELS)")
    compiling.add_argument("--profile", choices=("int8", "ieee32"), default="int8", help="arithmetic (default int8)")
    compiling.add_argument("--samples", type=int, default=32, help="images to calibrate int8 by (default 32)")
    compiling.set_defaults(act=_compile)

    running = commands.add_parser("run", help="run a graph on one image, and keep the output of every node")
    running.add_argument("graph", type=_graph_file, help="file that compile wrote")
    source = running.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", type=Path, help="a .npy file: (c, h, w) or (1, c, h, w) float32")
    source.add_argument("--seed", type=int, help="a random image, the same on every machine")
    running.add_argument("--out", type=Path, required=True, help="the trace to write (safetensors)")
    running.add_argument(
        "--backend", default="auto", help="auto, onednn, carrier, native, triton or reference (default auto)"
    )
    running.add_argument(
        "--fault", metavar="NODE:ELEMENT", help="for drills: get one element wrong, and go on from there in numpy"
    )
    running.set_defaults(act=_run)

    submitting = commands.add_parser("submit", help="claim a trace's output on a chain, with the bond")
    _add_parties(submitting, trace=True)
    submitting.add_argument("--court", help="address of the contract (or --deploy)")
    submitting.add_argument("--deploy", action="store_true", help="put new contracts on the chain")
    submitting.add_argument("--bond", type=int, help="with --deploy: wei (default: at least 0.1 ether)")
    submitting.add_argument("--window", type=int, default=86_400, help="with --deploy: seconds (default a day)")
    submitting.add_argument("--clock", type=int, default=3 * 86_400, help="with --deploy: seconds (default 3 days)")
    submitting.add_argument("--eager", action="store_true", help="name the trace's root too: allows fraud proofs")
    submitting.set_defaults(act=_submit)

    watching = commands.add_parser(
        "watch", help="the submitter's: answer challenges until the claim is decided; a challenger's: go on playing"
    )
    _add_parties(watching, trace=True)
    watching.add_argument("--poll", type=float, default=1.0, help="seconds between two looks (default 1)")
    watching.set_defaults(act=_watch)

    challenging = commands.add_parser(
        "challenge", help="dispute a claim whose output is another than this trace's, and play to the end"
    )
    _add_parties(challenging, trace=True)
    challenging.add_argument("--poll", type=float, default=1.0, help="seconds between two looks (default 1)")
    challenging.add_argument(
        "--anyway", action="store_true", help="challenge although the outputs agree (costs a bond)"
    )
    challenging.add_argument(
        "--theirs", type=Path, help="the submitter's trace: prove the fraud in two transactions, without a game"
    )
    challenging.set_defaults(act=_challenge)

    doubting = commands.add_parser(
        "doubt",
        help="dispute a claim without graph or trace: its submitter has to prove a node or loses",
    )
    _add_claim(doubting)
    doubting.add_argument("--node", type=int, required=True, help="the node that is impossible, or not to be had")
    doubting.add_argument("--element", type=int, default=0, help="where it is possible: an element of it (default 0)")
    doubting.add_argument("--step", type=int, default=0, help="and a step of that element's sum (default 0)")
    doubting.add_argument("--poll", type=float, default=1.0, help="seconds between two looks (default 1)")
    doubting.set_defaults(act=_doubt)

    replaying = commands.add_parser("replay", help="tell from the contract's events what became of a claim")
    _add_parties(replaying, trace=False)
    replaying.set_defaults(act=_replay)
    return parser


def _add_parties(parser: argparse.ArgumentParser, *, trace: bool) -> None:
    parser.add_argument("graph", type=_graph_file, help="file that compile wrote")
    if trace:
        parser.add_argument("trace", type=Path, help="file that run wrote")
    _add_claim(parser)


def _add_claim(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("claim", type=Path, help="file of the claim: submit writes it, the others read it")
    parser.add_argument("--url", default="http://127.0.0.1:8545", help="the node (default http://127.0.0.1:8545)")
    parser.add_argument("--account", default="0", help="number or address of the node's account (default 0)")
    parser.add_argument("--key", type=Path, help="file with a private key to sign with, in place of --account")


# --- off the chain -------------------------------------------------------------------------------------------


def _models() -> Path | None:
    """The folder of compiled networks, if there is one."""
    folder = os.environ.get("AGATHA_MODELS")
    return Path(folder) if folder else None


def _graph_file(name: str) -> Path:
    """A path, or what goes by that name in $AGATHA_MODELS."""
    path, folder = Path(name), _models()
    if not path.exists() and folder is not None:
        for kept in (folder / name, folder / f"{name}.graph"):
            if kept.is_file():
                return kept
    return path


def _compile(given: argparse.Namespace) -> int:
    import torch

    from systems.agatha import graph, models

    if given.samples < 1:
        raise ValueError(f"--samples is {given.samples}, expected at least 1; 32 or more calibrate well")
    out, folder = given.out, _models()
    if out is None:
        if folder is None:
            raise ValueError("give --out FILE, or set $AGATHA_MODELS to a folder for compiled networks")
        folder.mkdir(parents=True, exist_ok=True)
        out = folder / f"{given.network}-{given.profile}{f'-{given.samples}' if given.profile == 'int8' else ''}.graph"
        if out.is_file():
            kept = graph.load(out)  # checks its root
            print(f"{kept}\nroot {kept.root.hex()}")
            _note(f"{out} was there already")
            return 0
    shape = (1, 8, 8) if given.network == "digits" else (3, 224, 224)
    network: nn.Module = models.digits_cnn() if given.network == "digits" else models.MODELS[given.network]()
    images: Tensor = models.calibration(given.samples, shape)
    _note(f"compiling {given.network} ({given.profile}); the networks for 224 x 224 take minutes")
    exported = torch.export.export(network, (images[:1],))
    compiled = graph.compile(exported, given.profile, images if given.profile == "int8" else None)
    compiled.save(out)
    print(compiled)
    print(f"root {compiled.root.hex()}")
    return 0


def _run(given: argparse.Namespace) -> int:
    from systems.agatha import graph, xce
    from systems.agatha.descriptor import tensor_bytes

    compiled = graph.load(given.graph)
    codes = xce.encode(compiled, _image(given, compiled))
    known = xce.backends(compiled.profile)
    if given.backend not in ("auto", *known):
        raise ValueError(f"--backend is {given.backend!r}, expected auto or one of {', '.join(known)}")
    values = [value.numpy() for value in xce.trace(compiled, codes, given.backend)]
    right = Trace([tensor_bytes(value) for value in values])
    trace = right
    if given.fault is not None:
        trace = Trace([tensor_bytes(value) for value in _faulty(compiled, values, given.fault)])
        if trace.output_root == right.output_root:
            _note("the fault did not reach the output: there is nothing to dispute; take another place")
    records.save_trace(given.out, trace, compiled.commitment)
    print(f"digest {xce.digest(values[-1]).hex() if trace is right else 'of a faulty run'}")
    print(f"output root {trace.output_root.hex()}")
    return 0


def _image(given: argparse.Namespace, compiled: Graph) -> NDArray[np.float32]:
    """(1, c, h, w) float32."""
    import numpy as np

    from systems.agatha import models

    h, w, c = compiled.input_shape
    if given.image is None:
        return models.calibration(1, (c, h, w), given.seed).numpy()
    image = np.load(given.image, allow_pickle=False)
    if image.dtype != np.float32 or image.shape not in {(c, h, w), (1, c, h, w)}:
        raise ValueError(f"{given.image} is {image.dtype} {image.shape}, expected float32 ({c}, {h}, {w})")
    return image.reshape(1, c, h, w)


def _faulty(compiled: Graph, values: list[NDArray[np.generic]], place: str) -> list[NDArray[np.generic]]:
    """The outputs of a machine that got one element wrong: its last bit flipped, and what follows computed from it."""
    import numpy as np

    from systems.agatha import reference

    left, _, right = place.partition(":")
    if not (left.isdigit() and right.isdigit()):
        raise ValueError(f"--fault is {place!r}, expected NODE:ELEMENT, such as 2:77")
    node, element = int(left), int(right)
    if not 0 < node < len(values) or element >= values[node].size:
        sizes = f"node {node} has {values[node].size} elements" if 0 < node < len(values) else "that node is not there"
        raise ValueError(f"--fault {place}: {sizes}; nodes are 1 to {len(values) - 1}, elements start at 0")
    values = [np.array(value) for value in values]
    flat = values[node].reshape(-1).view(np.uint8)
    flat[element * values[node].itemsize] ^= 1
    wrong = {node}
    for i in range(node + 1, len(values)):
        if wrong & set(compiled.nodes[i].inputs):
            values[i] = reference.node_output(compiled, i, [values[j] for j in compiled.nodes[i].inputs])
            wrong.add(i)
    return values


# --- on the chain --------------------------------------------------------------------------------------------


def _submit(given: argparse.Namespace) -> int:
    if given.deploy == (given.court is not None):
        raise ValueError("give either --court ADDRESS, where the contract stands, or --deploy")
    model, trace = _load(given)
    chain, account = _chain(given)
    if given.deploy:
        bond = max(evm.ETHER // 10, min_bond(model, 10**9)) if given.bond is None else given.bond
        court = courts.deploy(chain, bond=bond, window=given.window, clock=given.clock, sender=account)
        _note(f"deployed at {court.contract.address}")
    else:
        court = _court(chain, given.court)
    submitter = players.Submitter(court, account, model, trace)
    claim = submitter.claim(eager=given.eager)
    # first the file, then the transaction: a claim on the chain that nobody can name could not be defended
    records.save_claim(given.claim, records.Filed(court.contract.address, claim))
    receipt = submitter.submit(claim)
    print(f"claim {claim.id.hex()} at {court.contract.address} ({receipt.gas} gas)")
    return 0


def _watch(given: argparse.Namespace) -> int:
    model, trace = _load(given)
    court, claim, account = _table(given)
    _same_job(given, claim, model, trace)
    if account.lower() == claim.submitter.lower():
        state = watch.defend(players.Submitter(court, account, model, trace), claim, poll=given.poll, say=_say)
        print(f"claim {claim.id.hex()}: {state.name.lower()}")
        return 0 if state is watch.State.FINAL else 1
    return _played(watch.contest(players.Challenger(court, account, model, trace), claim, poll=given.poll, say=_say))


def _challenge(given: argparse.Namespace) -> int:
    model, trace = _load(given)
    court, claim, account = _table(given)
    _same_job(given, claim, model, trace)
    challenger = players.Challenger(court, account, model, trace)
    if given.theirs is not None:
        announced, proved = challenger.fraud_proof(claim, records.load_trace(given.theirs, model))
        print(f"claim {claim.id.hex()}: void ({announced.gas + proved.gas} gas)")
        return 0
    if not challenger.disagrees(claim) and not given.anyway:
        print("the claimed output is this trace's: nothing to dispute")
        return 0
    receipt = challenger.challenge(claim)
    _say(f"challenge: {claim.id.hex()} ({receipt.gas} gas)")
    return _played(watch.contest(challenger, claim, poll=given.poll, say=_say))


def _doubt(given: argparse.Namespace) -> int:
    court, claim, account = _table(given)
    if min(given.node, given.element, given.step) < 0 or given.node >= claim.job.nodes:
        raise ValueError(
            f"--node {given.node} --element {given.element} --step {given.step}: the claim is about "
            f"{claim.job.nodes} nodes, numbers start at 0"
        )
    doubter = players.Doubter(court, account, given.node, given.element, given.step)
    receipt = doubter.challenge(claim)
    _say(f"challenge: {claim.id.hex()} ({receipt.gas} gas)")
    return _played(watch.contest(doubter, claim, poll=given.poll, say=_say))


def _replay(given: argparse.Namespace) -> int:
    from systems.agatha import graph

    model = graph.load(given.graph).commitment
    court, claim, _ = _table(given)
    if model.root != claim.job.model_root:
        raise ProofError(f"{given.claim} is about model {claim.job.model_root.hex()}, {given.graph} is another")
    for line in watch.story(court, claim):
        print(line)
    print(f"claim {claim.id.hex()}: {watch.state_of(court, claim)[0].name.lower()}")
    for found in game.replay(court.events(), claim).values():
        print(watch.outcome(found))
    return 0


def _load(given: argparse.Namespace) -> tuple[Model, Trace]:
    from systems.agatha import graph

    model = graph.load(given.graph).commitment
    return model, records.load_trace(given.trace, model)


def _chain(given: argparse.Namespace) -> tuple[evm.Chain, str]:
    """The node, and the account to act for."""
    keys = [given.key.read_text(encoding="ascii").strip()] if given.key else []
    chain = evm.RpcChain(given.url, keys)
    if keys:
        return chain, chain.accounts[0]
    for number, account in enumerate(chain.accounts):
        if given.account in {str(number), account} or given.account.lower() == account.lower():
            return chain, account
    raise ValueError(
        f"--account is {given.account!r}, the node at {given.url} has {len(chain.accounts)} unlocked accounts; "
        "give the number or address of one of them, or --key"
    )


def _court(chain: evm.Chain, address: str) -> courts.Court:
    from eth_abi.exceptions import DecodingError

    court = courts.court_at(chain, address)
    try:
        _ = court.bond
    except (DecodingError, Reverted, evm.Reverted) as error:
        raise ProofError(f"no court stands at {address} on this chain: is this the node of the claim?") from error
    return court


def _table(given: argparse.Namespace) -> tuple[courts.Court, game.Claim, str]:
    filed = records.load_claim(given.claim)
    chain, account = _chain(given)
    return _court(chain, filed.court), filed.claim, account


def _same_job(given: argparse.Namespace, claim: game.Claim, model: Model, trace: Trace) -> None:
    if claim.job.model_root != model.root:
        raise ProofError(f"{given.claim} is about model {claim.job.model_root.hex()}, {given.graph} is another")
    if claim.job.input_root != trace.tree(0).root:
        raise ProofError(f"{given.trace} is a run on another input than that of {given.claim}; run the network on it")


def _played(found: game.Game) -> int:
    print(watch.outcome(found))
    return 1 if found.phase is game.Phase.LOST else 0


def _say(line: str) -> None:
    print(line, flush=True)


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
