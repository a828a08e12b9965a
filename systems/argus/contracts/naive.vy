# pragma version 0.4.3
"""
@title The same campaign as one would first write it: the contender that `argus.vy` is measured against
@notice Every token of every version and period is stored, a report is found by searching them, rewards are counted anew
        from the list of reports at each claim, and a choice is opened by curve arithmetic on the precompiles of BN254.
@dev Half of the rules only: what a report costs, and what clearing one's name costs. It is no campaign to take part in.
"""

PERIOD: immutable(uint256)
PERIODS: immutable(uint256)
EARLINESS: immutable(uint256)
DEPOSIT: immutable(uint256)
VERSIONS: immutable(uint256)
START: immutable(uint256)
OWNER: immutable(address)

MOST_VERSIONS: constant(uint256) = 2**20
MOST_REPORTS: constant(uint256) = 1024
UNIT: constant(uint256) = 2**120


struct Licence:
    licensee: address
    bounty: uint256
    penalty: uint256
    active: bool


struct Report:
    informer: address
    licence: bytes32
    version: uint256
    period: uint256
    paid: bool


licences: HashMap[bytes32, Licence]
hashes: HashMap[bytes32, HashMap[uint256, HashMap[uint256, bytes32]]]  # licence, period, version: of the token
committers: HashMap[bytes32, address]
periods: HashMap[bytes32, uint256]
deposits: HashMap[bytes32, uint256]
reports: HashMap[bytes32, DynArray[Report, MOST_REPORTS]]


@deploy
def __init__(period: uint256, periods: uint256, earliness: uint256, deposit: uint256, versions: uint256):
    PERIOD = period
    PERIODS = periods
    EARLINESS = earliness
    DEPOSIT = deposit
    VERSIONS = versions
    START = block.timestamp
    OWNER = msg.sender


@external
@payable
def request(licence: bytes32, bounty: uint256, penalty: uint256):
    """@notice Ask for a licence."""
    assert self.licences[licence].licensee == empty(address), "the name is taken"
    assert msg.value == 2 * penalty, "the collateral is twice the penalty"
    self.licences[licence] = Licence(licensee=msg.sender, bounty=bounty, penalty=penalty, active=True)


@external
def store(licence: bytes32, period: uint256, first: uint256, hashes: DynArray[bytes32, 256]):
    """@notice The owner stores the hashes of tokens of some versions for one period."""
    assert msg.sender == OWNER, "not the owner"
    place: uint256 = first
    for value: bytes32 in hashes:
        self.hashes[licence][period][place] = value
        place += 1


@external
@payable
def commit(commitment: bytes32):
    """@notice Bind oneself to a report."""
    assert msg.value == DEPOSIT, "not the deposit"
    assert self.committers[commitment] == empty(address), "already committed"
    self.committers[commitment] = msg.sender
    self.periods[commitment] = (block.timestamp - START) // PERIOD + 1
    self.deposits[commitment] = msg.value


@external
def reveal(licence: bytes32, token: bytes32, salt: bytes32):
    """@notice Show a token; it is looked for among those of its period."""
    commitment: bytes32 = keccak256(abi_encode(licence, token, salt, msg.sender))
    assert self.committers[commitment] == msg.sender, "not committed"
    period: uint256 = self.periods[commitment]
    assert (block.timestamp - START) // PERIOD == period, "reveal in the period after the commitment"
    wanted: bytes32 = keccak256(token)
    version: uint256 = VERSIONS
    for v: uint256 in range(VERSIONS, bound=MOST_VERSIONS):
        if self.hashes[licence][period][v] == wanted:
            version = v
            break
    assert version < VERSIONS, "not a version of this licence"
    self.reports[licence].append(
        Report(informer=msg.sender, licence=licence, version=version, period=period, paid=False)
    )


@external
def claim(licence: bytes32, index: uint256):
    """@notice Take the reward of a report, counting all others."""
    mine: Report = self.reports[licence][index]
    assert mine.informer == msg.sender, "not the informer"
    assert not mine.paid, "claimed"
    share: uint256 = UNIT
    own: uint256 = 0
    for other: Report in self.reports[licence]:
        if other.period < mine.period:
            share = share * EARLINESS // 256
        elif other.period > mine.period:
            share = share * (256 - EARLINESS) // 256
        else:
            own += 1
    self.reports[licence][index].paid = True
    raw_call(msg.sender, b"", value=DEPOSIT + (self.licences[licence].bounty * share >> (119 + own)))


@external
@view
def opens(a: uint256[2], c: uint256[2], digit: uint256, blinding: uint256) -> bool:
    """@notice Whether C = digit A + blinding G on BN254, by its precompiles."""
    g: uint256[2] = [1, 2]
    sum_: uint256[2] = ecadd(ecmul(a, digit), ecmul(g, blinding))
    return sum_[0] == c[0] and sum_[1] == c[1]
