// Copies a strided tensor whose elements lie dense along one axis (rows) into a region where they lie dense along another
// (columns): transposing, by way of workgroup memory, so that reads and writes are both of neighbours.
//
//   y[oy + b_y + r · sy + c] = x[ox + b_x + r + c · sx]      for r < rows, c < columns, in every batch
//
// A workgroup of {{across}} × {{down}} moves a square of {{side}} × {{side}}, each invocation {{width}} neighbours at a time: as a
// vector ({{vectors}} = 1, {{scalars}} = 0) or as one element. Elements are moved as 32-bit words, whatever their type.
// Words: 0 rows, 1 columns, 2 ox, 3 oy, 4 sx, 5 sy, 6 batches, 7 batch rank, 8… batch sizes, strides of x, strides of y.

@group(0) @binding(1) var<storage, read> x: array<{{type}}>;
@group(0) @binding(2) var<storage, read_write> y: array<{{type}}>;

// One word more a line, so that a column's words are in different banks.
var<workgroup> square: array<u32, {{side}} * ({{side}} + 1)>;

@compute @workgroup_size({{across}}, {{down}})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_id) local: vec3<u32>) {
    let below = (param(0) + {{side}} - 1) / {{side}};
    let beside = (param(1) + {{side}} - 1) / {{side}};
    let tile = i32(group.y * groups.x + group.x);
    let batch = tile / (below * beside);
    if (batch >= param(6)) { return; }
    let row0 = tile % below * {{side}};
    let col0 = tile / below % beside * {{side}};
    let rank = param(7);
    let base_x = param(2) + address(batch, rank, 8, 8 + rank);
    let base_y = param(3) + address(batch, rank, 8, 8 + 2 * rank);
    let i = i32(local.x) * {{width}};
    let j = i32(local.y);
    // All are loaded before the first is used; what is outside, from the edge.
    let row = min(row0 + i, param(0) - {{width}});
{{for k in 0..steps}}
    let v{{k}} = x[(base_x + row + min(col0 + j + {{k}} * {{down}}, param(1) - 1) * param(4)) / {{width}}];
{{end}}
{{for k in 0..steps}}
{{for x in 0..vectors}}
{{for e in 0..4}}
    square[(j + {{k}} * {{down}}) * ({{side}} + 1) + i + {{e}}] = v{{k}}[{{e}}];
{{end}}
{{end}}
{{for x in 0..scalars}}
    square[(j + {{k}} * {{down}}) * ({{side}} + 1) + i] = v{{k}};
{{end}}
{{end}}
    workgroupBarrier();
{{for k in 0..steps}}
    if (row0 + j + {{k}} * {{down}} < param(0) && col0 + i < param(1)) {
        let at = i * ({{side}} + 1) + j + {{k}} * {{down}};
        let to = (base_y + (row0 + j + {{k}} * {{down}}) * param(5) + col0 + i) / {{width}};
{{for x in 0..vectors}}
        y[to] = vec4<u32>(square[at], square[at + {{side}} + 1], square[at + 2 * ({{side}} + 1)], square[at + 3 * ({{side}} + 1)]);
{{end}}
{{for x in 0..scalars}}
        y[to] = square[at];
{{end}}
    }
{{end}}
}
