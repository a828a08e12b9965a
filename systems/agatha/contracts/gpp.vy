# pragma version ~=0.4.3
"""
@title Graph-based pinpoint protocol: bonded claims on the outputs of neural networks, and games about them
@notice A claim stands unless someone challenges it within its window. A game narrows a dispute over the graph to one
        step of one element of one node, which the contract computes itself. Nothing is trusted but roots.
        Whoever claims must be able to show what it claims about: a challenger that cannot prove a node wrong, because
        the node is impossible or its bytes are hidden, asks the submitter to describe it and to prove one of its steps.
@dev A claim is named by the hash of what it says, a game by the hash of claim and challenger: neither is stored. A
     game lives in three words: its state, the root in focus, and the hash of the context that all proofs start from.
     A burned half of a bond stays here, out of everyone's reach.
"""

import merkle

BIT: constant(uint256) = 1
MAX_CHILDREN: constant(uint256) = 64
MAX_OPEN: constant(uint256) = 64  # games at once on one claim
MAX_SUMS: constant(uint256) = 4096  # bytes of partial sums
MAX_WITNESS: constant(uint256) = 24576  # bytes
MAX_STEPS: constant(uint256) = 1024

INPUT: constant(uint256) = 0  # the operator of node 0

# states of a claim
PENDING: constant(uint256) = 1
VOID: constant(uint256) = 2
FINAL: constant(uint256) = 3

# phases of a game: whose move it is, and which
POST: constant(uint256) = 1  # the submitter posts its trace
PICK: constant(uint256) = 2  # the challenger picks a child
REVEAL: constant(uint256) = 3  # the submitter reveals the children of the focus, or its leaves
ELEMENT: constant(uint256) = 4  # the challenger picks an element, or has it arbitrated
SUM: constant(uint256) = 5  # the submitter posts the partial sums behind the element
STEP: constant(uint256) = 6  # the challenger has one step arbitrated
DESCRIBE: constant(uint256) = 7  # the submitter shows the descriptor of a node, and that it is a possible one
PROVE: constant(uint256) = 8  # the submitter proves one step right
WON: constant(uint256) = 9  # by the challenger
LOST: constant(uint256) = 10  # by the challenger
LEFT: constant(uint256) = 11  # the claim fell in another game


struct Descriptor:
    op: uint256
    profile: uint256
    h_out: uint256
    w_out: uint256
    c_out: uint256
    input_a: uint256
    input_b: uint256
    h: uint256
    w: uint256
    c_in: uint256
    kh: uint256
    kw: uint256
    stride: uint256
    pad: uint256
    dilation: uint256
    groups: uint256
    z_x: uint256
    z_r: uint256
    z_y: uint256
    lo: uint256
    hi: uint256
    shift_a: int256
    shift_r: int256
    scale: uint256
    residual: uint256
    broadcast: uint256
    weight_root: bytes32
    epilogue_root: bytes32


struct Context:
    trace: bytes32  # root over the output roots of all nodes, as the submitter has them
    model: bytes32  # root over the descriptors
    nodes: uint256
    input_root: bytes32


# where the leaves lie that the submitter opened, or the whole tensor
struct Window:
    root: bytes32
    first: uint256  # leaf
    leaves: uint256


interface Arbiter:
    def check(d: Descriptor, node: uint256) -> bool: pure
    def described(
        d: Descriptor, a: Descriptor, b: Descriptor, context: Context, node: uint256, witness: Bytes[4096]
    ) -> bool: view
    def element(
        d: Descriptor, context: Context, node: uint256, window: Window, element: uint256, witness: Bytes[MAX_WITNESS]
    ) -> (int256, int256): view
    def step(
        d: Descriptor,
        context: Context,
        node: uint256,
        window: Window,
        element: uint256,
        step: uint256,
        sums: Bytes[MAX_SUMS],
        witness: Bytes[MAX_WITNESS],
    ) -> (int256, int256): view


struct Game:
    phase: uint256
    inside: uint256  # 0: the focus is in the tree of the trace; 1: in that of a node's output
    since: uint256  # time of the last move
    submitter_left: uint256  # seconds
    challenger_left: uint256
    depth: uint256  # levels between the focus and the leaves
    node: uint256
    index: uint256  # of the focus within its level
    size: uint256  # bytes of the node's output; in the trace: nodes
    element: uint256
    width: uint256  # bytes of an element
    step: uint256  # that the submitter must prove
    steps: uint256  # partial sums that it posted


