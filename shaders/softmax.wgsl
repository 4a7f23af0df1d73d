// Softmax and log-softmax along one axis, one workgroup a row.
//
//   y[i, j] = exp(x[i, j] − max_j x) / Σ_j exp(x[i, j] − max_j x)      for i < rows, j < len
//   log:      x[i, j] − max_j x − log Σ_j exp(x[i, j] − max_j x)
//
// {{finish}} is an expression of `shifted` (x − max) and `whole` (the sum).
// Words: 0 rows, 1 len, 2 offset of x, 3 stride of x along the axis, 4 stride of y along the axis,
//        5 rank of the rows, 6… sizes, strides of x, strides of y.

@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = i32(group.y * groups.x + group.x);
    if (i >= param(0)) { return; }
    let len = param(1);
    let step = param(3);
    let rank = param(5);
    let source = param(2) + address(i, rank, 6, 6 + rank);
    let dest = address(i, rank, 6, 6 + 2 * rank);

    var largest = x[source];
    for (var j = i32(lane); j < len; j += 64) {
        largest = max(largest, x[source + j * step]);
    }
    part[lane] = largest;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half /= 2u) {
        if (lane < half) { part[lane] = max(part[lane], part[lane + half]); }
        workgroupBarrier();
    }
    largest = part[0];
    workgroupBarrier();

    var sum = 0.0;
    for (var j = i32(lane); j < len; j += 64) {
        sum += exp(x[source + j * step] - largest);
    }
    let whole = total(lane, sum);
    for (var j = i32(lane); j < len; j += 64) {
        let shifted = x[source + j * step] - largest;
        y[dest + j * param(4)] = {{finish}};
    }
}
