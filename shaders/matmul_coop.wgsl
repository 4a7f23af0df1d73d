// Matrix product on matrix units, for matrices large enough to fill tiles: operands are rounded to float16, sums are float32.
//
//   C[s, b] = A[b] · B[b]      A: m × k, B: k × n, C: m × n row-major; b < batch; s the part of k that is summed
//
// Each operand is multiplied by a power of two before it is rounded, which brings its largest element close to the largest
// float16, and the result is divided by both.
// A workgroup of eight subgroups of 32 computes a tile of 64·M × 64·N, going through k in steps of DEPTH by way of workgroup
// memory; while a step is computed, the next one is on its way to registers. A subgroup has FM × FN blocks of 16 × 16; SUBS of
// them lie side by side. Loops over blocks are written out.
// A tile lies in workgroup memory as it does in the tensor: with {{along_a}} = 1 (the tensor is dense along k, or nowhere) line
// by line of A's rows or B's columns, else k by k; matrix units read both. {{vectors_a}} = 1 loads by vectors, which need dense,
// aligned quadruples, which the host checks; the same of B. {{buffers}} = 2 has two steps in workgroup memory and one barrier a
// step. {{direct}} = 1 stores blocks where they belong, which needs rows of C that begin at multiples of 16 bytes; where they
// don't, and at edges ({{edges}} = 1: there are some), blocks go by way of workgroup memory. {{whole}} = 1 where all parts of k
// are whole steps.
// Words: those of matmul_tiled.wgsl.
enable f16;
enable wgpu_cooperative_matrix;

@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
// The same two as vectors.
@group(0) @binding(3) var<storage, read> a4: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> b4: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> scale_a: array<f32>;
@group(0) @binding(6) var<storage, read> scale_b: array<f32>;
@group(0) @binding(7) var<storage, read_write> c: array<f32>;

const M = {{quads_m}};
const N = {{quads_n}};
const SUBS = {{subs}};
const FM = {{blocks_m}};
const FN = {{blocks_n}};
const DEPTH = {{depth}};
// Rows of tiles that are computed together, column by column: they read the same columns of B.
const BAND = 8;
// Vectors from one line, or one k, to the next: 16 bytes more than it takes, so that blocks' rows go to different banks.
const LINE_A = select(16 * M, DEPTH / 4, {{along_a}} == 1) + 2;
const LINE_B = select(16 * N, DEPTH / 4, {{along_b}} == 1) + 2;
// How many of them.
const LINES_A = select(DEPTH, 64 * M, {{along_a}} == 1);
const LINES_B = select(DEPTH, 64 * N, {{along_b}} == 1);
// Vectors from one block of 16 to the next, along k and across.
const K_A = select(16 * LINE_A, 4, {{along_a}} == 1);
const K_B = select(16 * LINE_B, 4, {{along_b}} == 1);
const NEXT_A = select(4, 16 * LINE_A, {{along_a}} == 1);
const NEXT_B = select(4, 16 * LINE_B, {{along_b}} == 1);

var<workgroup> tile_a: array<vec4<f16>, {{buffers}} * LINES_A * LINE_A>;
var<workgroup> tile_b: array<vec4<f16>, {{buffers}} * LINES_B * LINE_B>;
{{for e in 0..edges}}
// A block of each subgroup.
var<workgroup> blocks: array<f32, 8 * 256>;
{{end}}

// Where vector `v` of a tile of `lines` lines lies: (line, k), the first of its elements.
fn place(v: i32, lines: i32, along: bool) -> vec2<i32> {
    if (along) { return vec2<i32>(v / (DEPTH / 4), 4 * (v % (DEPTH / 4))); }
    return vec2<i32>(4 * (v % (lines / 4)), v / (lines / 4));
}

// The same in workgroup memory.
fn slot(p: vec2<i32>, line: i32, along: bool) -> i32 {
    if (along) { return p.x * line + p.y / 4; }
    return p.y * line + p.x / 4;
}

