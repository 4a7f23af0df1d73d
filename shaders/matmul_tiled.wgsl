// Matrix product, for matrices large enough to fill tiles.
//
//   C[s, b] = A[b] · B[b]      A: m × k, B: k × n, C: m × n row-major; b < batch; s the part of k that is summed
//
// A workgroup of 16 × 16 computes a tile of 64·Q × 64·Q, each invocation Q × Q blocks of 4 × 4 in registers, going through
// k in steps of 16 by way of workgroup memory. A and B may have any strides (transposes cost nothing). How a tile is
// loaded is fixed by {{load_a}} and {{load_b}}: 0 by single elements, 1 by vectors along k (turned round in registers),
// 2 by vectors along the rows of A or the columns of B. Vectors need dense, aligned quadruples, which the host checks.
// Words: 0 m, 1 k, 2 n, 3 batch, 4 offset of A, 5 row stride, 6 column stride, 7…9 the same of B,
//        10 batch rank, 11 parts, 12 k of a part, 13… batch sizes, batch strides of A, batch strides of B.

@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
// The same two as vectors.
@group(0) @binding(3) var<storage, read> a4: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> b4: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> c: array<f32>;

const Q = {{quads}};
const TILE = 64 * Q;
const LINE = 16 * Q; // vectors in a line of a tile

var<workgroup> tile_a: array<vec4<f32>, 16 * LINE>; // 16 (k) × 64·Q (rows)
var<workgroup> tile_b: array<vec4<f32>, 16 * LINE>; // 16 (k) × 64·Q (columns)

// Rows row … row + 3 of A in column k.
fn rows_of_a(base: i32, row: i32, k: i32, end: i32) -> vec4<f32> {
    var v = vec4<f32>();
    if (k >= end) { return v; }
    let at = base + row * param(5) + k * param(6);
    if ({{load_a}} == 2) {
        if (row < param(0)) { v = a4[at / 4]; }
        return v;
    }
    for (var q = 0; q < 4; q++) {
        if (row + q < param(0)) { v[q] = a[at + q * param(5)]; }
    }
    return v;
}

// Columns col … col + 3 of B in row k.
fn columns_of_b(base: i32, col: i32, k: i32, end: i32) -> vec4<f32> {
    var v = vec4<f32>();
    if (k >= end) { return v; }
    let at = base + col * param(9) + k * param(8);
    if ({{load_b}} == 2) {
        if (col < param(2)) { v = b4[at / 4]; }
        return v;
    }
    for (var q = 0; q < 4; q++) {
        if (col + q < param(2)) { v[q] = b[at + q * param(9)]; }
    }
    return v;
}

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_id) local: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let m = param(0);
    let n = param(2);
    let across = (n + TILE - 1) / TILE;
    let down = (m + TILE - 1) / TILE;
    let tile = i32(group.y * groups.x + group.x);
    let block = tile / (across * down);
    let batch = block % param(3);
    let part = block / param(3);
    if (part >= param(11)) { return; }
    let row0 = (tile / across) % down * TILE;
    let col0 = tile % across * TILE;
    let rank = param(10);
    let base_a = param(4) + address(batch, rank, 13, 13 + rank);
    let base_b = param(7) + address(batch, rank, 13, 13 + 2 * rank);
    let first = part * param(12);
    let end = min(first + param(12), param(1));
    let a_along_k = param(6) == 1;
    let b_along_k = param(8) == 1 && param(9) != 1;
    let l = i32(lane);

    var sum: array<vec4<f32>, 4 * Q * Q>;
    for (var k0 = first; k0 < end; k0 += 16) {
        if ({{load_a}} == 1) {
            // A block of 4 rows by 4 of k, turned round.
            if (l < 64 * Q) {
                let k = l % 4 * 4;
                let row = l / 4 * 4;
                var lines: array<vec4<f32>, 4>;
                for (var q = 0; q < 4; q++) {
                    if (row0 + row + q < m && k0 + k < end) {
                        lines[q] = a4[(base_a + (row0 + row + q) * param(5) + k0 + k) / 4];
                    }
                }
                for (var q = 0; q < 4; q++) {
                    tile_a[(k + q) * LINE + row / 4] = vec4<f32>(lines[0][q], lines[1][q], lines[2][q], lines[3][q]);
                }
            }
        } else {
            for (var i = 0; i < Q; i++) {
                let k = select(l / 16, l % 16, a_along_k);
                let quad = select(l % 16, l / 16, a_along_k) + 16 * i;
                tile_a[k * LINE + quad] = rows_of_a(base_a, row0 + quad * 4, k0 + k, end);
            }
        }
        if ({{load_b}} == 1) {
            if (l < 64 * Q) {
                let k = l % 4 * 4;
                let col = l / 4 * 4;
                var lines: array<vec4<f32>, 4>;
                for (var q = 0; q < 4; q++) {
                    if (col0 + col + q < n && k0 + k < end) {
                        lines[q] = b4[(base_b + (col0 + col + q) * param(9) + k0 + k) / 4];
                    }
                }
                for (var q = 0; q < 4; q++) {
                    tile_b[(k + q) * LINE + col / 4] = vec4<f32>(lines[0][q], lines[1][q], lines[2][q], lines[3][q]);
                }
            }
        } else {
            for (var i = 0; i < Q; i++) {
                let k = select(l / 16, l % 16, b_along_k);
                let quad = select(l % 16, l / 16, b_along_k) + 16 * i;
                tile_b[k * LINE + quad] = columns_of_b(base_b, col0 + quad * 4, k0 + k, end);
            }
        }
        workgroupBarrier();
        for (var k = 0; k < 16; k++) {
            for (var i = 0; i < Q; i++) {
                let va = tile_a[k * LINE + i32(local.y) + 16 * i];
                for (var j = 0; j < Q; j++) {
                    let vb = tile_b[k * LINE + i32(local.x) + 16 * j];
                    let at = 4 * (i * Q + j);
                    sum[at] = fma(vec4<f32>(va.x), vb, sum[at]);
                    sum[at + 1] = fma(vec4<f32>(va.y), vb, sum[at + 1]);
                    sum[at + 2] = fma(vec4<f32>(va.z), vb, sum[at + 2]);
                    sum[at + 3] = fma(vec4<f32>(va.w), vb, sum[at + 3]);
                }
            }
        }
        workgroupBarrier();
    }
    let out = (part * param(3) + batch) * m;
    for (var i = 0; i < Q; i++) {
        for (var j = 0; j < Q; j++) {
            for (var r = 0; r < 4; r++) {
                let row = row0 + (i32(local.y) + 16 * i) * 4 + r;
                for (var q = 0; q < 4; q++) {
                    let col = col0 + (i32(local.x) + 16 * j) * 4 + q;
                    if (row < m && col < n) {
                        c[(out + row) * n + col] = sum[4 * (i * Q + j) + r][q];
                    }
                }
            }
        }
    }
}
