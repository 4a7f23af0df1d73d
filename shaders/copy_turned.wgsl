// Copies a strided tensor whose elements lie dense along one axis (rows) into a region where they lie dense along another
// (columns): transposing, by way of workgroup memory, so that reads and writes are both of neighbours.
//
//   y[oy + b_y + r · sy + c] = x[ox + b_x + r + c · sx]      for r < rows, c < columns, in every batch
//
// A workgroup of {{side}} × {{lines}} moves a square of {{side}} × {{side}}, {{moves}} elements an invocation. Elements are moved as 32-bit words,
// whatever their type. (Squares of 64 × 64 by vectors took as long or longer on a GPU.)
// Words: 0 rows, 1 columns, 2 ox, 3 oy, 4 sx, 5 sy, 6 batches, 7 batch rank, 8… batch sizes, strides of x, strides of y.

@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

const SIDE = {{side}};
const LINES = {{lines}};
const LINE = SIDE + 1; // one word more, so that a column's words are in different banks

var<workgroup> square: array<u32, SIDE * LINE>;

@compute @workgroup_size({{side}}, {{lines}})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_id) local: vec3<u32>) {
    let below = (param(0) + SIDE - 1) / SIDE;
    let beside = (param(1) + SIDE - 1) / SIDE;
    let tile = i32(group.y * groups.x + group.x);
    let batch = tile / (below * beside);
    if (batch >= param(6)) { return; }
    let row0 = tile % below * SIDE;
    let col0 = tile / below % beside * SIDE;
    let rank = param(7);
    let base_x = param(2) + address(batch, rank, 8, 8 + rank);
    let base_y = param(3) + address(batch, rank, 8, 8 + 2 * rank);
    let i = i32(local.x);
    let j = i32(local.y);
    // All are loaded before the first is used; what is outside, from the edge.
    let first = base_x + min(row0 + i, param(0) - 1);
{{for k in 0..moves}}
    let v{{k}} = x[first + min(col0 + j + LINES * {{k}}, param(1) - 1) * param(4)];
{{end}}
{{for k in 0..moves}}
    square[(j + LINES * {{k}}) * LINE + i] = v{{k}};
{{end}}
    workgroupBarrier();
{{for k in 0..moves}}
    if (row0 + j + LINES * {{k}} < param(0) && col0 + i < param(1)) {
        y[base_y + (row0 + j + LINES * {{k}}) * param(5) + col0 + i] = square[i * LINE + j + LINES * {{k}}];
    }
{{end}}
}
