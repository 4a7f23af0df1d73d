// Matrix product, for matrices large enough to fill tiles.
//
//   C[s, b] = A[b] · B[b]      A: m × k, B: k × n, C: m × n row-major; b < batch; s the part of k that is summed
//
// A workgroup of 16 × 16 computes a tile of 64·Q × 64·Q, each invocation Q × Q blocks of 4 × 4 in registers, going through
// k in steps of 16 by way of workgroup memory; while a step is computed, the next one is on its way to registers. Sums
// have names of their own, not places in an array: a driver that doesn't unroll a loop over it keeps it in memory. A and
// B may have any strides (transposes cost nothing). How a tile is loaded is fixed by {{load_a}} and {{load_b}}: 0 by single
// elements, 1 by vectors along k, 2 by vectors along the rows of A or the columns of B. Vectors need dense, aligned
// quadruples, which the host checks. C is written by vectors ({{vectors}} = 1, {{scalars}} = 0) where n is a multiple of 4, else
// by elements (0 and 4).
// Words: 0 m, 1 k, 2 n, 3 batch, 4 offset of A, 5 row stride, 6 column stride, 7…9 the same of B,
//        10 batch rank, 11 parts, 12 k of a part, 13… batch sizes, batch strides of A, batch strides of B.

@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
// The same two as vectors.
@group(0) @binding(3) var<storage, read> a4: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> b4: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> c: array<{{c}}>;

const Q = {{quads}};
const TILE = 64 * Q;
const DEPTH = {{depth}};
const BUFFERS = {{buffers}};
const V = Q * DEPTH / 16;
const QUADS = 16 * Q;    // vectors in a line of a tile
const LINE = QUADS + 1;  // their distance: odd, so that the components of mode 1 go to different banks

var<workgroup> tile_a: array<vec4<f32>, BUFFERS * DEPTH * LINE>; // 16 (k) × 64·Q (rows)
var<workgroup> tile_b: array<vec4<f32>, BUFFERS * DEPTH * LINE>; // 16 (k) × 64·Q (columns)

// Where vector `v` of a tile's 256·Q lies: (line of the tile, first element along k), by vectors along k; pairs of
// neighbours read 32 bytes in a row.
fn place_along_k(v: i32) -> vec2<i32> {
    return vec2<i32>(v / 2 % TILE, v % 2 * 4 + v / (2 * TILE) * 8);
}

// The same by vectors (or four elements) along the other axis: (quadruple of lines, k).
fn place_across_k(v: i32, dense_k: bool) -> vec2<i32> {
    if (dense_k) { return vec2<i32>(v / DEPTH, v % DEPTH); }
    return vec2<i32>(v % QUADS, v / QUADS);
}

fn load_a(base: i32, v: i32, row0: i32, k0: i32, end: i32) -> vec4<f32> {
    var x = vec4<f32>();
    if ({{load_a}} == 1) {
        let p = place_along_k(v);
        if (row0 + p.x < param(0) && k0 + p.y < end) {
            x = a4[(base + (row0 + p.x) * param(5) + k0 + p.y) / 4];
        }
        return x;
    }
    let p = place_across_k(v, param(6) == 1);
    let row = row0 + 4 * p.x;
    if (k0 + p.y >= end) { return x; }
    let at = base + row * param(5) + (k0 + p.y) * param(6);
    if ({{load_a}} == 2) {
        if (row < param(0)) { x = a4[at / 4]; }
        return x;
    }
{{for q in 0..4}}
    if (row + {{q}} < param(0)) { x[{{q}}] = a[at + {{q}} * param(5)]; }
{{end}}
    return x;
}

fn load_b(base: i32, v: i32, col0: i32, k0: i32, end: i32) -> vec4<f32> {
    var x = vec4<f32>();
    if ({{load_b}} == 1) {
        let p = place_along_k(v);
        if (col0 + p.x < param(2) && k0 + p.y < end) {
            x = b4[(base + (col0 + p.x) * param(9) + k0 + p.y) / 4];
        }
        return x;
    }
    let p = place_across_k(v, param(8) == 1 && param(9) != 1);
    let col = col0 + 4 * p.x;
    if (k0 + p.y >= end) { return x; }
    let at = base + col * param(9) + (k0 + p.y) * param(8);
    if ({{load_b}} == 2) {
        if (col < param(2)) { x = b4[at / 4]; }
        return x;
    }
{{for q in 0..4}}
    if (col + {{q}} < param(2)) { x[{{q}}] = b[at + {{q}} * param(9)]; }
{{end}}
    return x;
}

