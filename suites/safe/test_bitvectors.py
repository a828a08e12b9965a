"""`by(bit_vector)` against every value: two bytes have 65,536 pairs, and Python's integers know the answer."""

from hypothesis import given, settings
from hypothesis import strategies as st

from systems.safe import verify

NUMBERS = ("x", "y", "0", "1", "3", "7", "128", "255")


def to_type(value, bits, signed):
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >> (bits - 1) else value


@st.composite
def bytes_(draw, depth=2):
    """(text of type u8, its value as a function of x and y): bit operations, shifts and casts of wider sums."""
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        name = draw(st.sampled_from(NUMBERS))
        if name in "xy":
            return name, (lambda x, y: x) if name == "x" else (lambda x, y: y)
        value = int(name)
        return f"{name}u8", lambda x, y: value
    kind = draw(st.sampled_from(["&", "|", "^", "<<", ">>", "!", "cast", "if"]))
    left, f = draw(bytes_(depth - 1))
    if kind == "!":
        return f"(!({left}))", lambda x, y: 255 - f(x, y)
    if kind in ("<<", ">>"):
        places = draw(st.integers(0, 9))
        if kind == "<<":
            return f"(({left}) << {places}u8)", lambda x, y: f(x, y) << places & 255
        return f"(({left}) >> {places}u8)", lambda x, y: f(x, y) >> places
    if kind == "cast":
        wide, g = draw(wides(depth - 1))
        return f"(({wide}) as u8)", lambda x, y: g(x, y) & 255
    right, g = draw(bytes_(depth - 1))
    if kind == "if":
        return f"(if {left} < {right} {{ {right} }} else {{ {left} }})", lambda x, y: max(f(x, y), g(x, y))
    meaning = {"&": lambda a, b: a & b, "|": lambda a, b: a | b, "^": lambda a, b: a ^ b}[kind]
    return f"(({left}) {kind} ({right}))", lambda x, y: meaning(f(x, y), g(x, y))


@st.composite
def wides(draw, depth=2):
    """(text of type int, its value): exact sums, differences, products, and what casts to signed types make."""
    if depth == 0:
        left, f = draw(bytes_(0))
        return left, f
    kind = draw(st.sampled_from(["+", "-", "*", "byte", "signed", "neg"]))
    left, f = draw(wides(depth - 1))
    if kind == "byte":
        return draw(bytes_(depth))
    if kind == "signed":
        bits = draw(st.sampled_from([8, 16]))
        return f"(({left}) as i{bits})", lambda x, y: to_type(f(x, y), bits, True)
    if kind == "neg":
        return f"(-({left}))", lambda x, y: -f(x, y)
    right, g = draw(wides(depth - 1))
    meaning = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}[kind]
    return f"(({left}) {kind} ({right}))", lambda x, y: meaning(f(x, y), g(x, y))


COMPARISONS = {
    "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, "==": lambda a, b: a == b, "!=": lambda a, b: a != b,
}  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(wides(), st.sampled_from(sorted(COMPARISONS)), wides())
def test_a_claim_is_proved_if_it_holds_of_every_pair_of_bytes(left, op, right):
    text = f"verus! {{ proof fn f(x: u8, y: u8) {{ assert(({left[0]}) {op} ({right[0]})) by(bit_vector); }} }}"
    report = verify(text)
    assert not report.compile_error, (text, report.diagnostics)
    truth = all(COMPARISONS[op](left[1](x, y), right[1](x, y)) for x in range(256) for y in range(256))
    assert report.ok == truth, text
