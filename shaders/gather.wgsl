// Picks elements by index: Gather, GatherElements, GatherND.
//
//   y[i] = x[a_x(i) + Σ_k index[a_i(i) + k·s] · stride_k]      for i < n, k < components
//
// One invocation an output element; elements are moved as 32-bit words. Negative indices count from the end,
// and what is still out of range is moved to the nearest end.
// Words: 0 n, 1 rank, 2 offset of x, 3 offset of index, 4 components, 5 s (stride between components),
//        6… sizes, strides of x, strides of index (rank words each), sizes of the indexed axes, their strides.

@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read> index: array<i32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = i32((group.y * groups.x + group.x) * 64u + lane);
    if (i >= param(0)) { return; }
    let rank = param(1);
    let components = param(4);
    let axes = 6 + 3 * rank;
    var at = param(2) + address(i, rank, 6, 6 + rank);
    let base = param(3) + address(i, rank, 6, 6 + 2 * rank);
    for (var k = 0; k < components; k++) {
        let size = param(axes + k);
        var j = index[base + k * param(5)];
        j = clamp(select(j, j + size, j < 0), 0, size - 1);
        at += j * param(axes + components + k);
    }
    y[i] = x[at];
}
