// Writes or adds updates at indexed places: ScatterElements, ScatterND.
//
//   y[c] = x[c], then for each j < count whose index is c: y[c] = combine(y[c], update[j, c])
//
// One invocation an output element, which looks through all indices in order: no atomics, so the result is the
// same every time. {{combine}} is an expression of the old value `v` and the update `u`.
// Words: 0 n, 1 rank (at most 8), 2 offset of x, 3 of index, 4 of update, 5 count, 6 stride of index along j,
//        7 stride of update along j, 8 components, 9 stride of index between components,
//        10… sizes, strides of x, strides of index, strides of update, limits (rank words each), then for each
//        component the axis it indexes. Coordinates at or beyond a limit have no update.

@group(0) @binding(1) var<storage, read> x: array<{{type}}>;
@group(0) @binding(2) var<storage, read> index: array<i32>;
@group(0) @binding(3) var<storage, read> update: array<{{type}}>;
@group(0) @binding(4) var<storage, read_write> y: array<{{type}}>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = i32((group.y * groups.x + group.x) * 64u + lane);
    if (i >= param(0)) { return; }
    let rank = param(1);
    var at_x = param(2);
    var at_index = param(3);
    var at_update = param(4);
    var place: array<i32, 8>;
    var inside = true;
    var rest = i;
    for (var d = rank - 1; d >= 0; d--) {
        let size = param(10 + d);
        let c = rest % size;
        rest = rest / size;
        place[d] = c;
        at_x += c * param(10 + rank + d);
        at_index += c * param(10 + 2 * rank + d);
        at_update += c * param(10 + 3 * rank + d);
        inside = inside && c < param(10 + 4 * rank + d);
    }
    var v = x[at_x];
    let components = param(8);
    let axes = 10 + 5 * rank;
    for (var j = 0; inside && j < param(5); j++) {
        var hit = true;
        for (var k = 0; k < components; k++) {
            let axis = param(axes + k);
            let t = index[at_index + j * param(6) + k * param(9)];
            hit = hit && select(t, t + param(10 + axis), t < 0) == place[axis];
        }
        if (hit) {
            let u = update[at_update + j * param(7)];
            v = {{combine}};
        }
    }
    y[i] = v;
}
