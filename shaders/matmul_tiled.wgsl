// Matrix product, for matrices large enough to fill tiles.
//
//   C[s, b] = A[b] · B[b]      A: m × k, B: k × n, C: m × n row-major; b < batch; s the part of k that is summed
//
// A workgroup of 256 computes a tile of 64·M × 64·N, each invocation M × N blocks of 4 × 4 in registers, going through k in
// steps of DEPTH by way of workgroup memory; while a step is computed, the next one is on its way to registers.
// Loops over registers are written out, and sums have names of their own, not places in an array: a driver that doesn't
// unroll such a loop keeps it in memory. A and B may have any strides (transposes cost nothing). How a tile is loaded is fixed by {{load_a}} and {{load_b}}: 0 by single
// elements, 1 by vectors along k, 2 by vectors along the rows of A or the columns of B. Vectors need dense, aligned
// quadruples, which the host checks. C is written by vectors ({{vectors}} = 1, {{scalars}} = 0) where n is a multiple of 4, else
// by elements (0 and 4). {{whole}} = 1 where all parts of k are whole steps.
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
const DEPTH = 16;
// Vectors from one line of k to the next: odd, so that components of mode 1 go to different banks.
const LINE_A = 16 * M + 1;
const LINE_B = 16 * N + 1;

var<workgroup> tile_a: array<vec4<f32>, DEPTH * LINE_A>; // DEPTH (k) × 64·M (rows)
var<workgroup> tile_b: array<vec4<f32>, DEPTH * LINE_B>; // DEPTH (k) × 64·N (columns)

// Where vector `v` of a tile of 64·`quads` lines lies: (line of the tile, first element along k), by vectors along k; pairs
// of neighbours read 32 bytes in a row.
fn place_along_k(v: i32, quads: i32) -> vec2<i32> {
    return vec2<i32>(v / 2 % (64 * quads), v % 2 * 4 + v / (128 * quads) * 8);
}

// The same by vectors (or four elements) along the other axis: (first line, k).
fn place_across_k(v: i32, quads: i32, dense_k: bool) -> vec2<i32> {
    if (dense_k) { return vec2<i32>(4 * (v / DEPTH), v % DEPTH); }
    return vec2<i32>(4 * (v % (16 * quads)), v / (16 * quads));
}

fn place_a(v: i32) -> vec2<i32> {
    if ({{load_a}} == 1) { return place_along_k(v, M); }
    return place_across_k(v, M, param(6) == 1);
}

fn place_b(v: i32) -> vec2<i32> {
    if ({{load_b}} == 1) { return place_along_k(v, N); }
    return place_across_k(v, N, param(8) == 1 && param(9) != 1);
}

// Four elements of A from `at` on; 0 beyond the end of k. Lines beyond the last are read as the last and not written.
fn load_a(at: vec4<i32>, inside: bool) -> vec4<f32> {
    var v = vec4<f32>();
    if (inside) {
        if ({{load_a}} != 0) { v = a4[at.x]; } else { v = vec4<f32>(a[at.x], a[at.y], a[at.z], a[at.w]); }
    }
    return v;
}

fn load_b(at: vec4<i32>, inside: bool) -> vec4<f32> {
    var v = vec4<f32>();
    if (inside) {
        if ({{load_b}} != 0) { v = b4[at.x]; } else { v = vec4<f32>(b[at.x], b[at.y], b[at.z], b[at.w]); }
    }
    return v;
}

// Where the elements of a place lie: a vector's number, or four elements'. `line` is the stride of lines, `lines` their
// count, `depth` the stride along k.
fn address_of(p: vec2<i32>, load: i32, base: i32, line0: i32, lines: i32, line: i32, k: i32, depth: i32) -> vec4<i32> {
    let along = base + (k + p.y) * depth;
    if (load == 1) { return vec4<i32>((along + min(line0 + p.x, lines - 1) * line) / 4); }
    if (load == 2) { return vec4<i32>((along + min(line0 + p.x, lines - 4)) / 4); }
    return along + min(vec4<i32>(line0 + p.x) + vec4<i32>(0, 1, 2, 3), vec4<i32>(lines - 1)) * line;
}

