"""The chains: one interface, three back ends, the same outcome."""

import pytest

from systems import evm
from systems.evm import ChainError, CompileFailed, NoNode, Reverted, RevmChain, RpcChain, compile_contract

SOURCE = """
# pragma version ~=0.4.3
struct Pair:
    a: uint256
    b: bytes32
event Stored:
    who: indexed(address)
    number: uint256
    rest: DynArray[bytes32, 4]
number: public(uint256)
@deploy
def __init__(start: uint256):
    self.number = start
@external
@payable
def store(number: uint256, pair: Pair):
    assert number < 10, "too big"
    self.number = number
    log Stored(who=msg.sender, number=number, rest=[pair.b])
@external
@view
def both() -> (uint256, uint256):
    return self.number, block.timestamp
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("MAAT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "store.vy"
    path.write_text(SOURCE)
    return path


@pytest.fixture(params=[RevmChain, evm.TesterChain])
def any_chain(request):
    return request.param()


def test_a_contract_is_deployed_called_and_heard(any_chain, source):
    store = any_chain.deploy(compile_contract(source), 3)
    alice = any_chain.accounts[1]
    receipt = any_chain.send(store, "store", 7, (1, b"\x05" * 32), sender=alice, value=11)
    assert any_chain.call(store, "number") == 7
    assert any_chain.balance(store.address) == 11
    (event,) = receipt.events
    assert (event.name, event.args["number"], event.args["rest"]) == ("Stored", 7, (b"\x05" * 32,))
    assert event.args["who"].lower() == alice.lower()
    assert receipt.gas > 21_000
    assert any_chain.events(store) == receipt.events
    assert any_chain.events(store, receipt.block + 1) == ()


def test_a_refused_call_says_why_and_changes_nothing(any_chain, source):
    store = any_chain.deploy(compile_contract(source), 3)
    with pytest.raises(Reverted, match=r"^too big$"):
        any_chain.send(store, "store", 10, (1, bytes(32)), value=5)
    with pytest.raises(Reverted):
        any_chain.send_bytes(store, b"\x01\x02\x03\x04")
    assert (any_chain.call(store, "number"), any_chain.balance(store.address)) == (3, 0)
    with pytest.raises(ChainError, match="no function 'stroe'; the contract has both, number, store"):
        any_chain.send(store, "stroe", 1)


def test_time_passes_and_snapshots_bring_back(any_chain, source):
    store = any_chain.deploy(compile_contract(source), 3)
    before, point = any_chain.now(), any_chain.snapshot()
    any_chain.advance(1000)
    any_chain.send(store, "store", 4, (1, bytes(32)))
    assert any_chain.now() >= before + 1000
    any_chain.revert(point)
    assert any_chain.call(store, "number") == 3
    assert any_chain.now() == before
    assert any_chain.events(store) == ()


def test_gas_has_the_calldata_floor(source):
    """EIP-7623: 40 gas a byte that is not zero, where that is more than what the call does."""
    chain = evm.TesterChain()
    store = chain.deploy(compile_contract(source), 3)
    data = chain.encode(store, "store", 1, (1, bytes(32))) + b"\x01" * 5000
    assert chain.send_bytes(store, data).gas >= 21_000 + 40 * 5000


def test_a_damaged_cache_entry_is_compiled_again(source, tmp_path):
    first = compile_contract(source)
    (cached,) = (tmp_path / "cache" / "contracts").glob("*.json")
    cached.write_text("{")
    assert compile_contract(source) == first
    source.write_text(SOURCE.replace("< 10", "< 11"))
    assert compile_contract(source).bytecode != first.bytecode


def test_what_does_not_compile_and_who_does_not_answer(source):
    source.write_text("nonsense")
    with pytest.raises(CompileFailed, match=r"store\.vy"):
        compile_contract(source)
    with pytest.raises(NoNode, match=r"no node answers at http://127\.0\.0\.1:9"):
        RpcChain("http://127.0.0.1:9", patience=0.1)