// Where the elements of a place lie: a vector's number, or four elements'. `line` is the stride of lines, `lines` their count,
// `depth` the stride along k. Lines beyond the last are read as the last and not written.
fn address_of(p: vec2<i32>, along: bool, vectors: bool, base: i32, line0: i32, lines: i32, line: i32, depth: i32)
    -> vec4<i32> {
    let start = base + p.y * depth;
    let at = line0 + p.x;
    let four = vec4<i32>(0, 1, 2, 3);
    if (along) {
        let first = start + min(at, lines - 1) * line;
        if (vectors) { return vec4<i32>(first / 4); }
        return first + four * depth;
    }
    if (vectors) { return vec4<i32>((start + min(at, lines - 4)) / 4); }
    return start + min(at + four, vec4<i32>(lines - 1)) * line;
}

// Four elements of A from `at` on, of which `left` are before the end of k; 0 beyond.
fn load_a(at: vec4<i32>, left: i32) -> vec4<f32> {
    var v = vec4<f32>();
    if ({{whole}} == 1 || left > 0) {
        if ({{vectors_a}} == 1) {
            v = a4[at.x];
        } else if ({{whole}} == 1 || {{along_a}} == 0) {
            v = vec4<f32>(a[at.x], a[at.y], a[at.z], a[at.w]);
        } else {
            v.x = a[at.x];
            if (left > 1) { v.y = a[at.y]; }
            if (left > 2) { v.z = a[at.z]; }
            if (left > 3) { v.w = a[at.w]; }
        }
    }
    return v;
}

