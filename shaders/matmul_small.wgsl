// Matrix product, for matrices too small or too thin to fill tiles: one invocation an element of C.
//
//   C[b] = A[b] · B[b]      A: m × k, B: k × n, C: m × n row-major; b < batch
//
// Words as in matmul_tiled.wgsl.

@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read_write> c: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = i32((group.y * groups.x + group.x) * 64u + lane);
    let m = param(0);
    let n = param(2);
    let batch = i / (m * n);
    if (batch >= param(3)) { return; }
    let row = i / n % m;
    let col = i % n;
    let rank = param(10);
    var at_a = param(4) + address(batch, rank, 11, 11 + rank) + row * param(5);
    var at_b = param(7) + address(batch, rank, 11, 11 + 2 * rank) + col * param(9);
    let step_a = param(6);
    let step_b = param(8);
    var sum = 0.0;
    for (var j = param(1); j > 0; j--) {
        sum = fma(a[at_a], b[at_b], sum);
        at_a += step_a;
        at_b += step_b;
    }
    c[i] = sum;
}
