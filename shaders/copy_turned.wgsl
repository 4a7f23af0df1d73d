// Copies a strided tensor whose elements lie dense along one axis (rows) into a region where they lie dense along another
// (columns): transposing, by way of workgroup memory, so that reads and writes are both of neighbours.
//
//   y[oy + b_y + r · sy + c] = x[ox + b_x + r + c · sx]      for r < rows, c < columns, in every batch
//
// A workgroup of 32 × 8 moves a square of 32 × 32. Elements are moved as 32-bit words, whatever their type.
// Words: 0 rows, 1 columns, 2 ox, 3 oy, 4 sx, 5 sy, 6 batches, 7 batch rank, 8… batch sizes, strides of x, strides of y.

@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

// One word more a line, so that a column's words are in different banks.
var<workgroup> square: array<u32, 32 * 33>;

@compute @workgroup_size(32, 8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_id) local: vec3<u32>) {
    let down = (param(0) + 31) / 32;
    let across = (param(1) + 31) / 32;
    let tile = i32(group.y * groups.x + group.x);
    let batch = tile / (down * across);
    if (batch >= param(6)) { return; }
    let row0 = tile % down * 32;
    let col0 = tile / down % across * 32;
    let rank = param(7);
    let base_x = param(2) + address(batch, rank, 8, 8 + rank);
    let base_y = param(3) + address(batch, rank, 8, 8 + 2 * rank);
    let i = i32(local.x);
    for (var j = i32(local.y); j < 32; j += 8) {
        if (row0 + i < param(0) && col0 + j < param(1)) {
            square[j * 33 + i] = x[base_x + row0 + i + (col0 + j) * param(4)];
        }
    }
    workgroupBarrier();
    for (var j = i32(local.y); j < 32; j += 8) {
        if (row0 + j < param(0) && col0 + i < param(1)) {
            y[base_y + (row0 + j) * param(5) + col0 + i] = square[i * 33 + j];
        }
    }
}
