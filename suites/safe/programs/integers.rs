//- add_in_range
fn add(a: u32, b: u32) -> (c: u32)
    requires a + b <= u32::MAX,
    ensures c == a + b,
{
    a + b
}
//- add_overflows
fn add(a: u32, b: u32) -> (c: u32) {
    a + b // expect: possible arithmetic underflow/overflow
}
//- subtract_underflows
fn sub(a: u8, b: u8) -> u8 {
    a - b // expect: possible arithmetic underflow/overflow
}
//- multiply_in_range
fn mul(a: u8) -> (c: u16)
    ensures c == 2 * a,
{
    (a as u16) * 2
}
//- multiply_overflows
fn mul(a: i32) -> i32
    requires -100000 <= a <= 100000,
{
    a * 100000 // expect: possible arithmetic underflow/overflow
}
//- negation_of_least
fn neg(a: i8) -> i8 {
    -a // expect: possible arithmetic underflow/overflow
}
//- negation_is_fine
fn neg(a: i8) -> (b: i8)
    requires a > i8::MIN,
    ensures b == 0 - a,
{
    -a
}
//- constant_overflows
fn constant() -> u8 {
    let x: u8 = 200;
    x + 100 // expect: possible arithmetic underflow/overflow
}
//- literal_out_of_range
fn constant() -> u8 {
    300u8 // expect: type error
}
//- division_by_zero
fn div(a: u32, b: u32) -> u32 {
    a / b // expect: possible division by zero
}
//- remainder_by_zero
fn rem(a: usize, b: usize) -> usize {
    a % b // expect: possible division by zero
}
//- division_is_below
fn div(a: u32, b: u32) -> (c: u32)
    requires b > 0,
    ensures c <= a,
{
    a / b
}
//- spec_division_is_euclidean
proof fn euclid()
    ensures (-7) / 2int == -4, (-7) % 2int == 1,
{
}
//- spec_division_does_not_truncate
proof fn euclid() {
    assert((-7) / 2int == -3); // expect: assertion failed
}
//- spec_arithmetic_has_no_bounds
spec fn twice(x: u8) -> int {
    x + x
}
proof fn large()
    ensures twice(200) == 400,
{
}
//- shift_width
fn shift(a: u32, b: u32) -> u32 {
    a << b // expect: possible bit shift underflow/overflow
}
//- shift_fits
fn shift(a: u32, b: u32) -> u32
    requires b < 32,
{
    a << b
}
//- usize_may_be_32_bits
fn wide(a: usize) -> (b: usize)
    requires a <= 0xffff_ffff,
    ensures b == a,
{
    a
}
//- usize_may_not_be_64_bits
fn wide() -> (b: usize) {
    let a: usize = 0xffff_ffff;
    a + 1 // expect: possible arithmetic underflow/overflow
}
//- cast_keeps_what_fits
fn narrow(a: u64) -> (b: u8)
    requires a < 256,
    ensures b == a,
{
    a as u8
}
//- cast_may_lose
fn narrow(a: u64) -> (b: u8)
    ensures b == a,
{
    a as u8 // expect: postcondition not satisfied
}
//- cast_stays_in_range
fn narrow(a: i64) -> (b: u8)
    ensures 0 <= b <= 255,
{
    a as u8
}
//- nat_cast_of_negative
proof fn n(x: int) {
    assert((x as nat) as int == x); // expect: assertion failed
}
//- nat_cast_of_positive
proof fn n(x: int)
    requires x >= 0,
{
    assert((x as nat) as int == x);
}
//- nat_sum_is_nat
spec fn plus(a: nat, b: nat) -> nat {
    a + b
}
//- nat_difference_is_int
spec fn minus(a: nat, b: nat) -> nat {
    a - b // expect: type error
}
//- xor_is_a_function
fn same(a: u32, b: u32) -> (c: u32)
    ensures c == a ^ b,
{
    a ^ b
}
//- compound_assignment
fn bump(a: u16) -> (b: u16)
    requires a < 1000,
    ensures b == 3 * a + 5,
{
    let mut x = a;
    x += a;
    x += 5;
    x + a
}
//- compound_assignment_overflows
fn bump(a: u16) -> u16 {
    let mut x = a;
    x += 1; // expect: possible arithmetic underflow/overflow
    x
}
//- nonlinear_needs_help
proof fn square(x: int, y: int)
    requires 0 <= x <= 10, 0 <= y <= 10,
{
    assert(x * y <= 100) by(nonlinear_arith)
        requires 0 <= x <= 10, 0 <= y <= 10,
    {
    }
}
//- nonlinear_knows_only_its_requires
proof fn square(x: int, y: int)
    requires 0 <= x <= 10, 0 <= y <= 10,
{
    assert(x * y <= 100) by(nonlinear_arith); // expect: assertion failed
}
//- nonlinear_requires_are_proved
proof fn square(x: int, y: int) {
    assert(x * x >= 0) by(nonlinear_arith)
        requires x >= 0, // expect: requires not satisfied
    {
    }
}
//- wide_integers
fn wide(a: u64, b: u64) -> (c: u128)
    ensures c == a + b,
{
    (a as u128) + (b as u128)
}
//- short_circuit_guards_division
fn safe(a: u32, b: u32) -> bool {
    b != 0 && a / b > 1
}
//- disjunction_guards_division
fn safe(a: u32, b: u32) -> bool {
    b == 0 || a / b > 1
}
//- wrong_order_does_not_guard
fn unsafe_(a: u32, b: u32) -> bool {
    a / b > 1 && b != 0 // expect: possible division by zero
}
