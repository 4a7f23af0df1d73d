// The k best elements along one axis, in order: TopK.
//
//   rank(j) = how many elements are better than x[i, j], or equal and before it;  values[i, rank(j)] = x[i, j]
//
// One invocation an element. {{better}} compares a candidate `u` with the element `v`.
// Words: 0 n (rows · len), 1 len, 2 k, 3 offset of x, 4 stride of x along the axis, 5 stride of the outputs along it,
//        6 rank of the rows, 7… sizes, strides of x, strides of the outputs.

@group(0) @binding(1) var<storage, read> x: array<{{type}}>;
@group(0) @binding(2) var<storage, read_write> values: array<{{type}}>;
@group(0) @binding(3) var<storage, read_write> indices: array<i32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = i32((group.y * groups.x + group.x) * 64u + lane);
    if (i >= param(0)) { return; }
    let len = param(1);
    let row = i / len;
    let j = i % len;
    let rank = param(6);
    let source = param(3) + address(row, rank, 7, 7 + rank);
    let v = x[source + j * param(4)];
    var before = 0;
    for (var o = 0; o < len; o++) {
        let u = x[source + o * param(4)];
        if ({{better}} || (u == v && o < j)) { before++; }
    }
    if (before < param(2)) {
        let to = address(row, rank, 7, 7 + 2 * rank) + before * param(5);
        values[to] = v;
        indices[to] = j;
    }
}
