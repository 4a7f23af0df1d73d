// Matrix product, for matrices large enough to fill tiles.
//
//   C[s, b] = A[b] · B[b]      A: m × k, B: k × n, C: m × n row-major; b < batch; s the part of k that is summed
//
// A workgroup of 256 computes a tile of 64·M × 64·N, each invocation M × N blocks of 4 × 4 in registers, going through k in
// steps of DEPTH by way of workgroup memory, which holds two steps: while one is computed, the next one is on its way.
// Loops over registers are written out, and sums have names of their own, not places in an array: a driver that doesn't
// unroll such a loop keeps it in memory. A and B may have any strides (transposes cost nothing). How a tile is loaded is fixed by {{load_a}} and {{load_b}}: 0 by single
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

const M = {{quads_m}};
const N = {{quads_n}};
const DEPTH = {{depth}};
// Vectors from one line of k to the next: odd, so that components of mode 1 go to different banks.
const LINE_A = 16 * M + 1;
const LINE_B = 16 * N + 1;

var<workgroup> tile_a: array<vec4<f32>, 2 * DEPTH * LINE_A>; // DEPTH (k) × 64·M (rows)
var<workgroup> tile_b: array<vec4<f32>, 2 * DEPTH * LINE_B>; // DEPTH (k) × 64·N (columns)

// Where vector `v` of a tile of 64·`quads` lines lies: (line of the tile, first element along k), by vectors along k; pairs
// of neighbours read 32 bytes in a row.
fn place_along_k(v: i32, quads: i32) -> vec2<i32> {
    return vec2<i32>(v / 2 % (64 * quads), v % 2 * 4 + v / (128 * quads) * 8);
}

// The same by vectors (or four elements) along the other axis: (quadruple of lines, k).
fn place_across_k(v: i32, quads: i32, dense_k: bool) -> vec2<i32> {
    if (dense_k) { return vec2<i32>(v / DEPTH, v % DEPTH); }
    return vec2<i32>(v % (16 * quads), v / (16 * quads));
}

fn load_a(base: i32, v: i32, row0: i32, k0: i32, end: i32) -> vec4<f32> {
    var x = vec4<f32>();
    if ({{load_a}} == 1) {
        let p = place_along_k(v, M);
        if (row0 + p.x < param(0) && k0 + p.y < end) {
            x = a4[(base + (row0 + p.x) * param(5) + k0 + p.y) / 4];
        }
        return x;
    }
    let p = place_across_k(v, M, param(6) == 1);
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
        let p = place_along_k(v, N);
        if (col0 + p.x < param(2) && k0 + p.y < end) {
            x = b4[(base + (col0 + p.x) * param(9) + k0 + p.y) / 4];
        }
        return x;
    }
    let p = place_across_k(v, N, param(8) == 1 && param(9) != 1);
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

fn store_a(v: i32, x: vec4<f32>, half: i32) {
    if ({{load_a}} == 1) {
        let p = place_along_k(v, M);
{{for q in 0..4}}
        tile_a[half * DEPTH * LINE_A + (p.y + {{q}}) * LINE_A + p.x / 4][p.x % 4] = x[{{q}}];
{{end}}
    } else {
        let p = place_across_k(v, M, param(6) == 1);
        tile_a[half * DEPTH * LINE_A + p.y * LINE_A + p.x] = x;
    }
}

