// Sums over sliding windows (see window.wgsl) as a tiled matrix product whose right side is read straight from the
// image: nothing is unfolded in memory.
//
// A workgroup of 16 × 16 computes 64·R rows (output channels) by 64·C columns (windows), each invocation R × C blocks of
// 4 by 4 in registers, going through the taps in steps of 16 by way of workgroup memory; while a step is computed, the
// next one is on its way to registers. Neighbours in memory are read by neighbouring invocations: along columns
// ({{along_taps}} = 0: an invocation reads one column, whose place is worked out once) or along taps (1: the gradient of
// weights, whose taps are places of the image). {{padded}} = 0 where every window is inside the image.

const R = {{quads_r}};
const C = {{quads_c}};
const LINE_R = 16 * R + 1; // vectors from one tap to the next; odd, so that they begin in different banks
const LINE_C = 16 * C + 1;

var<workgroup> tile_w: array<vec4<f32>, 16 * LINE_R>; // 16 (taps) × 64·R (rows)
var<workgroup> tile_x: array<vec4<f32>, 16 * LINE_C>; // 16 (taps) × 64·C (columns)

// Rows row … row + 3 at tap t.
fn rows_of_w(base: i32, row: i32, t: i32, end: i32) -> vec4<f32> {
    var v = vec4<f32>();
    if (t >= end) { return v; }
    let at = base + row * param(7) + taps[t].x;
{{for q in 0..4}}
    if (row + {{q}} < param(0)) { v[{{q}}] = w[at + {{q}} * param(7)]; }
{{end}}
    return v;
}

fn image(c: Column, base: i32, tap: vec4<i32>) -> f32 {
    if ({{padded}} == 0) { return x[base + c.origin + tap.y]; }
    return seen(c, base, tap);
}

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_id) local: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let rows = param(0);
    let columns = param(2);
    let across = (columns + 64 * C - 1) / (64 * C);
    let down = (rows + 64 * R - 1) / (64 * R);
    let tile = i32(group.y * groups.x + group.x);
    let block = tile / (across * down);
    let g = block % param(3);
    let s = block / param(3);
    if (s >= param(4)) { return; }
    // Tiles that follow each other share columns: images are larger than weights.
    let row0 = tile % down * (64 * R);
    let col0 = (tile / down) % across * (64 * C);
    let base_w = param(6) + g * param(8);
    let base_x = param(9) + g * param(10);
    let first = s * param(5);
    let end = min(first + param(5), param(1));
    let l = i32(lane);
    let i_y = i32(local.y);
    let i_x = i32(local.x);

    // Across columns: the column of this invocation, and the first of its taps.
    let own = col0 + l % (64 * C);
    let inside = own < columns;
    let mine = column(select(0, own, inside));
    let tap0 = l / (64 * C);
    // Along taps: its four columns.
{{for q in 0..along_taps}}
    let quad = col0 + l / 16 * 4;
    let c0 = column(min(quad, columns - 1));
    let c1 = column(min(quad + 1, columns - 1));
    let c2 = column(min(quad + 2, columns - 1));
    let c3 = column(min(quad + 3, columns - 1));
{{end}}

{{for i in 0..quads_r}}
    var next_w{{i}} = rows_of_w(base_w, row0 + (l / 16 + 16 * {{i}}) * 4, first + l % 16, end);
{{end}}
{{for q in 0..columns_read}}
    var next_x{{q}} = 0.0;
    if (inside && first + tap0 + 4 / C * {{q}} < end) {
        next_x{{q}} = image(mine, base_x, taps[first + tap0 + 4 / C * {{q}}]);
    }
{{end}}
{{for q in 0..along_taps}}
    var next_v = vec4<f32>();
    if (first + l % 16 < end) {
        let tap = taps[first + l % 16];
        next_v = vec4<f32>(image(c0, base_x, tap), image(c1, base_x, tap), image(c2, base_x, tap), image(c3, base_x, tap));
    }
{{end}}
{{for i in 0..quads_r}}{{for j in 0..quads_c}}{{for r in 0..4}}
    var s{{i}}{{j}}{{r}} = vec4<f32>();
{{end}}{{end}}{{end}}
    for (var t0 = first; t0 < end; t0 += 16) {
{{for i in 0..quads_r}}
        tile_w[l % 16 * LINE_R + l / 16 + 16 * {{i}}] = next_w{{i}};
{{end}}
{{for q in 0..columns_read}}
        tile_x[(tap0 + 4 / C * {{q}}) * LINE_C + l % (64 * C) / 4][l % 4] = next_x{{q}};
{{end}}
{{for q in 0..along_taps}}
        tile_x[l % 16 * LINE_C + l / 16] = next_v;
{{end}}
        workgroupBarrier();
        let t1 = t0 + 16;
        if (t1 < end) {
{{for i in 0..quads_r}}
            next_w{{i}} = rows_of_w(base_w, row0 + (l / 16 + 16 * {{i}}) * 4, t1 + l % 16, end);
{{end}}
{{for q in 0..columns_read}}
            next_x{{q}} = 0.0;
            if (inside && t1 + tap0 + 4 / C * {{q}} < end) {
                next_x{{q}} = image(mine, base_x, taps[t1 + tap0 + 4 / C * {{q}}]);
            }
{{end}}
{{for q in 0..along_taps}}
            next_v = vec4<f32>();
            if (t1 + l % 16 < end) {
                let tap = taps[t1 + l % 16];
                next_v = vec4<f32>(image(c0, base_x, tap), image(c1, base_x, tap), image(c2, base_x, tap), image(c3, base_x, tap));
            }
{{end}}
        }
        for (var k = 0; k < 16; k++) {
{{for i in 0..quads_r}}
            let a{{i}} = tile_w[k * LINE_R + i_y + 16 * {{i}}];
{{end}}
{{for j in 0..quads_c}}
            let b{{j}} = tile_x[k * LINE_C + i_x + 16 * {{j}}];
{{end}}
{{for i in 0..quads_r}}{{for j in 0..quads_c}}
            s{{i}}{{j}}0 = fma(vec4<f32>(a{{i}}.x), b{{j}}, s{{i}}{{j}}0);
            s{{i}}{{j}}1 = fma(vec4<f32>(a{{i}}.y), b{{j}}, s{{i}}{{j}}1);
            s{{i}}{{j}}2 = fma(vec4<f32>(a{{i}}.z), b{{j}}, s{{i}}{{j}}2);
            s{{i}}{{j}}3 = fma(vec4<f32>(a{{i}}.w), b{{j}}, s{{i}}{{j}}3);
{{end}}{{end}}
        }
        workgroupBarrier();
    }
    let base_y = param(11) + s * param(14) + g * param(12);
{{for j in 0..quads_c}}{{for q in 0..4}}
    {
        let col = col0 + (i_x + 16 * {{j}}) * 4 + {{q}};
        if (col < columns) {
            let to = base_y + column(col).dest;
{{for i in 0..quads_r}}{{for r in 0..4}}
            {
                let row = row0 + (i_y + 16 * {{i}}) * 4 + {{r}};
                if (row < rows) { y[to + row * param(13)] = s{{i}}{{j}}{{r}}[{{q}}]; }
            }
{{end}}{{end}}
        }
    }
{{end}}{{end}}
}
