"""Compile, deploy and call contracts: an embedded chain by default, any JSON-RPC node by URL.

    chain = TesterChain()                              # eth-tester and py-evm, in this process
    game = chain.deploy(compile_contract(path), bond)  # from chain.accounts[0]
    receipt = chain.send(game, "challenge", claim, sender=bob, value=bond)
    receipt.gas, receipt.events[0].args["challenger"]

Three back ends, one interface (`Chain`):

- `RevmChain`: pyrevm, in process, thousands of transactions a second. For property tests. **Its gas figures are not
  Ethereum's**: it does not charge the calldata floor of EIP-7623.
- `TesterChain`: eth-tester through web3. The default; gas as Prague charges it.
- `RpcChain(url)`: a node, by its unlocked accounts or by private keys. Time travel and snapshots where the node has
  them (anvil, hardhat).

    ChainError
    ├── CompileFailed    the compiler rejected a contract
    ├── Reverted         a call was refused; `.reason` is the contract's own
    └── NoNode           nothing answers at the URL, or it lacks what was asked of it
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "Chain",
    "ChainError",
    "CompileFailed",
    "Compiled",
    "Contract",
    "Event",
    "NoNode",
    "NotTaken",
    "Receipt",
    "Reverted",
    "RevmChain",
    "RpcChain",
    "TesterChain",
    "compile_contract",
]

EVM_VERSION = "prague"
GAS_LIMIT = 16_000_000
"""What a transaction may use: below the cap of 2^24 a transaction that Osaka brings (EIP-7825)."""
ETHER = 10**18


class ChainError(Exception):
    """Base of the errors of this module."""


class CompileFailed(ChainError):
    """The compiler rejected a contract."""


class Reverted(ChainError):
    """A call was refused, without any effect. `reason` is what the contract said, empty if nothing."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason or "reverted without a reason")
        self.reason = reason


class NotTaken(ChainError):
    """A node refused a transaction before running it: no funds, a wrong nonce, a key that is not its own."""


class NoNode(ChainError):
    """Nothing answers at the URL, or the node lacks what was asked of it."""


# --- contracts -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compiled:
    """A contract as compiled: its interface and its creation code."""

    name: str
    abi: tuple[Mapping[str, Any], ...]
    bytecode: bytes


@dataclass(frozen=True)
class Contract:
    """A contract at an address of some chain."""

    address: str
    compiled: Compiled


@dataclass(frozen=True)
class Event:
    """One event: its name, its arguments by name, and the block that holds it."""

    name: str
    args: Mapping[str, Any]
    address: str
    block: int


@dataclass(frozen=True)
class Receipt:
    """What a transaction did. `gas` used, `fee` in wei, `time` of its block in seconds since 1970."""

    gas: int
    fee: int
    events: tuple[Event, ...]
    block: int
    time: int


def compile_contract(path: Path | str, optimize: str = "gas") -> Compiled:
    """Compile a Vyper file, or take it from the cache. `optimize`: `gas`, `codesize` or `none`.

    Modules beside the file can be imported by it. The cache (`$MAAT_CACHE/contracts`, or the user's cache folder) is
    keyed by the sources of the folder, the compiler's version and the settings. Raises CompileFailed.
    """
    path = Path(path).resolve()
    digest = hashlib.sha256(f"2 {importlib.metadata.version('vyper')} {EVM_VERSION} {optimize} {path.name}".encode())
    for source in sorted(path.parent.glob("*.vy*")):
        digest.update(f"\n{source.name} {source.stat().st_size}\n".encode() + source.read_bytes())
    cached = _cache_folder() / f"{path.stem}-{digest.hexdigest()[:32]}.json"
    try:
        record = json.loads(cached.read_text(encoding="utf-8"))
        return Compiled(record["name"], tuple(record["abi"]), bytes.fromhex(record["bytecode"]))
    except (OSError, ValueError, KeyError, TypeError):  # absent or damaged: compile again
        compiled = _compile(path, optimize)
    _write(cached, json.dumps({"name": compiled.name, "abi": compiled.abi, "bytecode": compiled.bytecode.hex()}))
    return compiled


