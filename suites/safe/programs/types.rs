//- u8_sum_in_range
fn sum(a: u8, b: u8) -> (c: u8)
    requires 0 <= a <= 50, 0 <= b <= 50,
    ensures c == a + b, c <= 100,
{
    a + b
}
//- u8_beyond_its_greatest
fn next(a: u8) -> u8 {
    a + 1 // expect: possible arithmetic underflow/overflow
}
//- u8_below_its_least
fn previous(a: u8) -> u8 {
    a - 1 // expect: possible arithmetic underflow/overflow
}
//- u8_values_have_its_range
fn range(v: &Vec<u8>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(u8::MIN <= x <= u8::MAX);
}
//- u8_values_have_no_smaller_range
fn range(v: &Vec<u8>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(u8::MIN < x); // expect: assertion failed
}
//- u16_sum_in_range
fn sum(a: u16, b: u16) -> (c: u16)
    requires 0 <= a <= 50, 0 <= b <= 50,
    ensures c == a + b, c <= 100,
{
    a + b
}
//- u16_beyond_its_greatest
fn next(a: u16) -> u16 {
    a + 1 // expect: possible arithmetic underflow/overflow
}
//- u16_below_its_least
fn previous(a: u16) -> u16 {
    a - 1 // expect: possible arithmetic underflow/overflow
}
//- u16_values_have_its_range
fn range(v: &Vec<u16>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(u16::MIN <= x <= u16::MAX);
}
//- u16_values_have_no_smaller_range
fn range(v: &Vec<u16>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(u16::MIN < x); // expect: assertion failed
}
//- u32_sum_in_range
fn sum(a: u32, b: u32) -> (c: u32)
    requires 0 <= a <= 50, 0 <= b <= 50,
    ensures c == a + b, c <= 100,
{
    a + b
}
//- u32_beyond_its_greatest
fn next(a: u32) -> u32 {
    a + 1 // expect: possible arithmetic underflow/overflow
}
//- u32_below_its_least
fn previous(a: u32) -> u32 {
    a - 1 // expect: possible arithmetic underflow/overflow
}
//- u32_values_have_its_range
fn range(v: &Vec<u32>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(u32::MIN <= x <= u32::MAX);
}
//- u32_values_have_no_smaller_range
fn range(v: &Vec<u32>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(u32::MIN < x); // expect: assertion failed
}
//- u64_sum_in_range
fn sum(a: u64, b: u64) -> (c: u64)
    requires 0 <= a <= 50, 0 <= b <= 50,
    ensures c == a + b, c <= 100,
{
    a + b
}
//- u64_beyond_its_greatest
fn next(a: u64) -> u64 {
    a + 1 // expect: possible arithmetic underflow/overflow
}
//- u64_below_its_least
fn previous(a: u64) -> u64 {
    a - 1 // expect: possible arithmetic underflow/overflow
}
//- u64_values_have_its_range
fn range(v: &Vec<u64>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(u64::MIN <= x <= u64::MAX);
}
//- u64_values_have_no_smaller_range
fn range(v: &Vec<u64>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(u64::MIN < x); // expect: assertion failed
}
//- u128_sum_in_range
fn sum(a: u128, b: u128) -> (c: u128)
    requires 0 <= a <= 50, 0 <= b <= 50,
    ensures c == a + b, c <= 100,
{
    a + b
}
//- u128_beyond_its_greatest
fn next(a: u128) -> u128 {
    a + 1 // expect: possible arithmetic underflow/overflow
}
//- u128_below_its_least
fn previous(a: u128) -> u128 {
    a - 1 // expect: possible arithmetic underflow/overflow
}
//- u128_values_have_its_range
fn range(v: &Vec<u128>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(u128::MIN <= x <= u128::MAX);
}
//- u128_values_have_no_smaller_range
fn range(v: &Vec<u128>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(u128::MIN < x); // expect: assertion failed
}
//- usize_sum_in_range
fn sum(a: usize, b: usize) -> (c: usize)
    requires 0 <= a <= 50, 0 <= b <= 50,
    ensures c == a + b, c <= 100,
{
    a + b
}
//- usize_beyond_its_greatest
fn next(a: usize) -> usize {
    a + 1 // expect: possible arithmetic underflow/overflow
}
//- usize_below_its_least
fn previous(a: usize) -> usize {
    a - 1 // expect: possible arithmetic underflow/overflow
}
//- usize_values_have_its_range
fn range(v: &Vec<usize>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(usize::MIN <= x <= usize::MAX);
}
//- usize_values_have_no_smaller_range
fn range(v: &Vec<usize>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(usize::MIN < x); // expect: assertion failed
}
//- i8_sum_in_range
fn sum(a: i8, b: i8) -> (c: i8)
    requires 0 <= a <= 50, 0 <= b <= 50,
    ensures c == a + b, c <= 100,
{
    a + b
}
//- i8_beyond_its_greatest
fn next(a: i8) -> i8 {
    a + 1 // expect: possible arithmetic underflow/overflow
}
//- i8_below_its_least
fn previous(a: i8) -> i8 {
    a - 1 // expect: possible arithmetic underflow/overflow
}
//- i8_values_have_its_range
fn range(v: &Vec<i8>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(i8::MIN <= x <= i8::MAX);
}
//- i8_values_have_no_smaller_range
fn range(v: &Vec<i8>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(i8::MIN < x); // expect: assertion failed
}
//- i16_sum_in_range
fn sum(a: i16, b: i16) -> (c: i16)
    requires 0 <= a <= 50, 0 <= b <= 50,
    ensures c == a + b, c <= 100,
{
    a + b
}
//- i16_beyond_its_greatest
fn next(a: i16) -> i16 {
    a + 1 // expect: possible arithmetic underflow/overflow
}
//- i16_below_its_least
fn previous(a: i16) -> i16 {
    a - 1 // expect: possible arithmetic underflow/overflow
}
//- i16_values_have_its_range
fn range(v: &Vec<i16>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(i16::MIN <= x <= i16::MAX);
}
//- i16_values_have_no_smaller_range
fn range(v: &Vec<i16>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(i16::MIN < x); // expect: assertion failed
}
//- i32_sum_in_range
fn sum(a: i32, b: i32) -> (c: i32)
    requires 0 <= a <= 50, 0 <= b <= 50,
    ensures c == a + b, c <= 100,
{
    a + b
}
//- i32_beyond_its_greatest
fn next(a: i32) -> i32 {
    a + 1 // expect: possible arithmetic underflow/overflow
}
//- i32_below_its_least
fn previous(a: i32) -> i32 {
    a - 1 // expect: possible arithmetic underflow/overflow
}
//- i32_values_have_its_range
fn range(v: &Vec<i32>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(i32::MIN <= x <= i32::MAX);
}
//- i32_values_have_no_smaller_range
fn range(v: &Vec<i32>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(i32::MIN < x); // expect: assertion failed
}
//- i64_sum_in_range
fn sum(a: i64, b: i64) -> (c: i64)
    requires 0 <= a <= 50, 0 <= b <= 50,
    ensures c == a + b, c <= 100,
{
    a + b
}
//- i64_beyond_its_greatest
fn next(a: i64) -> i64 {
    a + 1 // expect: possible arithmetic underflow/overflow
}
//- i64_below_its_least
fn previous(a: i64) -> i64 {
    a - 1 // expect: possible arithmetic underflow/overflow
}
//- i64_values_have_its_range
fn range(v: &Vec<i64>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(i64::MIN <= x <= i64::MAX);
}
//- i64_values_have_no_smaller_range
fn range(v: &Vec<i64>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(i64::MIN < x); // expect: assertion failed
}
//- i128_sum_in_range
fn sum(a: i128, b: i128) -> (c: i128)
    requires 0 <= a <= 50, 0 <= b <= 50,
    ensures c == a + b, c <= 100,
{
    a + b
}
//- i128_beyond_its_greatest
fn next(a: i128) -> i128 {
    a + 1 // expect: possible arithmetic underflow/overflow
}
//- i128_below_its_least
fn previous(a: i128) -> i128 {
    a - 1 // expect: possible arithmetic underflow/overflow
}
//- i128_values_have_its_range
fn range(v: &Vec<i128>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(i128::MIN <= x <= i128::MAX);
}
//- i128_values_have_no_smaller_range
fn range(v: &Vec<i128>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(i128::MIN < x); // expect: assertion failed
}
//- isize_sum_in_range
fn sum(a: isize, b: isize) -> (c: isize)
    requires 0 <= a <= 50, 0 <= b <= 50,
    ensures c == a + b, c <= 100,
{
    a + b
}
//- isize_beyond_its_greatest
fn next(a: isize) -> isize {
    a + 1 // expect: possible arithmetic underflow/overflow
}
//- isize_below_its_least
fn previous(a: isize) -> isize {
    a - 1 // expect: possible arithmetic underflow/overflow
}
//- isize_values_have_its_range
fn range(v: &Vec<isize>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(isize::MIN <= x <= isize::MAX);
}
//- isize_values_have_no_smaller_range
fn range(v: &Vec<isize>, i: usize)
    requires i < v.len(),
{
    let x = v[i];
    assert(isize::MIN < x); // expect: assertion failed
}
