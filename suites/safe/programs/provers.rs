//- masks_and_remainders
fn low_bits(x: u32) -> (r: u32)
    ensures r == x % 8,
{
    assert(x & 7 == x % 8) by(bit_vector);
    x & 7
}
//- a_mask_is_not_any_remainder
fn low_bits(x: u32) {
    assert(x & 7 == x % 9) by(bit_vector); // expect: assertion failed
}
//- requirements_are_used
fn clear(x: u8)
    requires x < 16,
{
    assert(x & 0xf0 == 0) by(bit_vector)
        requires x < 16;
}
//- requirements_are_proved_first
fn clear(x: u8) {
    assert(x & 0xf0 == 0) by(bit_vector)
        requires
            x < 16, // expect: requires not satisfied
        ;
}
//- what_is_known_outside_is_not_known_inside
fn clear(x: u8)
    requires x < 16,
{
    assert(x & 0xf0 == 0) by(bit_vector); // expect: assertion failed
}
//- a_sum_has_room
fn sums(x: u8, y: u8) {
    assert(x + y >= x) by(bit_vector);
    assert(x + y <= 510) by(bit_vector);
}
//- a_sum_is_not_cut
fn sums(x: u8, y: u8) {
    assert(x + y <= 255) by(bit_vector); // expect: assertion failed
}
//- a_cast_is_cut
fn casts(x: u32) {
    assert((x as u8) as u32 == x & 0xff) by(bit_vector);
    assert(x as u64 == x) by(bit_vector);
}
//- a_cast_may_change_a_number
fn casts(x: u32) {
    assert(x as u8 as u32 == x) by(bit_vector); // expect: assertion failed
}
//- a_difference_may_be_below_zero
fn differences(x: u8, y: u8) {
    assert(x - y < 256) by(bit_vector);
    assert(x - y > -256) by(bit_vector);
    assert(x < y ==> x - y < 0) by(bit_vector);
}
//- a_difference_is_not_cut
fn differences(x: u8, y: u8) {
    assert(x - y >= 0) by(bit_vector); // expect: assertion failed
}
//- signs
fn signs(x: i8) {
    assert(x >> 7u8 == 0 || x >> 7u8 == -1) by(bit_vector);
    assert(!x == -x - 1) by(bit_vector);
}
//- the_least_number_has_no_opposite
fn signs(x: i8) {
    assert(-x <= 127) by(bit_vector); // expect: assertion failed
}
//- shifts_lose_what_falls_out
fn shifts(x: u8) {
    assert((x << 1u8) >> 1u8 == x & 0x7f) by(bit_vector);
    assert(x << 8u8 == 0) by(bit_vector);
}
//- a_shift_is_no_product
fn shifts(x: u8) {
    assert(x << 1u8 == 2 * x) by(bit_vector); // expect: assertion failed
}
//- every_number
proof fn every() {
    assert(forall|x: u64, y: u64| x & y <= x) by(bit_vector);
}
//- not_every_number
proof fn every() {
    assert(forall|x: u64, y: u64| #[trigger] (x & y) < x) by(bit_vector); // expect: assertion failed
}
//- division_by_what_may_be_zero
fn division(x: u8, y: u8) {
    assert(y != 0 ==> x / y <= x) by(bit_vector);
}
//- division_by_zero_is_nothing_known
fn division(x: u8, y: u8) {
    assert(x / y <= x) by(bit_vector); // expect: assertion failed
}
//- bits_of_a_size_are_unknown
fn sizes(x: usize) {
    assert(x & 1 <= 1) by(bit_vector); // expect: unsupported
}
//- bits_of_a_number_are_unknown
fn numbers(x: int) {
    assert(x <= x) by(bit_vector); // expect: unsupported
}
//- what_is_proved_is_known_after
fn swap(a: u32, b: u32) -> (r: (u32, u32))
    ensures r.0 == b, r.1 == a,
{
    let x = a ^ b;
    let y = x ^ b;
    let z = x ^ y;
    assert((a ^ b) ^ b == a) by(bit_vector);
    assert((a ^ b) ^ ((a ^ b) ^ b) == b) by(bit_vector);
    (z, y)
}
//- computed
spec fn power(n: nat) -> nat
    decreases n,
{
    if n == 0 { 1 } else { 2 * power((n - 1) as nat) }
}
proof fn large() {
    assert(power(20) == 1048576) by(compute);
    assert(power(10) < power(11)) by(compute_only);
}
//- computed_false
spec fn power(n: nat) -> nat
    decreases n,
{
    if n == 0 { 1 } else { 2 * power((n - 1) as nat) }
}
proof fn large() {
    assert(power(20) == 1048577) by(compute); // expect: assertion failed
}
//- computed_with_unknowns_is_left_to_the_solver
proof fn rest(x: u8) {
    assert(x <= 255) by(compute);
}
//- computed_with_unknowns_may_fail
proof fn rest(x: u8) {
    assert(x <= 254) by(compute); // expect: assertion failed
}
//- only_computed_with_unknowns
proof fn rest(x: u8) {
    assert(x <= 255) by(compute_only); // expect: unsupported
}
//- computed_at_a_width_is_left_to_the_solver
proof fn sizes() {
    assert(usize::MAX == 18446744073709551615) by(compute); // expect: assertion failed
}
//- computed_shifts_are_left_to_the_solver
proof fn shifts() {
    assert(200u8 << 1u8 == 400) by(compute); // expect: assertion failed
}
//- every_bit_turned
fn turned(x: u8, y: i8) -> (r: (u8, i8))
    ensures r.0 == 255 - x, r.1 == -1 - y,
{
    (!x, !y)
}
//- every_bit_turned_is_not_the_opposite
fn turned(y: i8) -> (r: i8)
    ensures r == -y,
{
    !y // expect: postcondition not satisfied
}
