//- read_in_bounds
fn first(v: &Vec<u64>) -> (x: u64)
    requires v.len() > 0,
    ensures x == v[0],
{
    v[0]
}
//- read_out_of_bounds
fn first(v: &Vec<u64>) -> u64 {
    v[0] // expect: precondition not satisfied
}
//- write_in_bounds
fn put(v: &mut Vec<u64>, i: usize)
    requires i < old(v).len(),
    ensures v.len() == old(v).len(), v[i as int] == 7,
        forall|k: int| 0 <= k < v.len() && k != i ==> v[k] == old(v)[k],
{
    v.set(i, 7);
}
//- write_out_of_bounds
fn put(v: &mut Vec<u64>, i: usize) {
    v.set(i, 7); // expect: precondition not satisfied
}
//- write_changes_the_element
fn put(v: &mut Vec<u64>, i: usize)
    requires i < old(v).len(),
    ensures v@ == old(v)@,
{
    v.set(i, 7);
} // expect: postcondition not satisfied
//- push_and_pop
fn both(v: &mut Vec<i32>) -> (x: i32)
    ensures x == 3, v@ =~= old(v)@,
{
    v.push(3);
    let last = v.pop();
    last.unwrap()
}
//- pop_of_empty
fn take(v: &mut Vec<i32>) -> i32 {
    let last = v.pop();
    last.unwrap() // expect: precondition not satisfied
}
//- element_range_is_known
fn small(v: &Vec<u8>, i: usize) -> (x: u16)
    requires i < v.len(),
    ensures x <= 510,
{
    v[i] as u16 + v[i] as u16
}
//- nested_vectors
fn corner(v: &Vec<Vec<i32>>) -> (x: i32)
    requires v.len() > 0, v[0].len() > 0,
    ensures x == v[0][0],
{
    v[0][0]
}
//- nested_write
fn corner(v: &mut Vec<Vec<i32>>)
    requires old(v).len() > 0, old(v)[0].len() > 0,
    ensures v[0][0] == 5,
{
    v[0][0] = 5;
}
//- swap_elements
fn swap(v: &mut Vec<i32>, i: usize, j: usize)
    requires i < old(v).len(), j < old(v).len(),
    ensures v[i as int] == old(v)[j as int], v[j as int] == old(v)[i as int],
{
    let a = v[i];
    let b = v[j];
    v.set(i, b);
    v.set(j, a);
}
//- swap_wrongly
fn swap(v: &mut Vec<i32>, i: usize, j: usize)
    requires i < old(v).len(), j < old(v).len(),
    ensures v[i as int] == old(v)[j as int], v[j as int] == old(v)[i as int],
{
    let b = v[j];
    v.set(i, b);
    let a = v[i];
    v.set(j, a);
} // expect: postcondition not satisfied
//- insert_and_remove
fn there(v: &mut Vec<i32>)
    requires old(v).len() < 100,
    ensures v@ =~= old(v)@,
{
    v.insert(0, 9);
    let x = v.remove(0);
}
//- machine_index_in_spec
fn first(v: &Vec<u64>, i: usize)
    requires v[i] == 0, // expect: type error
{
}
//- exec_view
fn first(v: &Vec<u64>) -> bool {
    v@.len() == 0 // expect: mode error
}
//- contains_on_a_vector
fn has(v: &Vec<u64>) -> bool
    requires v.contains(3), // expect: type error
{
    true
}
//- requires_needs_old
fn put(v: &mut Vec<u64>)
    requires v.len() > 0, // expect: type error
{
}
//- literal_vector
fn three() -> (v: Vec<u8>)
    ensures v@ =~= seq![1u8, 2u8, 3u8],
{
    vec![1, 2, 3]
}
//- repeated_vector
fn zeros(n: usize) -> (v: Vec<u8>)
    ensures v.len() == n, forall|i: int| 0 <= i < n ==> v[i] == 0,
{
    vec![0; n]
}
//- slices
fn last(v: &[u8]) -> (x: u8)
    requires v.len() > 0,
    ensures x == v@.last(),
{
    v[v.len() - 1]
}
//- slice_out_of_bounds
fn last(v: &[u8]) -> u8 {
    v[v.len() - 1] // expect: possible arithmetic underflow/overflow
}
