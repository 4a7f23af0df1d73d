// A sparse linear map along one axis: resizing.
//
//   y[i, o, j] = Σ_k weight[o, k] · x[i, index[o, k], j]      k < taps
//
// One invocation an output element; `table` holds an index and a weight (as bits) for each tap of each o.
// Words: 0 n, 1 taps, 2 outputs along the axis, 3 elements j behind it, 4 offset of x, 5 stride of x along the axis,
//        6 rank, 7… sizes, strides of x (0 along the axis).

@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> table: array<vec2<i32>>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = i32((group.y * groups.x + group.x) * 64u + lane);
    if (i >= param(0)) { return; }
    let rank = param(6);
    let base = param(4) + address(i, rank, 7, 7 + rank);
    let first = i / param(3) % param(2) * param(1);
    var sum = 0.0;
    for (var k = 0; k < param(1); k++) {
        let tap = table[first + k];
        sum = fma(bitcast<f32>(tap.y), x[base + tap.x * param(5)], sum);
    }
    y[i] = sum;
}
