// Joins tensors along one axis, all parts of one dispatch: Concat.
//
//   y[i, j] = part k [i, j − start of k]      where start of k ≤ j < start of k + 1
//
// One invocation an output element; elements are moved as 32-bit words. `bindings` lists the parts x0, x1…,
// `parts` picks from them by the coordinate `j` along the axis.
// Words: 0 n, 1 rank, 2 the axis, 3 offset of y, 4… sizes, strides of y, then for each part its end along the axis, its
//        offset (as if it began at 0) and its strides.

{{bindings}}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = i32((group.y * groups.x + group.x) * 64u + lane);
    if (i >= param(0)) { return; }
    let rank = param(1);
    let to = param(3) + address(i, rank, 4, 4 + rank);
    var j = i;
    for (var d = rank - 1; d > param(2); d--) { j = j / param(4 + d); }
    j = j % param(4 + param(2));
    let parts = 4 + 2 * rank;
    var v = 0u;
{{parts}}
    y[to] = v;
}
