# pragma version 0.4.3
"""
@title A campaign against piracy: licences with collateral, reports of leaked copies, rewards and penalties
@notice The owner gives every licensee a copy that only the licensee could open. Who finds that copy elsewhere reports
        its secret, in two steps that nobody can copy, and is paid by the licensee's collateral. There is no judge: all
        that is decided here follows from what was sent here, and the events repeat all of it.
@dev A licence is one word of state and one word that is the hash of its terms, which every call brings along; once it is
     settled the second word holds what claims need. A report is one word, from commitment to claim.
"""

# --- terms of the campaign -----------------------------------------------------------------------------------

START: immutable(uint256)  # the first second of period 1
PERIOD: immutable(uint256)  # seconds
PERIODS: immutable(uint256)  # T
END: immutable(uint256)  # of the last period, exclusive
EARLINESS: immutable(uint256)  # x in parts of 256
CONTEST: immutable(uint256)  # seconds in which an accused licensee may clear itself
PATIENCE: immutable(uint256)  # seconds for delivery, and again for acceptance
DEPOSIT: immutable(uint256)  # wei, with every commitment
SEGMENTS: immutable(uint256)  # m
VARIANTS: immutable(uint256)  # q
VERSIONS: immutable(uint256)  # q ** m
DEPTH: immutable(uint256)  # levels of the tree over the versions
DIVISOR: immutable(uint256)  # of the penalty: the owner's bond against framing
KEY_X: immutable(uint256)  # the owner's point A
KEY_ODD: immutable(bool)
OWNER: immutable(address)

ORDER: constant(uint256) = 115792089237316195423570985008687907852837564279074904382605163141518161494337
MOST_PERIODS: constant(uint256) = 32
MOST_DEPTH: constant(uint256) = 20
MOST_SEGMENTS: constant(uint256) = 10
BATCH: constant(uint256) = 64

# --- licences ------------------------------------------------------------------------------------------------

# a licence that is settled has no state word any more
REQUESTED: constant(uint256) = 1
DELIVERED: constant(uint256) = 2
ACTIVE: constant(uint256) = 3
ACCUSED: constant(uint256) = 4
CLEARED: constant(uint256) = 5

# the state word: counts, 5 bits a period | state << 160 | accused version << 168 | since << 192
COUNTS: constant(uint256) = 2**160 - 1
MOST_COUNTED: constant(uint256) = 31
SETTLED: constant(uint256) = 2**255  # in the second word: counts | bounty << 160 | SETTLED

# the word of a report: the time of its commitment; once revealed its period and one of these
PAID_BY_COUNT: constant(uint256) = 2**64
DEPOSIT_ONLY: constant(uint256) = 2**65

UNIT: constant(uint256) = 2**120  # 1 in fixed point


struct Terms:
    licensee: address
    bounty: uint256
    penalty: uint256  # of a first report; the collateral is twice that
    choice: bytes32  # hash of the addresses of the licensee's points
    root: bytes32  # of the tree over the anchors of all versions; zero until delivery


event Opened:
    owner: address
    start: uint256
    period: uint256
    periods: uint256
    earliness: uint256
    contest: uint256
    patience: uint256
    deposit: uint256
    segments: uint256
    variants: uint256
    key_x: uint256
    key_odd: bool


event Requested:
    licence: indexed(bytes32)
    licensee: address
    bounty: uint256
    penalty: uint256
    choice: bytes32


event Delivered:
    licence: indexed(bytes32)
    root: bytes32
    bundle: bytes32


event Accepted:
    licence: indexed(bytes32)


event Expired:
    licence: indexed(bytes32)
    delivered: bool


event Committed:
    commitment: bytes32


event Revealed:
    licence: indexed(bytes32)
    informer: address
    token: bytes32
    version: uint256
    period: uint256
    counted: bool


event Repudiated:
    licence: indexed(bytes32)
    segment: uint256
    digit: uint256
    blinding: uint256


event Exposed:
    licence: indexed(bytes32)
    first: uint256
    second: uint256


event Settled:
    licence: indexed(bytes32)
    reports: uint256
    to_owner: uint256
    to_licensee: uint256


event Claimed:
    licence: indexed(bytes32)
    informer: address
    token: bytes32
    amount: uint256
    owed: bool


event Withdrawn:
    account: indexed(address)
    amount: uint256


states: HashMap[bytes32, uint256]
terms: HashMap[bytes32, uint256]
reports: HashMap[bytes32, uint256]
owed: public(HashMap[address, uint256])