def _cache_folder() -> Path:
    chosen = os.environ.get("MAAT_CACHE")
    return Path(chosen or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maat") / "contracts"


def _compile(path: Path, optimize: str) -> Compiled:
    from vyper import compile_from_file_input
    from vyper.compiler.input_bundle import FilesystemInputBundle
    from vyper.compiler.settings import OptimizationLevel, Settings
    from vyper.exceptions import VyperException

    bundle = FilesystemInputBundle([path.parent])
    try:
        built = compile_from_file_input(
            bundle.load_file(path.name),
            input_bundle=bundle,
            settings=Settings(optimize=OptimizationLevel.from_string(optimize), evm_version=EVM_VERSION),
            output_formats=["abi", "bytecode"],
        )
    except VyperException as error:
        raise CompileFailed(f"{path}: {error}") from error
    abi = (*built["abi"], *_custom_errors(path))
    return Compiled(path.stem, abi, bytes.fromhex(built["bytecode"].removeprefix("0x")))


def _custom_errors(path: Path) -> list[dict[str, Any]]:
    """The custom errors of a contract, which its compiler leaves out of the interface: `method_id("NotTheOwner()")`."""
    names = re.findall(r'method_id\(\s*"([A-Z]\w*)\(\)"', path.read_text(encoding="utf-8"))
    return [{"type": "error", "name": name, "inputs": []} for name in sorted(set(names))]


def _write(path: Path, text: str) -> None:
    """Write under a temporary name and rename; a cache that cannot be written is no error."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        temporary = None
    except OSError:
        return
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


# --- encoding ------------------------------------------------------------------------------------------------


def _keccak(data: bytes) -> bytes:
    import sha3

    return sha3.keccak_256(data).digest()


def _type_of(entry: Mapping[str, Any]) -> str:
    """The canonical ABI type of an argument: structs become tuples."""
    kind: str = entry["type"]
    if kind.startswith("tuple"):
        return f"({','.join(_type_of(part) for part in entry['components'])}){kind[5:]}"
    return kind


class _Interface:
    """The encoders of one contract, looked up once: a game of a thousand calls is no place to parse an ABI."""

    def __init__(self, compiled: Compiled) -> None:
        self.functions: dict[str, tuple[bytes, list[str], list[str]]] = {}
        self.events: dict[bytes, tuple[str, list[tuple[str, str, bool]]]] = {}
        self.constructor: list[str] = []
        self.errors: dict[bytes, str] = {}
        for entry in compiled.abi:
            types = [_type_of(part) for part in entry.get("inputs", ())]
            signature = f"{entry.get('name', '')}({','.join(types)})".encode()
            if entry["type"] == "constructor":
                self.constructor = types
            elif entry["type"] == "function":
                outputs = [_type_of(part) for part in entry.get("outputs", ())]
                self.functions[entry["name"]] = (_keccak(signature)[:4], types, outputs)
            elif entry["type"] == "event":
                parts = [
                    (part["name"], kind, part["indexed"]) for part, kind in zip(entry["inputs"], types, strict=True)
                ]
                self.events[_keccak(signature)] = (entry["name"], parts)
            elif entry["type"] == "error":
                self.errors[_keccak(signature)[:4]] = _spelt(entry["name"])

    def encode(self, function: str, args: Sequence[Any]) -> bytes:
        from eth_abi import encode

        if function not in self.functions:
            raise ChainError(f"no function {function!r}; the contract has {', '.join(sorted(self.functions))}")
        selector, types, _ = self.functions[function]
        return selector + encode(types, args)

    def decode_event(self, topics: Sequence[bytes], data: bytes, address: str, block: int) -> Event | None:
        from eth_abi import decode

        if not topics or topics[0] not in self.events:
            return None
        name, parts = self.events[topics[0]]
        indexed, plain = iter(topics[1:]), iter(decode([kind for _, kind, inside in parts if not inside], data))
        args = {part: decode([kind], next(indexed))[0] if inside else next(plain) for part, kind, inside in parts}
        return Event(name, args, address, block)


def _spelt(name: str) -> str:
    """The words of a custom error: NotTheOwner is `not the owner`."""
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]*|[0-9]+", name)).lower()


def _reason(output: bytes, errors: Mapping[bytes, str]) -> str:
    """The reason of a revert: the argument of Error(string), the words of a custom error, or nothing."""
    from eth_abi import decode
    from eth_abi.exceptions import DecodingError

    if output[:4] != bytes.fromhex("08c379a0"):
        return errors.get(output[:4], "")
    try:
        return str(decode(["string"], output[4:])[0])
    except DecodingError:
        return ""


# --- chains --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Log:
    address: str
    topics: tuple[bytes, ...]
    data: bytes
    block: int


class Chain(ABC):
    """What all back ends offer. Addresses are `0x` strings, amounts wei, times seconds since 1970."""

    accounts: tuple[str, ...]

    def __init__(self) -> None:
        self._errors: dict[bytes, str] = {}  # of all contracts that were used here
        self._interfaces: dict[int, tuple[Compiled, _Interface]] = {}

    # what a back end brings
    @abstractmethod
    def _create(self, code: bytes, sender: str, value: int) -> str: ...
    @abstractmethod
    def _transact(self, to: str, data: bytes, sender: str, value: int) -> tuple[int, int, int, int, list[_Log]]:
        """Gas, fee, block, time and logs; raises Reverted."""

    @abstractmethod
    def _read(self, to: str, data: bytes, sender: str) -> bytes: ...
    @abstractmethod
    def _logs(self, address: str, since: int) -> list[_Log]: ...
    @abstractmethod
    def balance(self, address: str) -> int:
        """Wei of an account or contract."""

    @abstractmethod
    def block(self) -> int:
        """The number of the latest block."""

    @abstractmethod
    def now(self) -> int:
        """The time of the latest block."""

    @abstractmethod
    def time_of(self, block: int) -> int:
        """When a block was mined, in seconds since 1970."""

    @abstractmethod
    def advance(self, seconds: int) -> None:
        """Let time pass."""

    @abstractmethod
    def snapshot(self) -> Any:
        """A point to come back to by `revert`."""

    @abstractmethod
    def revert(self, point: Any) -> None:
        """Undo all that happened since the snapshot; it can be used once."""

    def _interface(self, compiled: Compiled) -> _Interface:
        key = id(compiled)
        if key not in self._interfaces:
            self._interfaces[key] = (compiled, _Interface(compiled))  # kept, so that no other object gets its id
            self._errors |= self._interfaces[key][1].errors
        return self._interfaces[key][1]

    def deploy(self, compiled: Compiled, *args: Any, sender: str | None = None, value: int = 0) -> Contract:
        """Create a contract with its constructor's arguments. Raises Reverted."""
        from eth_abi import encode

        code = compiled.bytecode + encode(self._interface(compiled).constructor, args)
        return Contract(self._create(code, sender or self.accounts[0], value), compiled)

    def send(self, contract: Contract, function: str, *args: Any, sender: str | None = None, value: int = 0) -> Receipt:
        """A transaction, mined at once or waited for. Raises Reverted with the contract's reason."""
        return self.send_bytes(contract, self._interface(contract.compiled).encode(function, args), sender, value)

    def encode(self, contract: Contract, function: str, *args: Any) -> bytes:
        """The calldata of a call."""
        return self._interface(contract.compiled).encode(function, args)

    def send_bytes(self, contract: Contract, data: bytes, sender: str | None = None, value: int = 0) -> Receipt:
        """A transaction with calldata as given, well-formed or not."""
        gas, fee, block, seconds, logs = self._transact(contract.address, data, sender or self.accounts[0], value)
        return Receipt(gas, fee, self._decode(contract, logs), block, seconds)

    def call(self, contract: Contract, function: str, *args: Any, sender: str | None = None) -> Any:
        """The value that a function returns, without a transaction. Raises Reverted."""
        from eth_abi import decode

        interface = self._interface(contract.compiled)
        output = self._read(contract.address, interface.encode(function, args), sender or self.accounts[0])
        values = decode(interface.functions[function][2], output)
        return values[0] if len(values) == 1 else values or None

    def events(self, contract: Contract, since: int = 0) -> tuple[Event, ...]:
        """The contract's events from block `since` on, oldest first."""
        return self._decode(contract, self._logs(contract.address, since))

    def _decode(self, contract: Contract, logs: Sequence[_Log]) -> tuple[Event, ...]:
        interface = self._interface(contract.compiled)
        ours = (log for log in logs if log.address.lower() == contract.address.lower())
        decoded = (interface.decode_event(log.topics, log.data, log.address, log.block) for log in ours)
        return tuple(event for event in decoded if event is not None)


class RevmChain(Chain):
    """pyrevm in this process: every transaction is a block, one second after the last."""

    def __init__(self, accounts: int = 10) -> None:
        import pyrevm

        super().__init__()
        self._pyrevm = pyrevm
        self._evm = pyrevm.EVM(spec_id=EVM_VERSION.upper())
        self.accounts = tuple(f"0x{0xA11CE000 + i:040x}" for i in range(accounts))
        for account in self.accounts:
            self._evm.set_balance(account, 1_000_000 * ETHER)
        self._number, self._time, self._history = 0, 1_700_000_000, list[_Log]()
        self._times: dict[int, int] = {}
        self._step(0)

    def _step(self, seconds: int) -> None:
        self._number, self._time = self._number + 1, self._time + seconds
        self._times[self._number] = self._time
        self._evm.set_block_env(
            self._pyrevm.BlockEnv(number=self._number, timestamp=self._time, gas_limit=GAS_LIMIT * 2)
        )

    def _create(self, code: bytes, sender: str, value: int) -> str:
        self._step(1)
        try:
            address = str(self._evm.deploy(sender, code, value=value))
        except RuntimeError as error:
            raise self._refused(error) from error
        self._logged()
        return address

    def _logged(self) -> tuple[int, list[_Log]]:
        """Gas and logs of the call that was just made; the logs are kept."""
        result = self._evm.result
        assert result is not None  # after a call there is one
        logs = [
            _Log(log.address, tuple(bytes(topic) for topic in log.data[0]), bytes(log.data[1]), self._number)
            for log in result.logs
        ]
        self._history += logs
        return result.gas_used, logs

    def _call(self, to: str, data: bytes, sender: str, value: int, static: bool) -> bytes:
        try:
            return bytes(
                self._evm.message_call(sender, to, calldata=data, value=value, gas=GAS_LIMIT, is_static=static)
            )
        except RuntimeError as error:
            raise self._refused(error) from error

    def _refused(self, error: RuntimeError) -> Reverted:
        """pyrevm tells of a revert only in words: `Revert { gas_used: 21163, output: 0x... }`."""
        output = re.search(r"output: 0x([0-9a-f]*)", str(error))
        return Reverted(_reason(bytes.fromhex(output[1]), self._errors) if output else str(error))

    def _transact(self, to: str, data: bytes, sender: str, value: int) -> tuple[int, int, int, int, list[_Log]]:
        self._step(1)
        self._call(to, data, sender, value, static=False)
        gas, logs = self._logged()
        return gas, 0, self._number, self._time, logs

    def _read(self, to: str, data: bytes, sender: str) -> bytes:
        return self._call(to, data, sender, 0, static=True)

    def _logs(self, address: str, since: int) -> list[_Log]:
        return [log for log in self._history if log.block >= since and log.address.lower() == address.lower()]

    def balance(self, address: str) -> int:
        return int(self._evm.get_balance(address))

    def block(self) -> int:
        return self._number

    def now(self) -> int:
        return self._time

    def time_of(self, block: int) -> int:
        return self._times[block]

    def advance(self, seconds: int) -> None:
        self._step(seconds)

    def snapshot(self) -> Any:
        return self._evm.snapshot(), self._number, self._time, len(self._history)

    def revert(self, point: Any) -> None:
        checkpoint, self._number, self._time, length = point
        self._evm.revert(checkpoint)
        del self._history[length:]
        self._step(0)


class _Web3Chain(Chain):
    """What TesterChain and RpcChain share: web3 over some provider."""

    def __init__(self, web3: Any) -> None:
        super().__init__()
        self._web3 = web3
        self.accounts = tuple(web3.eth.accounts)

    def _submit(self, transaction: dict[str, Any]) -> Any:
        """The receipt of a transaction. Raises Reverted, and NotTaken where the node does not even try."""
        from web3.exceptions import Web3RPCError

        try:
            hashed = self._web3.eth.send_transaction({**transaction, "gas": GAS_LIMIT})
        except Web3RPCError as error:
            words = (error.rpc_response or {}).get("error", {}).get("message", str(error))
            raise NotTaken(f"the node does not take a transaction of {transaction['from']}: {words}") from error
        receipt = self._web3.eth.wait_for_transaction_receipt(hashed, poll_latency=0.02)
        if receipt["status"] != 1:
            self._read_transaction(transaction)  # the same again, to hear the reason
            raise Reverted(f"out of gas or too late: used {receipt['gasUsed']} of {GAS_LIMIT}")
        return receipt

    def _create(self, code: bytes, sender: str, value: int) -> str:
        return str(self._submit({"from": sender, "data": code, "value": value})["contractAddress"])

    def _transact(self, to: str, data: bytes, sender: str, value: int) -> tuple[int, int, int, int, list[_Log]]:
        receipt = self._submit({"from": sender, "to": to, "data": data, "value": value})
        block = int(receipt["blockNumber"])
        seconds = int(self._web3.eth.get_block(block)["timestamp"])
        gas = int(receipt["gasUsed"])
        return gas, gas * int(receipt["effectiveGasPrice"]), block, seconds, [_log(log) for log in receipt["logs"]]

    def _read(self, to: str, data: bytes, sender: str) -> bytes:
        return self._read_transaction({"from": sender, "to": to, "data": data})

    def _read_transaction(self, transaction: dict[str, Any]) -> bytes:
        from eth_tester.exceptions import TransactionFailed
        from web3.exceptions import Web3Exception, Web3RPCError

        try:
            return bytes(self._web3.eth.call({**transaction, "gas": GAS_LIMIT}))
        except (TransactionFailed, Web3RPCError, Web3Exception) as error:
            raise Reverted(_said(error, self._errors)) from error

    def _logs(self, address: str, since: int) -> list[_Log]:
        return [_log(log) for log in self._web3.eth.get_logs({"address": address, "fromBlock": since})]

    def balance(self, address: str) -> int:
        return int(self._web3.eth.get_balance(self._web3.to_checksum_address(address)))

    def block(self) -> int:
        return int(self._web3.eth.block_number)

    def now(self) -> int:
        return int(self._web3.eth.get_block("latest")["timestamp"])

    def time_of(self, block: int) -> int:
        return int(self._web3.eth.get_block(block)["timestamp"])


def _log(log: Any) -> _Log:
    topics = tuple(bytes(topic) for topic in log["topics"])
    return _Log(str(log["address"]), topics, bytes(log["data"]), int(log["blockNumber"]))


def _said(error: Exception, errors: Mapping[bytes, str]) -> str:
    """The contract's own words out of what a node made of them."""
    data = getattr(error, "data", None)
    output = bytes.fromhex(data[2:]) if isinstance(data, str) and re.fullmatch("0x([0-9a-fA-F]{2})*", data) else b""
    if reason := _reason(output, errors):
        return reason
    words = str(error.args[0] if error.args else error)
    return re.sub(r"^\s*(execution reverted|vm exception[^:]*)[:\s]*", "", words, flags=re.IGNORECASE).strip()


class TesterChain(_Web3Chain):
    """eth-tester with py-evm in this process: every transaction is mined at once, gas as Prague charges it."""

    def __init__(self) -> None:
        os.environ.setdefault("ETH_HASH_BACKEND", "pysha3")  # ten times faster than eth-hash's default
        from eth_tester import EthereumTester, PyEVMBackend
        from web3 import Web3
        from web3.providers.eth_tester import EthereumTesterProvider

        self._tester = EthereumTester(PyEVMBackend())
        super().__init__(Web3(EthereumTesterProvider(self._tester)))

    def advance(self, seconds: int) -> None:
        self._tester.time_travel(self._tester.get_block_by_number("pending")["timestamp"] + seconds)
        self._tester.mine_block()

    def snapshot(self) -> Any:
        return self._tester.take_snapshot()

    def revert(self, point: Any) -> None:
        self._tester.revert_to_snapshot(point)


def _signer(web3: Any, key: str) -> Any:
    """The account of a private key. Raises ValueError, which does not show the key."""
    if not re.fullmatch(r"(0x)?[0-9a-fA-F]{64}", key):
        raise ValueError("a private key has 64 hexadecimal digits; the one given has other characters or length")
    return web3.eth.account.from_key(key)


class RpcChain(_Web3Chain):
    """A node by URL. `keys`: private keys to sign with here; without them, the node's unlocked accounts.

    Raises NoNode where nothing answers within `patience` seconds, ValueError for what is no private key.
    """

    def __init__(self, url: str, keys: Sequence[str] = (), *, patience: float = 5.0, timeout: float = 30.0) -> None:
        from web3 import HTTPProvider, Web3
        from web3.middleware import SignAndSendRawMiddlewareBuilder

        self.url = url
        web3 = Web3(HTTPProvider(url, request_kwargs={"timeout": timeout}))
        until = time.monotonic() + patience
        while not web3.is_connected():
            if time.monotonic() >= until:
                raise NoNode(f"no node answers at {url}; start one, for instance with `anvil --port 8545`")
            time.sleep(0.1)
        super().__init__(web3)
        if keys:
            signers = [_signer(web3, key) for key in keys]
            for signer in signers:
                web3.middleware_onion.inject(SignAndSendRawMiddlewareBuilder.build(signer), layer=0)
            self.accounts = tuple(signer.address for signer in signers)

    def _ask(self, method: str, *args: Any) -> Any:
        answer = self._web3.provider.make_request(method, list(args))
        if "error" in answer:
            raise NoNode(f"{self.url} refuses {method}: {answer['error'].get('message')}; time travel needs anvil")
        return answer["result"]

    def advance(self, seconds: int) -> None:
        self._ask("evm_increaseTime", seconds)
        self._ask("evm_mine")

    def snapshot(self) -> Any:
        return self._ask("evm_snapshot")

    def revert(self, point: Any) -> None:
        self._ask("evm_revert", point)