event Claimed:
    claim: indexed(bytes32)
    submitter: indexed(address)
    job: indexed(bytes32)
    output_root: bytes32
    trace: bytes32
    deadline: uint256


event Challenged:
    claim: indexed(bytes32)
    challenger: indexed(address)


event Posted:
    claim: indexed(bytes32)
    challenger: indexed(address)
    trace: bytes32
    children: DynArray[bytes32, MAX_CHILDREN]


event Revealed:
    claim: indexed(bytes32)
    challenger: indexed(address)
    children: DynArray[bytes32, MAX_CHILDREN]


event Opened:
    claim: indexed(bytes32)
    challenger: indexed(address)
    leaves: Bytes[1024]


event Picked:
    claim: indexed(bytes32)
    challenger: indexed(address)
    child: uint256


event NodePicked:
    claim: indexed(bytes32)
    challenger: indexed(address)
    node: uint256
    size: uint256  # bytes of its output


event ElementPicked:
    claim: indexed(bytes32)
    challenger: indexed(address)
    element: uint256


event Summed:
    claim: indexed(bytes32)
    challenger: indexed(address)
    sums: Bytes[MAX_SUMS]


event Arbitrated:
    claim: indexed(bytes32)
    challenger: indexed(address)
    node: uint256
    element: uint256
    step: uint256
    found: int256
    claimed: int256


event TimedOut:
    claim: indexed(bytes32)
    challenger: indexed(address)


event Settled:
    claim: indexed(bytes32)
    challenger: indexed(address)
    winner: address
    reward: uint256
    burned: uint256


event Collected:
    claim: indexed(bytes32)
    job: indexed(bytes32)
    output_root: bytes32


event Doubted:
    claim: indexed(bytes32)
    challenger: indexed(address)
    node: uint256


event Demanded:
    claim: indexed(bytes32)
    challenger: indexed(address)
    step: uint256


event Announced:
    digest: indexed(bytes32)


ARBITER: immutable(Arbiter)
BOND: public(immutable(uint256))  # wei
WINDOW: public(immutable(uint256))  # seconds in which a claim can be challenged
CLOCK: public(immutable(uint256))  # seconds that a player has for all moves of a game

result: public(HashMap[bytes32, bytes32])  # job -> output root, once a claim on it was collected
credit: public(HashMap[address, uint256])  # wei to be withdrawn
announced: public(HashMap[bytes32, uint256])  # digest of a fraud proof -> block
claims: HashMap[bytes32, uint256]  # submitter (160 bits), deadline (40), open games (16), state (8)
games: HashMap[bytes32, uint256]  # a packed Game
focus: HashMap[bytes32, bytes32]
context: HashMap[bytes32, bytes32]


@deploy
def __init__(arbiter: address, bond: uint256, window: uint256, clock: uint256):
    assert bond > 0 and window > 0, "bond and window must be positive"
    assert clock > 0 and clock < 2**24, "clock must be positive and below 2^24 seconds"
    ARBITER = Arbiter(arbiter)
    BOND = bond
    WINDOW = window
    CLOCK = clock


# --- claims ---


@internal
@pure
def _claim_id(job: bytes32, output_root: bytes32, trace: bytes32, submitter: address) -> bytes32:
    return keccak256(abi_encode(job, output_root, trace, submitter))


@internal
@pure
def _game_id(claim: bytes32, challenger: address) -> bytes32:
    return keccak256(abi_encode(claim, challenger))


@external
@payable
def submit(job: bytes32, output_root: bytes32, trace: bytes32) -> bytes32:
    """
    @notice Claim that a job's output hashes to output_root. A trace root, if not zero, is what fraud proofs go by.
    @return The claim's id.
    """
    assert msg.value == BOND, "send exactly the bond"
    assert self.result[job] == empty(bytes32), "the job has a result"
    claim: bytes32 = self._claim_id(job, output_root, trace, msg.sender)
    assert self.claims[claim] == 0, "claimed before"
    deadline: uint256 = block.timestamp + WINDOW
    self.claims[claim] = convert(msg.sender, uint256) | (deadline << 160) | (PENDING << 216)
    log Claimed(
        claim=claim, submitter=msg.sender, job=job, output_root=output_root, trace=trace, deadline=deadline
    )
    return claim


