// Layer and RMS normalisation along rows, one workgroup a row.
//
//   y[i, j] = (x[i, j] − mean_i) · inverse_i · scale[j] + bias[j]      inverse_i = 1 / √(mean_j (x[i, j] − mean_i)² + ε)
//
// {{centre}} = 1 subtracts the mean; 0 takes it for 0 (RMS).
// Words: 0 rows, 1 len, 2 offset of x, 3 stride of x from row to row, 4 ε (bits), 5 offset of scale, 6 its stride along j,
//        7 offset of bias, 8 its stride.

@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> scale: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
@group(0) @binding(5) var<storage, read_write> means: array<f32>;
@group(0) @binding(6) var<storage, read_write> inverses: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = i32(group.y * groups.x + group.x);
    if (i >= param(0)) { return; }
    let len = param(1);
    let base = param(2) + i * param(3);
    var sum = 0.0;
    if ({{centre}} == 1) {
        for (var j = i32(lane); j < len; j += 64) { sum += x[base + j]; }
    }
    let mean = total(lane, sum) / f32(len);
    var squares = 0.0;
    for (var j = i32(lane); j < len; j += 64) {
        let d = x[base + j] - mean;
        squares = fma(d, d, squares);
    }
    let inverse = 1.0 / sqrt(total(lane, squares) / f32(len) + param_f32(4));
    for (var j = i32(lane); j < len; j += 64) {
        let normal = (x[base + j] - mean) * inverse;
        y[i * len + j] = normal * scale[param(5) + j * param(6)] + bias[param(7) + j * param(8)];
    }
    if (lane == 0u) {
        means[i] = mean;
        inverses[i] = inverse;
    }
}
