// Index of the largest or smallest element along one axis, one invocation a row.
//
//   y[i] = the first j < len (or the last) for which x[i, j] is best      for i < rows
//
// {{better}} compares a candidate `v` with the `best` so far.
// Words: 0 rows, 1 len, 2 offset of x, 3 stride of x along the axis, 4 rank of the rows, 5… sizes, strides of x.

@group(0) @binding(1) var<storage, read> x: array<{{type}}>;
@group(0) @binding(2) var<storage, read_write> y: array<i32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = i32((group.y * groups.x + group.x) * 64u + lane);
    if (i >= param(0)) { return; }
    let rank = param(4);
    let source = param(2) + address(i, rank, 5, 5 + rank);
    var best = x[source];
    var place = 0;
    for (var j = 1; j < param(1); j++) {
        let v = x[source + j * param(3)];
        if ({{better}}) {
            best = v;
            place = j;
        }
    }
    y[i] = place;
}
