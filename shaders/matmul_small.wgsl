// Matrix product, for matrices too small or too thin to fill tiles: one invocation an element of C.
//
//   C[s, b] = A[b] · B[b]      A: m × k, B: k × n, C: m × n row-major; b < batch; s the part of k that is summed
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
    let block = i / (m * n);
    let batch = block % param(3);
    let part = block / param(3);
    if (part >= param(11)) { return; }
    let row = i / n % m;
    let col = i % n;
    let rank = param(10);
    let step_a = param(6);
    let step_b = param(8);
    let first = part * param(12);
    var at_a = param(4) + address(batch, rank, 13, 13 + rank) + row * param(5) + first * step_a;
    var at_b = param(7) + address(batch, rank, 13, 13 + 2 * rank) + col * param(9) + first * step_b;
    var sum = 0.0;
    for (var j = min(param(12), param(1) - first); j > 0; j--) {
        sum = fma(a[at_a], b[at_b], sum);
        at_a += step_a;
        at_b += step_b;
    }
    c[i] = sum;
}