@external
def collect(job: bytes32, output_root: bytes32, trace: bytes32, submitter: address):
    """@notice Make a claim final, once its window is over and no game is open; its bond goes back."""
    claim: bytes32 = self._claim_id(job, output_root, trace, submitter)
    head: uint256 = self.claims[claim]
    assert head >> 216 == PENDING, "no pending claim"
    assert block.timestamp > (head >> 160) & (2**40 - 1), "the window is open"
    assert (head >> 200) & (2**16 - 1) == 0, "a game is open"
    self.claims[claim] = head ^ (PENDING << 216) ^ (FINAL << 216)
    if self.result[job] == empty(bytes32):
        self.result[job] = output_root
    log Collected(claim=claim, job=job, output_root=output_root)
    if msg.sender == submitter:
        send(submitter, BOND)
    else:
        self.credit[submitter] += BOND


@external
def withdraw():
    """@notice Take out what games and claims have earned."""
    amount: uint256 = self.credit[msg.sender]
    assert amount > 0, "nothing to withdraw"
    self.credit[msg.sender] = 0
    send(msg.sender, amount)


@external
@view
def claim_of(claim: bytes32) -> (address, uint256, uint256, uint256):
    """@return Submitter, deadline, open games, and state: 1 pending, 2 void, 3 final."""
    head: uint256 = self.claims[claim]
    return (
        convert(head & (2**160 - 1), address), (head >> 160) & (2**40 - 1), (head >> 200) & (2**16 - 1), head >> 216
    )


@external
@view
def game_of(claim: bytes32, challenger: address) -> (Game, bytes32):
    """@return The game and the root in focus."""
    game: bytes32 = self._game_id(claim, challenger)
    return self._unpack(self.games[game]), self.focus[game]


# --- the state of a game ---


@internal
@pure
def _unpack(word: uint256) -> Game:
    return Game(
        phase=word & 127,
        inside=(word >> 7) & 1,
        since=(word >> 8) & (2**40 - 1),
        submitter_left=(word >> 48) & (2**24 - 1),
        challenger_left=(word >> 72) & (2**24 - 1),
        depth=(word >> 96) & 255,
        node=(word >> 104) & (2**24 - 1),
        index=(word >> 128) & (2**32 - 1),
        size=(word >> 160) & (2**32 - 1),
        element=(word >> 192) & (2**32 - 1),
        width=(word >> 224) & 255,
        step=(word >> 232) & (2**12 - 1),
        steps=word >> 244,
    )


@internal
@pure
def _pack(g: Game) -> uint256:
    return (
        g.phase
        | (g.inside << 7)
        | (g.since << 8)
        | (g.submitter_left << 48)
        | (g.challenger_left << 72)
        | (g.depth << 96)
        | (g.node << 104)
        | (g.index << 128)
        | (g.size << 160)
        | (g.element << 192)
        | (g.width << 224)
        | (g.step << 232)
        | (g.steps << 244)
    )


@internal
@pure
def _submitter_moves(phase: uint256) -> bool:
    return phase == POST or phase == REVEAL or phase == SUM or phase == DESCRIBE or phase == PROVE


@internal
@view
def _turn(claim: bytes32, game: bytes32, phase: uint256, by_submitter: bool) -> Game:
    """@notice The game, with the mover's clock run down. Reverts out of turn, out of time, or where it is over."""
    head: uint256 = self.claims[claim]
    g: Game = self._unpack(self.games[game])
    assert g.phase == phase, "not this move now"
    assert head >> 216 == PENDING, "the claim is void"
    used: uint256 = block.timestamp - g.since
    if by_submitter:
        assert head & (2**160 - 1) == convert(msg.sender, uint256), "not your move"
        assert used <= g.submitter_left, "out of time"
        g.submitter_left = unsafe_sub(g.submitter_left, used)
    else:
        assert used <= g.challenger_left, "out of time"
        g.challenger_left = unsafe_sub(g.challenger_left, used)
    g.since = block.timestamp
    return g