@deploy
def __init__(
    period: uint256,
    periods: uint256,
    earliness: uint256,
    contest: uint256,
    patience: uint256,
    deposit: uint256,
    segments: uint256,
    variants: uint256,
    key_x: uint256,
    key_odd: bool,
):
    if period == 0:
        self._refuse(convert(method_id("PeriodOfNoTime()", output_type=bytes4), uint32))
    if periods == 0 or periods > MOST_PERIODS:
        self._refuse(convert(method_id("Not1To32Periods()", output_type=bytes4), uint32))
    if earliness > 128:
        self._refuse(convert(method_id("EarlinessAboveOneHalf()", output_type=bytes4), uint32))
    if segments == 0 or segments > MOST_SEGMENTS:
        self._refuse(convert(method_id("Not1To10Segments()", output_type=bytes4), uint32))
    if variants < 2:
        self._refuse(convert(method_id("LessThan2Variants()", output_type=bytes4), uint32))
    if key_x == 0 or key_x >= ORDER:
        self._refuse(convert(method_id("NoKeyToCheckOpeningsWith()", output_type=bytes4), uint32))
    versions: uint256 = 1
    for i: uint256 in range(MOST_SEGMENTS):
        if i < segments:
            versions *= variants
    if versions <= 32 or versions > 2**MOST_DEPTH:
        self._refuse(convert(method_id("Not33To1048576Versions()", output_type=bytes4), uint32))
    depth: uint256 = 0
    for i: uint256 in range(MOST_DEPTH):
        if 2**depth < versions:
            depth += 1
    START = block.timestamp
    PERIOD = period
    PERIODS = periods
    END = block.timestamp + period * periods
    EARLINESS = earliness
    CONTEST = contest
    PATIENCE = patience
    DEPOSIT = deposit
    SEGMENTS = segments
    VARIANTS = variants
    VERSIONS = versions
    DEPTH = depth
    DIVISOR = min(16, (versions - 1) // 2)  # so that a framing owner loses: bond (N - 1) >= 2 penalty
    KEY_X = key_x
    KEY_ODD = key_odd
    OWNER = msg.sender
    log Opened(
        owner=msg.sender, start=block.timestamp, period=period, periods=periods, earliness=earliness, contest=contest,
        patience=patience, deposit=deposit, segments=segments, variants=variants, key_x=key_x, key_odd=key_odd
    )


# --- refusals ------------------------------------------------------------------------------------------------


@internal
@pure
def _refuse(error: uint32):
    """@notice Revert with a custom error without arguments: its name is the reason, at 4 bytes in place of 100."""
    raw_revert(slice(convert(convert(error, uint256) << 224, bytes32), 0, 4))


# --- words ---------------------------------------------------------------------------------------------------


@internal
@pure
def _hash(t: Terms) -> uint256:
    """@notice The second word of a licence that is not settled: its top bit is 0."""
    return convert(keccak256(abi_encode(t)), uint256) >> 1


@internal
@view
def _held(licence: bytes32, t: Terms) -> uint256:
    """@notice The state word of a licence that has these terms."""
    if self.terms[licence] != self._hash(t):
        self._refuse(convert(method_id("NotTheTermsOfThisLicenceOrSettled()", output_type=bytes4), uint32))
    return self.states[licence]


@internal
@pure
def _state(word: uint256) -> uint256:
    return (word >> 160) & 255


@internal
@view
def _word(counts: uint256, state: uint256, version: uint256) -> uint256:
    return counts | (state << 160) | (version << 168) | (block.timestamp << 192)


@internal
@view
def _bond(penalty: uint256) -> uint256:
    return (penalty + DIVISOR - 1) // DIVISOR


@internal
@view
def _period(time: uint256) -> uint256:
    """@notice The period of a time from START on, from 1 on."""
    return unsafe_add(unsafe_div(unsafe_sub(time, START), PERIOD), 1)


# --- licences ------------------------------------------------------------------------------------------------


@external
@payable
def request(licence: bytes32, choice: bytes32, bounty: uint256, penalty: uint256):
    """@notice Ask for a licence, with the collateral of twice the penalty. The choice hides which version it is."""
    if self.terms[licence] != 0:
        self._refuse(convert(method_id("TheNameIsTaken()", output_type=bytes4), uint32))
    if bounty > penalty:
        self._refuse(convert(method_id("BountyAboveThePenalty()", output_type=bytes4), uint32))
    if penalty == 0 or penalty >= 2**94:
        self._refuse(convert(method_id("NoPenaltyOrTooLarge()", output_type=bytes4), uint32))
    if msg.value != 2 * penalty:
        self._refuse(convert(method_id("TheCollateralIsNotTwiceThePenalty()", output_type=bytes4), uint32))
    if choice == empty(bytes32):
        self._refuse(convert(method_id("NoChoice()", output_type=bytes4), uint32))
    if block.timestamp >= END:
        self._refuse(convert(method_id("TheCampaignIsOver()", output_type=bytes4), uint32))
    self.terms[licence] = self._hash(
        Terms(licensee=msg.sender, bounty=bounty, penalty=penalty, choice=choice, root=empty(bytes32))
    )
    self.states[licence] = self._word(0, REQUESTED, 0)
    log Requested(licence=licence, licensee=msg.sender, bounty=bounty, penalty=penalty, choice=choice)


@external
@payable
def deliver(licence: bytes32, t: Terms, root: bytes32, bundle: bytes32):
    """@notice The owner commits to all versions, and puts up the bond that it loses for framing."""
    if msg.sender != OWNER:
        self._refuse(convert(method_id("NotTheOwner()", output_type=bytes4), uint32))
    word: uint256 = self._held(licence, t)
    if self._state(word) != REQUESTED:
        self._refuse(convert(method_id("NotRequested()", output_type=bytes4), uint32))
    if msg.value != self._bond(t.penalty):
        self._refuse(convert(method_id("NotTheBond()", output_type=bytes4), uint32))
    if root == empty(bytes32):
        self._refuse(convert(method_id("NoRoot()", output_type=bytes4), uint32))
    after: Terms = t
    after.root = root
    self.terms[licence] = self._hash(after)
    self.states[licence] = self._word(0, DELIVERED, 0)
    log Delivered(licence=licence, root=root, bundle=bundle)


@external
def accept(licence: bytes32, t: Terms):
    """@notice The licensee found its version in the bundle and in the tree."""
    if msg.sender != t.licensee:
        self._refuse(convert(method_id("NotTheLicensee()", output_type=bytes4), uint32))
    if self._state(self._held(licence, t)) != DELIVERED:
        self._refuse(convert(method_id("NotDelivered()", output_type=bytes4), uint32))
    self.states[licence] = self._word(0, ACTIVE, 0)
    log Accepted(licence=licence)


@external
def refund(licence: bytes32, t: Terms):
    """@notice End a licence whose delivery or acceptance is overdue: everyone gets back what it put in."""
    word: uint256 = self._held(licence, t)
    state: uint256 = self._state(word)
    if state != REQUESTED and state != DELIVERED:
        self._refuse(convert(method_id("NothingToRefund()", output_type=bytes4), uint32))
    if block.timestamp <= (word >> 192) + PATIENCE:
        self._refuse(convert(method_id("NotOverdue()", output_type=bytes4), uint32))
    if state == DELIVERED:
        self.owed[OWNER] += self._bond(t.penalty)
    self.owed[t.licensee] += 2 * t.penalty
    self._close(licence, 0, 0)
    log Expired(licence=licence, delivered=state == DELIVERED)


@internal
def _close(licence: bytes32, counts: uint256, bounty: uint256):
    self.states[licence] = 0
    self.terms[licence] = SETTLED | (bounty << 160) | counts


# --- reports -------------------------------------------------------------------------------------------------


@external
@payable
def commit(commitment: bytes32):
    """@notice Bind oneself to a report of this period: the hash of licence, token and sender."""
    if msg.value != DEPOSIT:
        self._refuse(convert(method_id("NotTheDeposit()", output_type=bytes4), uint32))
    if block.timestamp >= END:
        self._refuse(convert(method_id("TheCampaignIsOver()", output_type=bytes4), uint32))
    if self.reports[commitment] != 0:
        self._refuse(convert(method_id("AlreadyCommitted()", output_type=bytes4), uint32))
    self.reports[commitment] = block.timestamp
    log Committed(commitment=commitment)


@external
def reveal(licence: bytes32, t: Terms, token: bytes32, version: uint256, proof: DynArray[bytes32, MOST_DEPTH]):
    """
    @notice Show the token that was committed to in the period before. A version that is not the one first revealed, or
            one whose licensee was cleared, brings back the deposit and no more.
    """
    commitment: bytes32 = keccak256(abi_encode(licence, token, msg.sender))
    committed: uint256 = self.reports[commitment]
    if committed == 0:
        self._refuse(convert(method_id("NotCommitted()", output_type=bytes4), uint32))
    if committed >= PAID_BY_COUNT:
        self._refuse(convert(method_id("AlreadyRevealed()", output_type=bytes4), uint32))
    period: uint256 = self._period(committed)
    if self._period(block.timestamp) != period + 1:
        self._refuse(convert(method_id("NotThePeriodAfterTheCommitment()", output_type=bytes4), uint32))
    word: uint256 = self._held(licence, t)
    state: uint256 = self._state(word)
    if state < ACTIVE:
        self._refuse(convert(method_id("TheLicenceIsNotActive()", output_type=bytes4), uint32))
    if version >= VERSIONS:
        self._refuse(convert(method_id("NoSuchVersion()", output_type=bytes4), uint32))
    node: bytes32 = token
    for i: uint256 in range(period, bound=MOST_PERIODS):
        node = keccak256(node)
    if self._root_of(node, version, proof) != t.root:
        self._refuse(convert(method_id("NotAVersionOfThisLicence()", output_type=bytes4), uint32))
    counted: bool = False
    if state == ACTIVE:
        self.states[licence] = self._word(self._one(period), ACCUSED, version)
        counted = True
    elif state == ACCUSED and version == (word >> 168) & (2**24 - 1):
        one: uint256 = self._one(period)
        if (word & (one * MOST_COUNTED)) != one * MOST_COUNTED:
            self.states[licence] = word + one
            counted = True
    self.reports[commitment] = period | (PAID_BY_COUNT if counted else DEPOSIT_ONLY)
    log Revealed(
        licence=licence, informer=msg.sender, token=token, version=version, period=period, counted=counted
    )


@internal
@pure
def _one(period: uint256) -> uint256:
    """@notice One report in the counts of a period, from 1 on."""
    return 1 << (5 * (period - 1))


@internal
@view
def _root_of(leaf: bytes32, version: uint256, proof: DynArray[bytes32, MOST_DEPTH]) -> bytes32:
    if len(proof) != DEPTH:
        self._refuse(convert(method_id("TheProofIsTooShortOrTooLong()", output_type=bytes4), uint32))
    node: bytes32 = leaf
    place: uint256 = version
    for sibling: bytes32 in proof:
        if place & 1 == 0:
            node = keccak256(concat(node, sibling))
        else:
            node = keccak256(concat(sibling, node))
        place >>= 1
    return node


# --- contests ------------------------------------------------------------------------------------------------


@external
def repudiate(
    licence: bytes32,
    t: Terms,
    segment: uint256,
    digit: uint256,
    blinding: uint256,
    points: DynArray[address, MOST_SEGMENTS],
):
    """
    @notice An accused licensee opens one segment of its choice to a digit that the accused version has not. It takes
            the owner's secret to open a point to two digits.
    """
    if msg.sender != t.licensee:
        self._refuse(convert(method_id("NotTheLicensee()", output_type=bytes4), uint32))
    word: uint256 = self._held(licence, t)
    if self._state(word) != ACCUSED:
        self._refuse(convert(method_id("NotAccused()", output_type=bytes4), uint32))
    if block.timestamp > (word >> 192) + CONTEST:
        self._refuse(convert(method_id("TooLate()", output_type=bytes4), uint32))
    if len(points) != SEGMENTS or segment >= SEGMENTS:
        self._refuse(convert(method_id("NoSuchSegment()", output_type=bytes4), uint32))
    if self._hash_of(points) != t.choice:
        self._refuse(convert(method_id("NotThePointsOfTheChoice()", output_type=bytes4), uint32))
    if digit == 0 or digit > VARIANTS:
        self._refuse(convert(method_id("NoSuchDigit()", output_type=bytes4), uint32))
    place: uint256 = (word >> 168) & (2**24 - 1)
    for i: uint256 in range(segment, bound=MOST_SEGMENTS):
        place //= VARIANTS
    if place % VARIANTS + 1 == digit:
        self._refuse(convert(method_id("TheAccusedVersionHasThisDigit()", output_type=bytes4), uint32))
    # ecrecover(h, v, r, s) is the address of (s R - h G) / r: with R = A, r = x(A), s = digit x(A) and
    # h = -blinding x(A) that is digit A + blinding G
    s: uint256 = uint256_mulmod(digit, KEY_X, ORDER)
    h: uint256 = (ORDER - uint256_mulmod(blinding, KEY_X, ORDER)) % ORDER
    found: address = ecrecover(convert(h, bytes32), 28 if KEY_ODD else 27, KEY_X, s)
    if found == empty(address) or found != points[segment]:
        self._refuse(convert(method_id("NotAnOpeningOfThePoint()", output_type=bytes4), uint32))
    self._clear(licence, word)
    log Repudiated(licence=licence, segment=segment, digit=digit, blinding=blinding)
    raw_call(msg.sender, b"", value=2 * t.penalty + self._bond(t.penalty))


@internal
@pure
def _hash_of(points: DynArray[address, MOST_SEGMENTS]) -> bytes32:
    encoded: Bytes[32 * MOST_SEGMENTS + 64] = abi_encode(points)
    return keccak256(slice(encoded, 64, 32 * len(points)))


@external
def expose(
    licence: bytes32,
    t: Terms,
    leaf: bytes32,
    first: uint256,
    first_proof: DynArray[bytes32, MOST_DEPTH],
    second: uint256,
    second_proof: DynArray[bytes32, MOST_DEPTH],
):
    """@notice Anyone shows that two versions are the same, which clears the licensee and costs the owner its bond."""
    word: uint256 = self._held(licence, t)
    state: uint256 = self._state(word)
    if state != DELIVERED and state != ACTIVE and state != ACCUSED:
        self._refuse(convert(method_id("NothingToExpose()", output_type=bytes4), uint32))
    if first >= second or second >= VERSIONS:
        self._refuse(convert(method_id("NotTwoVersions()", output_type=bytes4), uint32))
    if self._root_of(leaf, first, first_proof) != t.root:
        self._refuse(convert(method_id("NotAVersionOfThisLicence()", output_type=bytes4), uint32))
    if self._root_of(leaf, second, second_proof) != t.root:
        self._refuse(convert(method_id("NotAVersionOfThisLicence()", output_type=bytes4), uint32))
    self._clear(licence, word)
    self.owed[t.licensee] += 2 * t.penalty + self._bond(t.penalty)
    log Exposed(licence=licence, first=first, second=second)


@internal
def _clear(licence: bytes32, word: uint256):
    """@notice The licensee is innocent: it gets back the collateral, and with it the bond of the owner."""
    self.states[licence] = self._word(word & COUNTS, CLEARED, (word >> 168) & (2**24 - 1))


# --- money ---------------------------------------------------------------------------------------------------


@internal
@pure
def _power(base: uint256, exponent: uint256) -> uint256:
    """@notice (base / 256) ** exponent in fixed point, never above it. base: 0 to 256."""
    square: uint256 = base << 112
    result: uint256 = UNIT
    left: uint256 = exponent
    for i: uint256 in range(10):  # at most 31 * 31 reports
        if left == 0:
            break
        if left & 1 == 1:
            result = (result * square) >> 120
        square = (square * square) >> 120
        left >>= 1
    return result


@internal
@view
def _reward(bounty: uint256, counts: uint256, period: uint256) -> uint256:
    """@notice Wei for one report of a period, from 1 on: the exact value rounded down, or 1 wei less."""
    before: uint256 = 0
    later: uint256 = 0
    own: uint256 = 0
    rest: uint256 = counts
    for i: uint256 in range(1, MOST_PERIODS + 1):
        if rest == 0:
            break
        if i < period:
            before += rest & MOST_COUNTED
        elif i == period:
            own = rest & MOST_COUNTED
        else:
            later += rest & MOST_COUNTED
        rest >>= 5
    share: uint256 = (self._power(EARLINESS, before) * self._power(256 - EARLINESS, later)) >> 120
    return (bounty * share) >> (119 + own)


@external
def settle(licence: bytes32, t: Terms):
    """@notice Anyone ends a licence once all reports and contests are: the collateral is divided."""
    word: uint256 = self._held(licence, t)
    state: uint256 = self._state(word)
    if state < ACTIVE:
        self._refuse(convert(method_id("TheLicenceIsNotActive()", output_type=bytes4), uint32))
    if block.timestamp < END + PERIOD:
        self._refuse(convert(method_id("ReportsCanStillCome()", output_type=bytes4), uint32))
    counts: uint256 = 0
    number: uint256 = 0
    bounty: uint256 = 0
    to_owner: uint256 = 0
    to_licensee: uint256 = 0
    if state != CLEARED:
        to_owner = self._bond(t.penalty)
        to_licensee = 2 * t.penalty
    if state == ACCUSED:
        if block.timestamp <= (word >> 192) + CONTEST:
            self._refuse(convert(method_id("TheAccusedCanStillContest()", output_type=bytes4), uint32))
        counts = word & COUNTS
        bounty = t.bounty
        paid: uint256 = 0
        for i: uint256 in range(1, MOST_PERIODS + 1):
            own: uint256 = (counts >> (5 * (i - 1))) & MOST_COUNTED
            if own > 0:
                number += own
                paid += own * self._reward(bounty, counts, i)
        penalty: uint256 = 2 * t.penalty - ((2 * t.penalty) >> number)
        to_owner += penalty - paid
        to_licensee -= penalty
    self._close(licence, counts, bounty)
    if to_owner > 0:
        self.owed[OWNER] += to_owner
    if to_licensee > 0:
        self.owed[t.licensee] += to_licensee
    log Settled(licence=licence, reports=number, to_owner=to_owner, to_licensee=to_licensee)


@internal
def _take(licence: bytes32, token: bytes32, informer: address, settled: uint256) -> uint256:
    """@notice What a report is worth, once: it is gone after this."""
    commitment: bytes32 = keccak256(abi_encode(licence, token, informer))
    report: uint256 = self.reports[commitment]
    if report < PAID_BY_COUNT:
        self._refuse(convert(method_id("NoSuchReportOrClaimed()", output_type=bytes4), uint32))
    self.reports[commitment] = 0
    if report & DEPOSIT_ONLY != 0:
        return DEPOSIT
    bounty: uint256 = (settled >> 160) & (2**95 - 1)
    return DEPOSIT + self._reward(bounty, settled & COUNTS, report & (PAID_BY_COUNT - 1))


@internal
@view
def _settled(licence: bytes32) -> uint256:
    word: uint256 = self.terms[licence]
    if word < SETTLED:
        self._refuse(convert(method_id("NotSettled()", output_type=bytes4), uint32))
    return word


@external
def claim(licence: bytes32, token: bytes32):
    """@notice An informer takes reward and deposit."""
    amount: uint256 = self._take(licence, token, msg.sender, self._settled(licence))
    log Claimed(licence=licence, informer=msg.sender, token=token, amount=amount, owed=False)
    raw_call(msg.sender, b"", value=amount)


@external
def claim_many(licence: bytes32, tokens: DynArray[bytes32, BATCH], informers: DynArray[address, BATCH]):
    """@notice Anyone has informers paid. Who does not take the money finds it under `owed`."""
    if len(tokens) != len(informers):
        self._refuse(convert(method_id("NotAsManyTokensAsInformers()", output_type=bytes4), uint32))
    settled: uint256 = self._settled(licence)
    for i: uint256 in range(len(tokens), bound=BATCH):
        informer: address = informers[i]
        amount: uint256 = self._take(licence, tokens[i], informer, settled)
        paid: bool = raw_call(informer, b"", value=amount, gas=30000, revert_on_failure=False)
        if not paid:
            self.owed[informer] += amount
        log Claimed(licence=licence, informer=informer, token=tokens[i], amount=amount, owed=not paid)


@external
def withdraw():
    """@notice Take what is owed to the sender."""
    amount: uint256 = self.owed[msg.sender]
    if amount == 0:
        self._refuse(convert(method_id("NothingIsOwed()", output_type=bytes4), uint32))
    self.owed[msg.sender] = 0
    log Withdrawn(account=msg.sender, amount=amount)
    raw_call(msg.sender, b"", value=amount)


# --- views ---------------------------------------------------------------------------------------------------


@external
@view
def now_period() -> uint256:
    """@notice The current period, from 1 on; above the number of periods when the campaign is over."""
    return self._period(block.timestamp)


@external
@view
def state_of(licence: bytes32) -> (uint256, uint256, uint256, uint256, bool):
    """@notice State (0: none or settled), accused version, since when, counts, and whether it is settled."""
    word: uint256 = self.states[licence]
    held: uint256 = self.terms[licence]
    settled: bool = held >= SETTLED
    counts: uint256 = (held if settled else word) & COUNTS
    return self._state(word), (word >> 168) & (2**24 - 1), word >> 192, counts, settled


@external
@view
def report_of(commitment: bytes32) -> uint256:
    """@notice The word of a report."""
    return self.reports[commitment]


@external
@view
def reward_of(bounty: uint256, counts: uint256, period: uint256) -> uint256:
    """@notice What a report of a period would earn with these counts, 5 bits a period."""
    return self._reward(bounty, counts, period)


@external
@view
def bond_of(penalty: uint256) -> uint256:
    """@notice The owner's bond for a licence with this penalty."""
    return self._bond(penalty)
