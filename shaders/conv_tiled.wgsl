// Sums over sliding windows (see window.wgsl) as a tiled matrix product whose right side is read straight from the
// image: nothing is unfolded in memory.
//
// A workgroup of 256 computes 64·R rows (output channels) by 64·C columns (windows), each invocation R × C blocks of 4 × 4
// in registers, going through the taps in steps of DEPTH by way of workgroup memory; while a step is computed, the next one is
// on its way to registers. Where an element lies is a sum of what belongs to its line, worked out once, and of what belongs
// to its tap, read from the table. Steps are whole: what is missing behind the last tap are taps that no window sees. Neighbours
// in memory are read by neighbouring invocations: along columns ({{along_taps}} = 0) or along taps (1: the gradient of
// weights, whose taps are places of the image). Lines beyond the last are read as the last and not written.
// Y is written by vectors ({{vectors}} = 1, {{scalars}} = 0) where four columns are neighbours, else by elements (0 and 4).
// Here word 1 counts the taps of the table, missing ones included.

@group(0) @binding(4) var<storage, read_write> y: array<{{y}}>;

const R = {{quads_r}};
const C = {{quads_c}};
const DEPTH = 16;
const LINE_R = 16 * R + 1; // vectors from one tap to the next; odd, so that they begin in different banks
const LINE_C = 16 * C + 1;

var<workgroup> tile_w: array<vec4<f32>, DEPTH * LINE_R>; // DEPTH (taps) × 64·R (rows)
var<workgroup> tile_x: array<vec4<f32>, DEPTH * LINE_C>; // DEPTH (taps) × 64·C (columns)

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
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
    let base_x = param(9) + g * param(10);
    let first = s * param(5);
    let end = first + param(5);
    let l = i32(lane);
    // 32 invocations, which run together, make a block of 8 × 4: fewer different vectors to read at once.
    let i_x = l % 8 + l / 32 % 2 * 8;
    let i_y = l % 32 / 8 + l / 64 * 4;

    // Rows: this invocation loads quadruples of them at one tap of each step.
    let own_tap = l % DEPTH;
    let base_w = param(6) + g * param(8);
{{for i in 0..loads_w}}{{for q in 0..4}}
    let w{{i}}{{q}} = base_w + min(row0 + 4 * (l / DEPTH + 256 / DEPTH * {{i}}) + {{q}}, rows - 1) * param(7);
{{end}}{{end}}
    // Columns: one of them at quadruples of taps, or, along taps, quadruples of them at the tap of the rows.
{{for a in 0..along_columns}}
    let own_column = l % (64 * C);
    let c0 = source(column(min(col0 + own_column, columns - 1)), base_x);
{{end}}
{{for a in 0..along_taps}}{{for i in 0..loads_x}}{{for q in 0..4}}
    let c{{i}}{{q}} = source(column(min(col0 + 4 * (l / DEPTH + 256 / DEPTH * {{i}}) + {{q}}, columns - 1)), base_x);
{{end}}{{end}}{{end}}