fn store_a(v: i32, x: vec4<f32>, buffer: i32) {
    if ({{load_a}} == 1) {
        let p = place_along_k(v);
{{for q in 0..4}}
        tile_a[buffer + (p.y + {{q}}) * LINE + p.x / 4][p.x % 4] = x[{{q}}];
{{end}}
    } else {
        let p = place_across_k(v, param(6) == 1);
        tile_a[buffer + p.y * LINE + p.x] = x;
    }
}

fn store_b(v: i32, x: vec4<f32>, buffer: i32) {
    if ({{load_b}} == 1) {
        let p = place_along_k(v);
{{for q in 0..4}}
        tile_b[buffer + (p.y + {{q}}) * LINE + p.x / 4][p.x % 4] = x[{{q}}];
{{end}}
    } else {
        let p = place_across_k(v, param(8) == 1 && param(9) != 1);
        tile_b[buffer + p.y * LINE + p.x] = x;
    }
}

// Writes four columns of a row of C whose first row is `out`.
fn write(out: i32, row: i32, col: i32, v: vec4<f32>) {
    let n = param(2);
    if (row >= param(0) || col >= n) { return; }
    let at = (out + row) * n + col;
{{for q in 0..vectors}}
    c[at / 4] = v;
{{end}}
{{for q in 0..scalars}}
    if (col + {{q}} < n) { c[at + {{q}}] = v[{{q}}]; }
{{end}}
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
    let l = i32(lane);
    let y = i32(local.y);
    let x = i32(local.x);

{{for i in 0..loads}}
    var next_a{{i}} = load_a(base_a, l + 256 * {{i}}, row0, first, end);
    var next_b{{i}} = load_b(base_b, l + 256 * {{i}}, col0, first, end);
{{end}}
    // Row r of block (i, j) of this invocation.
{{for i in 0..quads}}{{for j in 0..quads}}{{for r in 0..4}}
    var s{{i}}{{j}}{{r}} = vec4<f32>();
{{end}}{{end}}{{end}}
    var buffer = 0;
    for (var k0 = first; k0 < end; k0 += DEPTH) {
{{for i in 0..loads}}
        store_a(l + 256 * {{i}}, next_a{{i}}, buffer);
        store_b(l + 256 * {{i}}, next_b{{i}}, buffer);
{{end}}
        workgroupBarrier();
        if (k0 + DEPTH < end) {
{{for i in 0..loads}}
            next_a{{i}} = load_a(base_a, l + 256 * {{i}}, row0, k0 + DEPTH, end);
            next_b{{i}} = load_b(base_b, l + 256 * {{i}}, col0, k0 + DEPTH, end);
{{end}}
        }
        for (var k = 0; k < DEPTH; k += {{unroll}}) {
{{for u in 0..unroll}}
            {
                let at = buffer + (k + {{u}}) * LINE;
{{for i in 0..quads}}
                let a{{i}} = tile_a[at + y + 16 * {{i}}];
                let b{{i}} = tile_b[at + x + 16 * {{i}}];
{{end}}
{{for i in 0..quads}}{{for j in 0..quads}}
                s{{i}}{{j}}0 = fma(vec4<f32>(a{{i}}.x), b{{j}}, s{{i}}{{j}}0);
                s{{i}}{{j}}1 = fma(vec4<f32>(a{{i}}.y), b{{j}}, s{{i}}{{j}}1);
                s{{i}}{{j}}2 = fma(vec4<f32>(a{{i}}.z), b{{j}}, s{{i}}{{j}}2);
                s{{i}}{{j}}3 = fma(vec4<f32>(a{{i}}.w), b{{j}}, s{{i}}{{j}}3);
{{end}}{{end}}
            }
{{end}}
        }
        if (BUFFERS == 2) {
            buffer = DEPTH * LINE - buffer;
        } else {
            workgroupBarrier();
        }
    }
    let out = (part * param(3) + batch) * m;
{{for i in 0..quads}}{{for j in 0..quads}}{{for r in 0..4}}
    write(out, row0 + (y + 16 * {{i}}) * 4 + {{r}}, col0 + (x + 16 * {{j}}) * 4, s{{i}}{{j}}{{r}});
{{end}}{{end}}{{end}}
}