fn store_b(v: i32, x: vec4<f32>, half: i32) {
    if ({{load_b}} == 1) {
        let p = place_along_k(v, N);
{{for q in 0..4}}
        tile_b[half * DEPTH * LINE_B + (p.y + {{q}}) * LINE_B + p.x / 4][p.x % 4] = x[{{q}}];
{{end}}
    } else {
        let p = place_across_k(v, N, param(8) == 1 && param(9) != 1);
        tile_b[half * DEPTH * LINE_B + p.y * LINE_B + p.x] = x;
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

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let m = param(0);
    let n = param(2);
    let across = (n + 64 * N - 1) / (64 * N);
    let down = (m + 64 * M - 1) / (64 * M);
    let tile = i32(group.y * groups.x + group.x);
    let block = tile / (across * down);
    let batch = block % param(3);
    let part = block / param(3);
    if (part >= param(11)) { return; }
    let row0 = (tile / across) % down * (64 * M);
    let col0 = tile % across * (64 * N);
    let rank = param(10);
    let base_a = param(4) + address(batch, rank, 13, 13 + rank);
    let base_b = param(7) + address(batch, rank, 13, 13 + 2 * rank);
    let first = part * param(12);
    let end = min(first + param(12), param(1));
    let l = i32(lane);
    // 32 invocations, which run together, make a block of 8 × 4: fewer different vectors to read at once.
    let x = l % 8 + l / 32 % 2 * 8;
    let y = l % 32 / 8 + l / 64 * 4;

{{for i in 0..loads_a}}
    store_a(l + 256 * {{i}}, load_a(base_a, l + 256 * {{i}}, row0, first, end), 0);
{{end}}
{{for i in 0..loads_b}}
    store_b(l + 256 * {{i}}, load_b(base_b, l + 256 * {{i}}, col0, first, end), 0);
{{end}}
    workgroupBarrier();
    // Row r of block (i, j) of this invocation.
{{for i in 0..quads_m}}{{for j in 0..quads_n}}{{for r in 0..4}}
    var s{{i}}{{j}}{{r}} = vec4<f32>();
{{end}}{{end}}{{end}}
    var half = 0;
    for (var k0 = first; k0 < end; k0 += DEPTH) {
        let more = k0 + DEPTH < end;
{{for i in 0..loads_a}}
        var next_a{{i}} = vec4<f32>();
        if (more) { next_a{{i}} = load_a(base_a, l + 256 * {{i}}, row0, k0 + DEPTH, end); }
{{end}}
{{for i in 0..loads_b}}
        var next_b{{i}} = vec4<f32>();
        if (more) { next_b{{i}} = load_b(base_b, l + 256 * {{i}}, col0, k0 + DEPTH, end); }
{{end}}
        let at_a = half * DEPTH * LINE_A + y;
        let at_b = half * DEPTH * LINE_B + x;
{{for k in 0..depth}}
        {
{{for i in 0..quads_m}}
            let a{{i}} = tile_a[at_a + {{k}} * LINE_A + 16 * {{i}}];
{{end}}
{{for j in 0..quads_n}}
            let b{{j}} = tile_b[at_b + {{k}} * LINE_B + 16 * {{j}}];
{{end}}
{{for i in 0..quads_m}}{{for j in 0..quads_n}}
            s{{i}}{{j}}0 = fma(vec4<f32>(a{{i}}.x), b{{j}}, s{{i}}{{j}}0);
            s{{i}}{{j}}1 = fma(vec4<f32>(a{{i}}.y), b{{j}}, s{{i}}{{j}}1);
            s{{i}}{{j}}2 = fma(vec4<f32>(a{{i}}.z), b{{j}}, s{{i}}{{j}}2);
            s{{i}}{{j}}3 = fma(vec4<f32>(a{{i}}.w), b{{j}}, s{{i}}{{j}}3);
{{end}}{{end}}
        }
{{end}}
        half = 1 - half;
        if (more) {
{{for i in 0..loads_a}}
            store_a(l + 256 * {{i}}, next_a{{i}}, half);
{{end}}
{{for i in 0..loads_b}}
            store_b(l + 256 * {{i}}, next_b{{i}}, half);
{{end}}
        }
        workgroupBarrier();
    }
    let out = (part * param(3) + batch) * m;
{{for i in 0..quads_m}}{{for j in 0..quads_n}}{{for r in 0..4}}
    write(out, row0 + (y + 16 * {{i}}) * 4 + {{r}}, col0 + (x + 16 * {{j}}) * 4, s{{i}}{{j}}{{r}});
{{end}}{{end}}{{end}}
}