@internal
@view
def _described(d: Descriptor, node: uint256, context: Context, at: uint256) -> uint256:
    """@notice The position after a descriptor's siblings, which must lead to the model's root."""
    top: bytes32 = empty(bytes32)
    end: uint256 = 0
    top, end = merkle.climb(keccak256(concat(0x00, abi_encode(d))), node, context.nodes, at)
    assert top == context.model, "the descriptor is not in the model"
    return end


@internal
@view
def _word(at: uint256) -> uint256:
    """@notice The 32 bytes of calldata at a position."""
    return convert(convert(slice(msg.data, at, 32), bytes32), uint256)


@internal
@view
def _window(g: Game, root: bytes32) -> Window:
    """@notice The leaves below the focus."""
    return Window(root=root, first=g.index << g.depth, leaves=self._children(g, g.depth))


@internal
@pure
def _levels(g: Game) -> uint256:
    """@notice Levels that the next move reveals: few rounds, at most 64 roots or 32 children; 0: the leaves."""
    if g.inside == 0:
        rounds: uint256 = max((g.depth + 5) // 6, 1)
        return (g.depth + rounds - 1) // rounds
    if g.depth <= 2:
        return 0
    rounds: uint256 = (g.depth + 2) // 5
    return (g.depth - 2 + rounds - 1) // rounds


@internal
@pure
def _children(g: Game, levels: uint256) -> uint256:
    """@notice How many nodes there are a number of levels below the focus."""
    leaves: uint256 = g.size
    if g.inside == 1:
        leaves = merkle.leaves_of(g.size)
    below: uint256 = g.depth - levels
    width: uint256 = (leaves + (BIT << below) - 1) >> below
    return min(BIT << levels, width - (g.index << levels))


@internal
def _settle(claim: bytes32, game: bytes32, challenger: address, g: Game, challenger_wins: bool):
    """@notice Close a game: the loser's bond is half reward, half burned."""
    head: uint256 = self.claims[claim]
    reward: uint256 = BOND // 2
    over: Game = g
    winner: address = challenger
    head -= BIT << 200
    if challenger_wins:
        over.phase = WON
        head = head ^ (PENDING << 216) ^ (VOID << 216)
    else:
        over.phase = LOST
        winner = convert(head & (2**160 - 1), address)
    self.claims[claim] = head
    self.games[game] = self._pack(over)
    self.credit[winner] += reward + (BOND if challenger_wins else 0)
    log Settled(claim=claim, challenger=challenger, winner=winner, reward=reward, burned=BOND - reward)


# --- moves ---


@external
@payable
def challenge(claim: bytes32):
    """@notice Open a game about a claim."""
    assert msg.value == BOND, "send exactly the bond"
    head: uint256 = self.claims[claim]
    assert head >> 216 == PENDING, "no pending claim"
    assert block.timestamp <= (head >> 160) & (2**40 - 1), "the window is over"
    assert (head >> 200) & (2**16 - 1) < MAX_OPEN, "too many open games"
    game: bytes32 = self._game_id(claim, msg.sender)
    assert self.games[game] == 0, "challenged before"
    g: Game = empty(Game)
    g.phase = POST
    g.since = block.timestamp
    g.submitter_left = CLOCK
    g.challenger_left = CLOCK
    self.games[game] = self._pack(g)
    self.claims[claim] = head + (BIT << 200)
    log Challenged(claim=claim, challenger=msg.sender)


@external
def post_trace(
    challenger: address,
    context: Context,
    output_root: bytes32,
    committed: bytes32,
    children: DynArray[bytes32, MAX_CHILDREN],
    witness: Bytes[1024],
):
    """
    @notice The submitter opens its trace: the top of the tree over its nodes' output roots, and that the last one is
            the claimed output.
    @param committed The trace root of the claim, zero if it had none.
    @param witness Where children are not the roots themselves: the siblings of the last root.
    """
    job: bytes32 = keccak256(abi_encode(context.model, context.nodes, context.input_root))
    claim: bytes32 = self._claim_id(job, output_root, committed, msg.sender)
    game: bytes32 = self._game_id(claim, challenger)
    g: Game = self._turn(claim, game, POST, True)
    assert context.nodes > 0 and context.nodes < 2**24, "wrong number of nodes"
    g.size = context.nodes
    g.depth = merkle.depth_of(context.nodes)
    levels: uint256 = self._levels(g)
    assert len(children) == self._children(g, levels), "wrong number of children"
    assert merkle.root_of(children) == context.trace, "children do not hash to the trace root"
    assert committed == empty(bytes32) or committed == context.trace, "not the trace root of the claim"
    if levels == g.depth:
        assert children[len(children) - 1] == output_root, "the last output is not the claimed one"
        assert len(witness) == 0, "the witness is too short or too long"
    else:
        at: uint256 = self._word(4 + 32 * 8) + 36
        top: bytes32 = empty(bytes32)
        end: uint256 = 0
        top, end = merkle.climb(output_root, context.nodes - 1, context.nodes, at)
        assert top == context.trace, "the last output is not the claimed one"
        assert end == at + len(witness), "the witness is too short or too long"
    g.phase = PICK
    self.games[game] = self._pack(g)
    self.focus[game] = context.trace
    self.context[game] = keccak256(abi_encode(context))
    log Posted(claim=claim, challenger=challenger, trace=context.trace, children=children)


@internal
@view
def _picked(g: Game, game: bytes32, child: uint256, root: bytes32, at: uint256) -> (Game, uint256):
    """@notice The game with its focus moved to a child whose root and siblings prove that it was revealed."""
    levels: uint256 = self._levels(g)
    moved: Game = g
    assert child < self._children(g, levels), "child out of range"
    top: bytes32 = empty(bytes32)
    end: uint256 = 0
    top, end = merkle.climb(root, child, self._children(g, levels), at)
    assert top == self.focus[game], "the child does not lead to the focus"
    moved.index = (g.index << levels) + child
    moved.depth = g.depth - levels
    moved.phase = REVEAL
    return moved, end


@external
def pick(claim: bytes32, child: uint256, root: bytes32, witness: Bytes[1024]):
    """@notice The challenger picks the first child that is wrong. Witness: its siblings below the focus."""
    game: bytes32 = self._game_id(claim, msg.sender)
    g: Game = self._turn(claim, game, PICK, False)
    at: uint256 = self._word(4 + 32 * 3) + 36
    last: uint256 = at + len(witness)
    g, at = self._picked(g, game, child, root, at)
    assert at == last, "the witness is too short or too long"
    assert g.inside == 1 or g.depth > 0, "pick a node by pick_node"
    self.games[game] = self._pack(g)
    self.focus[game] = root
    log Picked(claim=claim, challenger=msg.sender, child=child)


@external
def pick_node(
    claim: bytes32, child: uint256, root: bytes32, context: Context, d: Descriptor, witness: Bytes[4096]
):
    """
    @notice The challenger picks the first node whose output is wrong. Witness: the siblings of its root below the
            focus, then those of its descriptor.
    """
    game: bytes32 = self._game_id(claim, msg.sender)
    g: Game = self._turn(claim, game, PICK, False)
    assert g.inside == 0, "not this move now"
    at: uint256 = self._word(4 + 32 * 35) + 36
    last: uint256 = at + len(witness)
    g, at = self._picked(g, game, child, root, at)
    assert g.depth == 0, "pick a child by pick"
    assert self.context[game] == keccak256(abi_encode(context)), "not the context of the game"
    at = self._described(d, g.index, context, at)
    assert at == last, "the witness is too short or too long"
    assert staticcall ARBITER.check(d, g.index), "impossible node"
    if d.op == INPUT:
        assert root != context.input_root, "the input is right"
    self.focus[game] = root
    self._enter(claim, game, msg.sender, g, d, True)


@internal
def _enter(claim: bytes32, game: bytes32, challenger: address, before: Game, d: Descriptor, input_wrong: bool):
    """@notice Go on inside the output of the node at the focus; the input is settled here, it has nothing inside."""
    g: Game = before
    g.node = g.index
    g.width = 1 if d.profile == 0 else 4
    g.size = d.h_out * d.w_out * d.c_out * g.width
    log NodePicked(claim=claim, challenger=challenger, node=g.node, size=g.size)
    if d.op == INPUT:
        log Arbitrated(
            claim=claim, challenger=challenger, node=g.node, element=0, step=MAX_STEPS, found=0, claimed=0
        )
        self._settle(claim, game, challenger, g, input_wrong)
        return
    g.phase = REVEAL
    g.inside = 1
    g.index = 0
    g.depth = merkle.depth_of(merkle.leaves_of(g.size))
    self.games[game] = self._pack(g)


@external
def doubt(claim: bytes32, child: uint256, root: bytes32, witness: Bytes[1024]):
    """
    @notice The challenger picks a node without its descriptor: the submitter has to show it. For a node that is
            impossible, or that nobody else knows. Witness: the siblings of its root below the focus.
    """
    game: bytes32 = self._game_id(claim, msg.sender)
    g: Game = self._turn(claim, game, PICK, False)
    assert g.inside == 0, "not this move now"
    at: uint256 = self._word(4 + 32 * 3) + 36
    last: uint256 = at + len(witness)
    g, at = self._picked(g, game, child, root, at)
    assert g.depth == 0, "pick a child by pick"
    assert at == last, "the witness is too short or too long"
    g.phase = DESCRIBE
    self.games[game] = self._pack(g)
    self.focus[game] = root
    log Doubted(claim=claim, challenger=msg.sender, node=g.index)


@external
def describe(
    claim: bytes32,
    challenger: address,
    context: Context,
    d: Descriptor,
    a: Descriptor,
    b: Descriptor,
    witness: Bytes[4096],
):
    """
    @notice The submitter shows a doubted node: that it is possible, and that the outputs of the nodes a and b that it
            reads have the sizes that it reads. The game goes on inside it. Witness: see Arbiter.described.
    """
    game: bytes32 = self._game_id(claim, challenger)
    g: Game = self._turn(claim, game, DESCRIBE, True)
    assert self.context[game] == keccak256(abi_encode(context)), "not the context of the game"
    assert staticcall ARBITER.described(d, a, b, context, g.index, witness), "impossible node"
    if d.op == INPUT:
        assert self.focus[game] == context.input_root, "the input is wrong"
    self._enter(claim, game, challenger, g, d, False)


@external
def reveal(claim: bytes32, challenger: address, children: DynArray[bytes32, MAX_CHILDREN]):
    """@notice The submitter reveals the children of the focus, several levels below it."""
    game: bytes32 = self._game_id(claim, challenger)
    g: Game = self._turn(claim, game, REVEAL, True)
    levels: uint256 = self._levels(g)
    assert levels > 0, "reveal the leaves by open"
    assert len(children) == self._children(g, levels), "wrong number of children"
    assert merkle.root_of(children) == self.focus[game], "children do not hash to the focus"
    g.phase = PICK
    self.games[game] = self._pack(g)
    log Revealed(claim=claim, challenger=challenger, children=children)


@external
def open(claim: bytes32, challenger: address, leaves: Bytes[1024]):
    """@notice The submitter reveals the leaves below the focus, at most four."""
    game: bytes32 = self._game_id(claim, challenger)
    g: Game = self._turn(claim, game, REVEAL, True)
    assert g.inside == 1 and g.depth <= 2, "reveal children first"
    count: uint256 = self._children(g, g.depth)
    assert len(leaves) == 256 * count, "wrong number of leaves"
    at: uint256 = self._word(4 + 32 * 2) + 36
    hashes: DynArray[bytes32, MAX_CHILDREN] = []
    for i: uint256 in range(count, bound=4):
        hashes.append(merkle.leaf_hash(at + 256 * i))
    assert merkle.root_of(hashes) == self.focus[game], "leaves do not hash to the focus"
    g.phase = ELEMENT
    self.games[game] = self._pack(g)
    log Opened(claim=claim, challenger=challenger, leaves=leaves)


@external
def pick_element(claim: bytes32, element: uint256):
    """@notice The challenger picks a wrong element and asks for the partial sums behind it."""
    game: bytes32 = self._game_id(claim, msg.sender)
    g: Game = self._turn(claim, game, ELEMENT, False)
    first: uint256 = (g.index << g.depth) * 256
    assert element * g.width >= first, "element out of range"
    assert element * g.width < min(g.size, first + 256 * self._children(g, g.depth)), "element out of range"
    g.element = element
    g.phase = SUM
    self.games[game] = self._pack(g)
    log ElementPicked(claim=claim, challenger=msg.sender, element=element)


@external
def post_sums(claim: bytes32, challenger: address, sums: Bytes[MAX_SUMS]):
    """@notice The submitter posts the accumulator after every step, four bytes each."""
    game: bytes32 = self._game_id(claim, challenger)
    g: Game = self._turn(claim, game, SUM, True)
    g.phase = STEP
    g.steps = len(sums) // 4
    self.games[game] = self._pack(g)
    self.focus[game] = keccak256(abi_encode(self.focus[game], keccak256(sums)))
    log Summed(claim=claim, challenger=challenger, sums=sums)


@external
def arbitrate(claim: bytes32, element: uint256, context: Context, d: Descriptor, witness: Bytes[MAX_WITNESS]):
    """
    @notice The arbiter computes an element as a whole, and the game is settled. Witness: see Arbiter.element.
    """
    game: bytes32 = self._game_id(claim, msg.sender)
    g: Game = self._turn(claim, game, ELEMENT, False)
    assert self.context[game] == keccak256(abi_encode(context)), "not the context of the game"
    found: int256 = 0
    claimed: int256 = 0
    found, claimed = staticcall ARBITER.element(d, context, g.node, self._window(g, self.focus[game]), element, witness)
    log Arbitrated(
        claim=claim, challenger=msg.sender, node=g.node, element=element, step=MAX_STEPS, found=found, claimed=claimed
    )
    self._settle(claim, game, msg.sender, g, found != claimed)


@external
def arbitrate_step(
    claim: bytes32,
    step: uint256,
    opened: bytes32,
    sums: Bytes[MAX_SUMS],
    context: Context,
    d: Descriptor,
    witness: Bytes[MAX_WITNESS],
):
    """
    @notice The arbiter computes one step behind the picked element, and the game is settled. Witness: see Arbiter.step.
    @param opened The root of the leaves that were opened.
    """
    game: bytes32 = self._game_id(claim, msg.sender)
    g: Game = self._turn(claim, game, STEP, False)
    assert self.context[game] == keccak256(abi_encode(context)), "not the context of the game"
    assert self.focus[game] == keccak256(abi_encode(opened, keccak256(sums))), "not the posted sums"
    found: int256 = 0
    claimed: int256 = 0
    found, claimed = staticcall ARBITER.step(
        d, context, g.node, self._window(g, opened), g.element, step, sums, witness
    )
    log Arbitrated(
        claim=claim, challenger=msg.sender, node=g.node, element=g.element, step=step, found=found, claimed=claimed
    )
    self._settle(claim, game, msg.sender, g, found != claimed)


@external
def demand(claim: bytes32, step: uint256):
    """@notice The challenger has the submitter prove a step: it lacks the bytes to show that it is wrong."""
    game: bytes32 = self._game_id(claim, msg.sender)
    g: Game = self._turn(claim, game, STEP, False)
    assert step <= g.steps, "step out of range"
    g.step = step
    g.phase = PROVE
    self.games[game] = self._pack(g)
    log Demanded(claim=claim, challenger=msg.sender, step=step)


@external
def prove(
    claim: bytes32,
    challenger: address,
    opened: bytes32,
    sums: Bytes[MAX_SUMS],
    context: Context,
    d: Descriptor,
    witness: Bytes[MAX_WITNESS],
):
    """@notice The submitter has the demanded step arbitrated, and wins where it is right. See arbitrate_step."""
    game: bytes32 = self._game_id(claim, challenger)
    g: Game = self._turn(claim, game, PROVE, True)
    assert self.context[game] == keccak256(abi_encode(context)), "not the context of the game"
    assert self.focus[game] == keccak256(abi_encode(opened, keccak256(sums))), "not the posted sums"
    found: int256 = 0
    claimed: int256 = 0
    found, claimed = staticcall ARBITER.step(
        d, context, g.node, self._window(g, opened), g.element, g.step, sums, witness
    )
    assert found == claimed, "the step is wrong"
    log Arbitrated(
        claim=claim, challenger=challenger, node=g.node, element=g.element, step=g.step, found=found, claimed=claimed
    )
    self._settle(claim, game, challenger, g, False)


@external
def timeout(claim: bytes32, challenger: address):
    """@notice Close a game whose player to move has used up its clock: that player loses. Anyone may say so."""
    game: bytes32 = self._game_id(claim, challenger)
    g: Game = self._unpack(self.games[game])
    assert g.phase > 0 and g.phase < WON, "no open game"
    assert self.claims[claim] >> 216 == PENDING, "the claim is void"
    late: bool = self._submitter_moves(g.phase)
    left: uint256 = g.submitter_left if late else g.challenger_left
    assert block.timestamp - g.since > left, "there is time left"
    log TimedOut(claim=claim, challenger=challenger)
    self._settle(claim, game, challenger, g, late)


@external
def leave(claim: bytes32):
    """@notice Take one's bond back from a game whose claim fell in another one."""
    game: bytes32 = self._game_id(claim, msg.sender)
    g: Game = self._unpack(self.games[game])
    assert g.phase > 0 and g.phase < WON, "no open game"
    head: uint256 = self.claims[claim]
    assert head >> 216 == VOID, "the claim is not void"
    g.phase = LEFT
    self.games[game] = self._pack(g)
    self.claims[claim] = head - (BIT << 200)
    self.credit[msg.sender] += BOND
    log Settled(claim=claim, challenger=msg.sender, winner=msg.sender, reward=0, burned=0)


# --- fraud proofs ---


@external
def announce(digest: bytes32):
    """
    @notice Say that one holds a fraud proof, without showing it, at least a block before it is shown. The digest is
            keccak(claim, keccak(witness), sender): whoever copies a proof out of the pool has none.
    """
    if self.announced[digest] == 0:
        self.announced[digest] = block.number
    log Announced(digest=digest)


@external
def fraud_proof(
    output_root: bytes32,
    submitter: address,
    node: uint256,
    element: uint256,
    context: Context,
    d: Descriptor,
    witness: Bytes[MAX_WITNESS],
):
    """
    @notice Show in one call that a claim which names its trace contradicts itself in one element. Witness: see
            Arbiter.element. At node 0, an output's root with its siblings shows that the input is another one; at
            node `nodes`, the last output's that it is not the claimed one.
    """
    job: bytes32 = keccak256(abi_encode(context.model, context.nodes, context.input_root))
    claim: bytes32 = self._claim_id(job, output_root, context.trace, submitter)
    head: uint256 = self.claims[claim]
    assert head >> 216 == PENDING, "no pending claim"
    digest: bytes32 = keccak256(abi_encode(claim, keccak256(witness), msg.sender))
    seen: uint256 = self.announced[digest]
    assert seen > 0 and seen < block.number, "announce the proof first"
    found: int256 = 0
    claimed: int256 = 1
    if node == 0 or node == context.nodes:
        root: bytes32 = convert(self._word(self._word(4 + 32 * 36) + 36), bytes32)
        top: bytes32 = empty(bytes32)
        end: uint256 = 0
        last: uint256 = context.nodes - 1
        top, end = merkle.climb(root, min(node, last), context.nodes, self._word(4 + 32 * 36) + 68)
        assert top == context.trace, "the output is not in the trace"
        assert end == self._word(4 + 32 * 36) + 36 + len(witness), "the witness is too short or too long"
        if node == 0:
            assert root != context.input_root, "the input is right"
        else:
            assert root != output_root, "the last output is the claimed one"
    else:
        found, claimed = staticcall ARBITER.element(d, context, node, empty(Window), element, witness)
    assert found != claimed, "the element is right"
    log Arbitrated(
        claim=claim, challenger=msg.sender, node=node, element=element, step=MAX_STEPS, found=found, claimed=claimed
    )
    self.claims[claim] = head ^ (PENDING << 216) ^ (VOID << 216)
    reward: uint256 = BOND // 2
    self.credit[msg.sender] += reward
    log Settled(claim=claim, challenger=msg.sender, winner=msg.sender, reward=reward, burned=BOND - reward)