{{for i in 0..quads_r}}{{for j in 0..quads_c}}{{for r in 0..4}}
    var s{{i}}{{j}}{{r}} = vec4<f32>();
{{end}}{{end}}{{end}}
{{for i in 0..loads_w}}
    var next_w{{i}} = vec4<f32>();
{{end}}
{{for i in 0..loads_x}}
    var next_x{{i}} = vec4<f32>();
{{end}}
    var tap = taps[first + own_tap];
{{for a in 0..along_columns}}{{for i in 0..loads_x}}{{for q in 0..4}}
    let k{{i}}{{q}} = 4 * ((l + 256 * {{i}}) / (64 * C)) + {{q}};
    var tap{{i}}{{q}} = taps[first + k{{i}}{{q}}];
{{end}}{{end}}{{end}}
{{part load}}
{{for i in 0..loads_w}}
        next_w{{i}} = vec4<f32>(w[w{{i}}0 + tap.x], w[w{{i}}1 + tap.x], w[w{{i}}2 + tap.x], w[w{{i}}3 + tap.x]);
{{end}}
{{for a in 0..along_taps}}{{for i in 0..loads_x}}
        next_x{{i}} = vec4<f32>(image(c{{i}}0, tap), image(c{{i}}1, tap), image(c{{i}}2, tap), image(c{{i}}3, tap));
{{end}}{{end}}
{{for a in 0..along_columns}}{{for i in 0..loads_x}}
        next_x{{i}} = vec4<f32>(image(c0, tap{{i}}0), image(c0, tap{{i}}1), image(c0, tap{{i}}2), image(c0, tap{{i}}3));
{{end}}{{end}}
        tap = taps[t1 + DEPTH + own_tap];
{{for a in 0..along_columns}}{{for i in 0..loads_x}}{{for q in 0..4}}
        tap{{i}}{{q}} = taps[t1 + DEPTH + k{{i}}{{q}}];
{{end}}{{end}}{{end}}
{{end load}}
{{part store}}
{{for i in 0..loads_w}}
        tile_w[own_tap * LINE_R + l / DEPTH + 256 / DEPTH * {{i}}] = next_w{{i}};
{{end}}
{{for a in 0..along_taps}}{{for i in 0..loads_x}}
        tile_x[own_tap * LINE_C + l / DEPTH + 256 / DEPTH * {{i}}] = next_x{{i}};
{{end}}{{end}}
{{for a in 0..along_columns}}{{for i in 0..loads_x}}{{for q in 0..4}}
        tile_x[k{{i}}{{q}} * LINE_C + own_column / 4][own_column % 4] = next_x{{i}}[{{q}}];
{{end}}{{end}}{{end}}
{{end store}}
    // Values are loaded a step before they are needed, and taps two: the table has that many to spare.
    var t1 = first;
    {{load}}
    {{store}}
    workgroupBarrier();
    for (var t0 = first; t0 < end; t0 += DEPTH) {
        t1 = t0 + DEPTH;
        let more = t1 < end;
        if (more) {
            {{load}}
        }
{{for k in 0..16}}
        {
{{for i in 0..quads_r}}
            let a{{i}} = tile_w[{{k}} * LINE_R + i_y + 16 * {{i}}];
{{end}}
{{for j in 0..quads_c}}
            let b{{j}} = tile_x[{{k}} * LINE_C + i_x + 16 * {{j}}];
{{end}}
{{for i in 0..quads_r}}{{for j in 0..quads_c}}
            s{{i}}{{j}}0 = a{{i}}.x * b{{j}} + s{{i}}{{j}}0;
            s{{i}}{{j}}1 = a{{i}}.y * b{{j}} + s{{i}}{{j}}1;
            s{{i}}{{j}}2 = a{{i}}.z * b{{j}} + s{{i}}{{j}}2;
            s{{i}}{{j}}3 = a{{i}}.w * b{{j}} + s{{i}}{{j}}3;
{{end}}{{end}}
        }
{{end}}
        workgroupBarrier();
        if (more) {
            {{store}}
        }
        workgroupBarrier();
    }
    let base_y = param(11) + s * param(14) + g * param(12);
{{for j in 0..quads_c}}
    {
        let col = col0 + (i_x + 16 * {{j}}) * 4;
{{for v in 0..vectors}}
        if (col < columns) {
            let to = base_y + column(col).dest;
{{for i in 0..quads_r}}{{for r in 0..4}}
            {
                let row = row0 + (i_y + 16 * {{i}}) * 4 + {{r}};
                if (row < rows) { y[(to + row * param(13)) / 4] = s{{i}}{{j}}{{r}}; }
            }
{{end}}{{end}}
        }
{{end}}
{{for q in 0..scalars}}
        if (col + {{q}} < columns) {
            let to = base_y + column(col + {{q}}).dest;
{{for i in 0..quads_r}}{{for r in 0..4}}
            {
                let row = row0 + (i_y + 16 * {{i}}) * 4 + {{r}};
                if (row < rows) { y[to + row * param(13)] = s{{i}}{{j}}{{r}}[{{q}}]; }
            }
{{end}}{{end}}
        }
{{end}}
    }
{{end}}
}