fn store_a(p: vec2<i32>, x: vec4<f32>) {
    if ({{load_a}} == 1) {
{{for q in 0..4}}
        tile_a[(p.y + {{q}}) * LINE_A + p.x / 4][p.x % 4] = x[{{q}}];
{{end}}
    } else {
        tile_a[p.y * LINE_A + p.x / 4] = x;
    }
}

fn store_b(p: vec2<i32>, x: vec4<f32>) {
    if ({{load_b}} == 1) {
{{for q in 0..4}}
        tile_b[(p.y + {{q}}) * LINE_B + p.x / 4][p.x % 4] = x[{{q}}];
{{end}}
    } else {
        tile_b[p.y * LINE_B + p.x / 4] = x;
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

    // What this invocation loads: its places in the tile, where they lie, and how far the next step is.
    let step_a = DEPTH * param(6) / select(4, 1, {{load_a}} == 0);
    let step_b = DEPTH * param(8) / select(4, 1, {{load_b}} == 0);
{{for i in 0..loads_a}}
    let pa{{i}} = place_a(l + 256 * {{i}});
    var at_a{{i}} = address_of(pa{{i}}, {{load_a}}, base_a, row0, m, param(5), first, param(6));
    var next_a{{i}} = vec4<f32>();
{{end}}
{{for i in 0..loads_b}}
    let pb{{i}} = place_b(l + 256 * {{i}});
    var at_b{{i}} = address_of(pb{{i}}, {{load_b}}, base_b, col0, n, param(9), first, param(8));
    var next_b{{i}} = vec4<f32>();
{{end}}
    // Row r of block (i, j) of this invocation.
{{for i in 0..quads_m}}{{for j in 0..quads_n}}{{for r in 0..4}}
    var s{{i}}{{j}}{{r}} = vec4<f32>();
{{end}}{{end}}{{end}}
{{part load}}
{{for i in 0..loads_a}}
        next_a{{i}} = load_a(at_a{{i}}, {{whole}} == 1 || k1 + pa{{i}}.y < end);
        at_a{{i}} += step_a;
{{end}}
{{for i in 0..loads_b}}
        next_b{{i}} = load_b(at_b{{i}}, {{whole}} == 1 || k1 + pb{{i}}.y < end);
        at_b{{i}} += step_b;
{{end}}
{{end load}}
    var k1 = first;
    if (first < end) {
        {{load}}
    }
    for (var k0 = first; k0 < end; k0 += DEPTH) {
{{for i in 0..loads_a}}
        store_a(pa{{i}}, next_a{{i}});
{{end}}
{{for i in 0..loads_b}}
        store_b(pb{{i}}, next_b{{i}});
{{end}}
        workgroupBarrier();
        k1 = k0 + DEPTH;
        if (k1 < end) {
            {{load}}
        }
{{for k in 0..16}}
        {
{{for i in 0..quads_m}}
            let a{{i}} = tile_a[{{k}} * LINE_A + y + 16 * {{i}}];
{{end}}
{{for j in 0..quads_n}}
            let b{{j}} = tile_b[{{k}} * LINE_B + x + 16 * {{j}}];
{{end}}
{{for i in 0..quads_m}}{{for j in 0..quads_n}}
            s{{i}}{{j}}0 = a{{i}}.x * b{{j}} + s{{i}}{{j}}0;
            s{{i}}{{j}}1 = a{{i}}.y * b{{j}} + s{{i}}{{j}}1;
            s{{i}}{{j}}2 = a{{i}}.z * b{{j}} + s{{i}}{{j}}2;
            s{{i}}{{j}}3 = a{{i}}.w * b{{j}} + s{{i}}{{j}}3;
{{end}}{{end}}
        }
{{end}}
        workgroupBarrier();
    }
    let out = (part * param(3) + batch) * m;
{{for i in 0..quads_m}}{{for j in 0..quads_n}}{{for r in 0..4}}
    write(out, row0 + (y + 16 * {{i}}) * 4 + {{r}}, col0 + (x + 16 * {{j}}) * 4, s{{i}}{{j}}{{r}});
{{end}}{{end}}{{end}}
}
