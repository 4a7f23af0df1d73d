// Matrix product, for matrices large enough to fill tiles.
//
//   C[b] = A[b] · B[b]      A: m × k, B: k × n, C: m × n row-major; b < batch
//
// A workgroup of 16 × 16 computes a 64 × 64 tile of C, each invocation 4 rows by 4 columns (16 apart), going
// through k in steps of 16 by way of workgroup memory. A and B may have any strides (transposes cost nothing);
// tiles are loaded along whichever dimension is dense.
// Words: 0 m, 1 k, 2 n, 3 batch, 4 offset of A, 5 row stride, 6 column stride, 7…9 the same of B,
//        10 batch rank, 11… batch sizes, batch strides of A, batch strides of B.

@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read_write> c: array<f32>;

var<workgroup> tile_a: array<f32, 1024>; // 16 (k) × 64 (rows)
var<workgroup> tile_b: array<f32, 1024>; // 16 (k) × 64 (columns)

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_id) local: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let m = param(0);
    let k = param(1);
    let n = param(2);
    let across = (n + 63) / 64;
    let down = (m + 63) / 64;
    let tile = i32(group.y * groups.x + group.x);
    let batch = tile / (across * down);
    if (batch >= param(3)) { return; }
    let row0 = (tile / across) % down * 64;
    let col0 = tile % across * 64;
    let rank = param(10);
    let base_a = param(4) + address(batch, rank, 11, 11 + rank);
    let base_b = param(7) + address(batch, rank, 11, 11 + 2 * rank);
    let a_dense_in_k = param(6) == 1;
    let b_dense_in_k = param(8) == 1 && param(9) != 1;

    var sum: array<vec4<f32>, 4>;
    for (var k0 = 0; k0 < k; k0 += 16) {
        for (var q = 0; q < 4; q++) {
            let e = i32(lane) + q * 256;
            let ak = select(e / 64, e % 16, a_dense_in_k);
            let ar = select(e % 64, e / 16, a_dense_in_k);
            var va = 0.0;
            if (row0 + ar < m && k0 + ak < k) {
                va = a[base_a + (row0 + ar) * param(5) + (k0 + ak) * param(6)];
            }
            tile_a[ak * 64 + ar] = va;
            let bk = select(e / 64, e % 16, b_dense_in_k);
            let bc = select(e % 64, e / 16, b_dense_in_k);
            var vb = 0.0;
            if (k0 + bk < k && col0 + bc < n) {
                vb = b[base_b + (k0 + bk) * param(8) + (col0 + bc) * param(9)];
            }
            tile_b[bk * 64 + bc] = vb;
        }
        workgroupBarrier();
        for (var j = 0u; j < 16u; j++) {
            let at = j * 64u + local.x;
            let row = j * 64u + local.y * 4u;
            let vb = vec4<f32>(tile_b[at], tile_b[at + 16u], tile_b[at + 32u], tile_b[at + 48u]);
            sum[0] = fma(vec4<f32>(tile_a[row]), vb, sum[0]);
            sum[1] = fma(vec4<f32>(tile_a[row + 1u]), vb, sum[1]);
            sum[2] = fma(vec4<f32>(tile_a[row + 2u]), vb, sum[2]);
            sum[3] = fma(vec4<f32>(tile_a[row + 3u]), vb, sum[3]);
        }
        workgroupBarrier();
    }
    for (var q = 0; q < 4; q++) {
        let row = row0 + i32(local.y) * 4 + q;
        for (var p = 0; p < 4; p++) {
            let col = col0 + i32(local.x) + 16 * p;
            if (row < m && col < n) {
                c[(batch * m + row) * n + col] = sum[q][p];
            }
        }
    }
}