fn load_b(at: vec4<i32>, left: i32) -> vec4<f32> {
    var v = vec4<f32>();
    if ({{whole}} == 1 || left > 0) {
        if ({{vectors_b}} == 1) {
            v = b4[at.x];
        } else if ({{whole}} == 1 || {{along_b}} == 0) {
            v = vec4<f32>(b[at.x], b[at.y], b[at.z], b[at.w]);
        } else {
            v.x = b[at.x];
            if (left > 1) { v.y = b[at.y]; }
            if (left > 2) { v.z = b[at.z]; }
            if (left > 3) { v.w = b[at.w]; }
        }
    }
    return v;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32, @builtin(subgroup_id) subgroup: u32) {
    let m = param(0);
    let n = param(2);
    let across = (n + 64 * N - 1) / (64 * N);
    let down = (m + 64 * M - 1) / (64 * M);
    let tile = i32(group.y * groups.x + group.x);
    let block = tile / (across * down);
    let batch = block % param(3);
    let part = block / param(3);
    // Workgroups beyond the last part have nothing to add and nowhere to write. They don't return: whatever comes before matrix
    // units must be told to be the same for all.
    let is_part = part < param(11);
    let rows = select(0, m, is_part);
    let place_in_matrix = tile % (across * down);
    let band = place_in_matrix / (BAND * across);
    let place_in_band = place_in_matrix % (BAND * across);
    let rows_of_band = min(BAND, down - band * BAND);
    let row0 = (band * BAND + place_in_band % rows_of_band) * (64 * M);
    let col0 = place_in_band / rows_of_band * (64 * N);
    let rank = param(10);
    let first = part * param(12);
    let base_a = param(4) + address(batch, rank, 13, 13 + rank) + first * param(6);
    let base_b = param(7) + address(batch, rank, 13, 13 + 2 * rank) + first * param(8);
    let end = select(first, min(first + param(12), param(1)), is_part);
    let l = i32(lane);
    // The first of this subgroup's blocks.
    let down0 = i32(subgroup) / SUBS * FM;
    let across0 = i32(subgroup) % SUBS * FN;

    let half_a = scale_a[0];
    let half_b = scale_b[0];
    // One after the other: their product may be more than a float32 holds.
    let whole_a = 1.0 / half_a;
    let whole_b = 1.0 / half_b;

    // What this invocation loads: its places in the tile, where they lie, and how far the next step is.
    let step_a = DEPTH * param(6) / select(1, 4, {{vectors_a}} == 1);
    let step_b = DEPTH * param(8) / select(1, 4, {{vectors_b}} == 1);
{{for i in 0..loads_a}}
    let pa{{i}} = place(l + 256 * {{i}}, 64 * M, {{along_a}} == 1);
    let slot_a{{i}} = slot(pa{{i}}, LINE_A, {{along_a}} == 1);
    var at_a{{i}} = address_of(pa{{i}}, {{along_a}} == 1, {{vectors_a}} == 1, base_a, row0, m, param(5), param(6));
    var next_a{{i}} = vec4<f32>();
{{end}}
{{for i in 0..loads_b}}
    let pb{{i}} = place(l + 256 * {{i}}, 64 * N, {{along_b}} == 1);
    let slot_b{{i}} = slot(pb{{i}}, LINE_B, {{along_b}} == 1);
    var at_b{{i}} = address_of(pb{{i}}, {{along_b}} == 1, {{vectors_b}} == 1, base_b, col0, n, param(9), param(8));
    var next_b{{i}} = vec4<f32>();
{{end}}
{{for i in 0..blocks_m}}{{for j in 0..blocks_n}}
    var s{{i}}{{j}} = coop_mat16x16<f32, C>();
{{end}}{{end}}
{{part load}}
{{for i in 0..loads_a}}
        next_a{{i}} = load_a(at_a{{i}}, end - k1 - pa{{i}}.y);
        at_a{{i}} += step_a;
{{end}}
{{for i in 0..loads_b}}
        next_b{{i}} = load_b(at_b{{i}}, end - k1 - pb{{i}}.y);
        at_b{{i}} += step_b;
{{end}}
{{end load}}
    // Where the step that is computed begins in workgroup memory.
    var start_a = 0;
    var start_b = 0;
    var k1 = first;
    if (first < end) {
        {{load}}
    }
    for (var k0 = first; k0 < end; k0 += DEPTH) {
{{for i in 0..loads_a}}
        tile_a[start_a + slot_a{{i}}] = vec4<f16>(next_a{{i}} * half_a);
{{end}}
{{for i in 0..loads_b}}
        tile_b[start_b + slot_b{{i}}] = vec4<f16>(next_b{{i}} * half_b);
{{end}}
        workgroupBarrier();
        k1 = k0 + DEPTH;
        if (k1 < end) {
            {{load}}
        }
{{for k in 0..slices}}
        {
{{for i in 0..blocks_m}}
            let a{{i}} = {{read_a}}<coop_mat16x16<f16, A>>(&tile_a[start_a + (down0 + {{i}}) * NEXT_A + {{k}} * K_A], LINE_A);
{{end}}
{{for j in 0..blocks_n}}
            let b{{j}} = {{read_b}}<coop_mat16x16<f16, B>>(&tile_b[start_b + (across0 + {{j}}) * NEXT_B + {{k}} * K_B], LINE_B);
{{end}}
{{for i in 0..blocks_m}}{{for j in 0..blocks_n}}
            s{{i}}{{j}} = coopMultiplyAdd(a{{i}}, b{{j}}, s{{i}}{{j}});
{{end}}{{end}}
        }
{{end}}
        if ({{buffers}} == 1) {
            workgroupBarrier();
        } else {
            start_a = LINES_A * LINE_A - start_a;
            start_b = LINES_B * LINE_B - start_b;
        }
    }
    // What a store of a block is given has a name: wgpu 30 doesn't compute it in time otherwise.
    let out = (part * param(3) + batch) * m;
    if ({{direct}} == 1 && row0 + 64 * M <= rows && col0 + 64 * N <= n) {
{{for i in 0..blocks_m}}{{for j in 0..blocks_n}}
        {
            let sums = s{{i}}{{j}} * whole_a * whole_b;
            let at = (out + row0 + (down0 + {{i}}) * 16) * n + col0 + (across0 + {{j}}) * 16;
            coopStoreT(sums, &c[at], n);
        }
{{end}}{{end}}
        return;
    }
{{for e in 0..edges}}
{{for i in 0..blocks_m}}{{for j in 0..blocks_n}}
    {
        let sums = s{{i}}{{j}} * whole_a * whole_b;
        let at = 256 * subgroup;
        workgroupBarrier();
        coopStoreT(sums, &blocks[at], 16);
        workgroupBarrier();
        for (var sub = 0; sub < 8; sub++) {
            let row = row0 + (sub / SUBS * FM + {{i}}) * 16 + l / 16;
            let col = col0 + (sub % SUBS * FN + {{j}}) * 16 + l % 16;
            if (row < rows && col < n) { c[(out + row) * n + col] = blocks[256 * sub + l]; }
        }
    }
{{end}}{{end}}
{{end}}
}
