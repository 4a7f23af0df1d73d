// Running sums along one axis, one invocation a row.
//
//   y[i, j] = Σ_{k ≤ j} x[i, k]      (k < j where exclusive), i < rows, j < len
//
// Words: 0 rows, 1 len, 2 offset of x, 3 stride of x along the axis, 4 offset of y, 5 stride of y along the axis,
//        6 exclusive, 7 rank of the rows, 8… sizes, strides of x, strides of y. Strides are negative for sums
//        from the end.

@group(0) @binding(1) var<storage, read> x: array<{{type}}>;
@group(0) @binding(2) var<storage, read_write> y: array<{{type}}>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = i32((group.y * groups.x + group.x) * 64u + lane);
    if (i >= param(0)) { return; }
    let rank = param(7);
    var source = param(2) + address(i, rank, 8, 8 + rank);
    var dest = param(4) + address(i, rank, 8, 8 + 2 * rank);
    var sum = {{type}}(0);
    for (var j = 0; j < param(1); j++) {
        let next = sum + x[source];
        y[dest] = select(next, sum, param(6) != 0);
        sum = next;
        source += param(3);
        dest += param(5);
    }
}
