//- call_requires
fn half(x: u32) -> (y: u32)
    requires x % 2 == 0,
    ensures 2 * y == x,
{
    x / 2
}
fn run(x: u32) -> u32 {
    half(x) // expect: precondition not satisfied
}
//- call_ensures
fn half(x: u32) -> (y: u32)
    requires x % 2 == 0,
    ensures 2 * y == x,
{
    x / 2
}
fn run() {
    let y = half(8);
    assert(y == 4);
}
//- call_hides_the_body
fn one() -> (y: u32) {
    1
}
fn run() {
    let y = one();
    assert(y == 1); // expect: assertion failed
}
//- mutable_reference
fn bump(x: &mut u32)
    requires *old(x) < 100,
    ensures *x == *old(x) + 1,
{
    *x = *x + 1;
}
fn run() {
    let mut a: u32 = 5;
    bump(&mut a);
    assert(a == 6);
}
//- mutable_reference_changes
fn bump(x: &mut u32) {
    *x = 0;
}
fn run() {
    let mut a: u32 = 5;
    bump(&mut a);
    assert(a == 5); // expect: assertion failed
}
//- branches_join
fn abs(x: i32) -> (y: i32)
    requires x > i32::MIN,
    ensures y >= 0, y == x || y == 0 - x,
{
    if x < 0 { -x } else { x }
}
//- branch_is_wrong
fn abs(x: i32) -> (y: i32)
    requires x > i32::MIN,
    ensures y >= 0,
{
    let mut y = x;
    if x < -5 {
        y = -x;
    }
    y // expect: postcondition not satisfied
}
//- early_return
fn sign(x: i32) -> (y: i32)
    ensures y == 0 <==> x == 0,
{
    if x == 0 {
        return 0;
    }
    assert(x != 0);
    1
}
//- early_return_is_wrong
fn sign(x: i32) -> (y: i32)
    ensures y == 0 <==> x == 0,
{
    if x == 1 {
        return 0; // expect: postcondition not satisfied
    }
    if x == 0 { 0 } else { 1 }
}
//- shadowing
fn shadow(x: u32) -> (y: u32)
    requires x < 10,
    ensures y == x + 1,
{
    let x = x + 1;
    x
}
//- ensures_speaks_of_the_value_at_entry
fn down(mut x: u32) -> (y: u32)
    requires x > 0,
    ensures y == x - 1,
{
    x = x - 1;
    x
}
//- tuples
fn pair(a: u8, b: bool) -> (r: (u8, bool))
    ensures r.0 == a, r.1 == b,
{
    (a, b)
}
//- tuple_parts
fn pair(a: u8, b: u8) -> (r: u8)
    ensures r == a,
{
    let (x, y) = (a, b);
    x
}
//- option_result
fn find(v: &Vec<u8>) -> (r: Option<usize>)
    ensures
        if let Some(i) = r { i < v.len() && v[i as int] == 0 } else { true },
{
    if v.len() > 0 {
        if v[0] == 0 {
            return Some(0);
        }
    }
    None
}
//- option_result_is_wrong
fn find(v: &Vec<u8>) -> (r: Option<usize>)
    ensures
        if let Some(i) = r { i < v.len() && v[i as int] == 0 } else { true },
{
    if v.len() > 0 {
        return Some(0); // expect: postcondition not satisfied
    }
    None
}
//- option_match
fn get(x: Option<u8>) -> (y: u8)
    ensures y == match x { Some(v) => v, None => 0 },
{
    match x {
        Some(v) => v,
        None => 0,
    }
}
//- structs
struct Point {
    x: u32,
    y: u32,
}
fn flip(p: Point) -> (q: Point)
    ensures q.x == p.y, q.y == p.x,
{
    Point { x: p.y, y: p.x }
}
//- struct_update
struct Point {
    x: u32,
    y: u32,
}
fn right(p: &mut Point)
    requires old(p).x < 100,
    ensures p.x == old(p).x + 1, p.y == old(p).y,
{
    p.x = p.x + 1;
}
//- struct_update_is_wrong
struct Point {
    x: u32,
    y: u32,
}
fn right(p: &mut Point)
    requires old(p).x < 100,
    ensures p.y == old(p).y + 1,
{
    p.x = p.x + 1;
} // expect: postcondition not satisfied
//- enums
enum Shape {
    Dot,
    Square(u32),
    Box { w: u32, h: u32 },
}
spec fn width(s: Shape) -> int {
    match s {
        Shape::Dot => 0,
        Shape::Square(w) => w as int,
        Shape::Box { w, h } => w as int,
    }
}
proof fn dot()
    ensures width(Shape::Dot) == 0, width(Shape::Square(4)) == 4, width(Shape::Box { w: 3, h: 9 }) == 3,
{
}
//- methods
struct Counter {
    n: u32,
}
impl Counter {
    spec fn value(&self) -> int {
        self.n as int
    }
    fn bump(&mut self)
        requires old(self).n < 1000,
        ensures self.value() == old(self).value() + 1,
    {
        self.n = self.n + 1;
    }
}
fn run() {
    let mut c = Counter { n: 4 };
    c.bump();
    assert(c.value() == 5);
}
//- ghost_variables
fn run(n: u32)
    requires n < 100,
{
    let ghost before = n + 1;
    let mut m = n;
    m = m + 1;
    assert(m == before);
}
//- ghost_in_code
fn run(n: u32) -> u32 {
    let ghost g = 3int;
    g // expect: mode error
}
//- proof_assigns_executable
fn run(n: u32) {
    let mut m = n;
    proof {
        m = 3; // expect: mode error
    }
}
//- code_calls_spec
spec fn three() -> u32 {
    3
}
fn run() -> u32 {
    three() // expect: mode error
}
//- spec_calls_code
fn three() -> u32 {
    3
}
fn run()
    ensures three() == 3, // expect: mode error
{
}
//- immutable_assignment
fn run(n: u32) {
    let m = n;
    m = 3; // expect: type error
}
//- immutable_push
fn run(v: Vec<u8>) {
    v.push(3); // expect: type error
}
//- unknown_function
fn run() {
    nothing(); // expect: type error
}
//- unknown_variable
fn run() -> u32 {
    nothing // expect: type error
}
//- wrong_argument
fn takes(v: &Vec<u8>) {
}
fn run(v: Vec<u8>) {
    takes(v); // expect: type error
}
//- wrong_result
fn run() -> bool {
    3 // expect: type error
}
//- missing_argument
fn takes(a: u8, b: u8) {
}
fn run() {
    takes(1); // expect: type error
}
//- loop_labels_are_not_read
fn run() {
    'a: loop { // expect: unsupported
        break 'a;
    }
}
//- external_body_is_not_trusted
#[verifier::external_body] // expect: unsupported
fn run() -> (x: u8)
    ensures x == 3,
{
    4
}
//- axioms_are_not_trusted
axiom fn wrong() // expect: unsupported
    ensures false;
//- assumption_is_believed
fn run(x: u8) {
    assume(x < 3);
    assert(x < 4);
}
//- assumption_is_local
fn run(x: u8, b: bool) {
    if b {
        assume(x < 3);
    }
    assert(x < 4); // expect: assertion failed
}
//- exec_recursion
fn down(n: u32) -> (r: u32)
    ensures r == 0,
    decreases n,
{
    if n == 0 { 0 } else { down(n - 1) }
}
//- exec_recursion_in_a_circle
fn down(n: u32) -> (r: u32)
    ensures r == 7,
    decreases n,
{
    down(n) // expect: decreases not satisfied
}
//- empty_body
fn nothing() {
}
//- two_mutable_borrows
fn both(a: &mut u32, b: &mut u32) {
}
fn run() {
    let mut x: u32 = 1;
    both(&mut x, &mut x); // expect: type error
}
