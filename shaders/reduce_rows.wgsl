// Reduction over any axes, one invocation an output: for short rows, or many of them.
//
//   y[i] = finish(combine over j < len of map(x[kept(i) + reduced(j)]))      for i < n
//
// {{map}}, {{combine}} and {{finish}} are expressions of the reduction (see lower/reduce.rs).
// Words: 0 n, 1 len, 2 offset of x, 3 start value (bits), 4 rank kept, 5 rank reduced,
//        6… sizes kept, strides kept, sizes reduced, strides reduced.

@group(0) @binding(1) var<storage, read> x: array<{{type}}>;
@group(0) @binding(2) var<storage, read_write> y: array<{{type}}>;

fn map(v: {{type}}) -> {{type}} { return {{map}}; }
fn combine(a: {{type}}, b: {{type}}) -> {{type}} { return {{combine}}; }
fn finish(v: {{type}}, len: {{type}}) -> {{type}} { return {{finish}}; }

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = i32((group.y * groups.x + group.x) * 64u + lane);
    if (i >= param(0)) { return; }
    let kept = param(4);
    let reduced = param(5);
    let base = param(2) + address(i, kept, 6, 6 + kept);
    let sizes = 6 + 2 * kept;
    var sum = bitcast<{{type}}>(param(3));
    if (reduced == 1) {
        let stride = param(sizes + 1);
        for (var j = 0; j < param(1); j++) {
            sum = combine(sum, map(x[base + j * stride]));
        }
    } else {
        for (var j = 0; j < param(1); j++) {
            sum = combine(sum, map(x[base + address(j, reduced, sizes, sizes + reduced)]));
        }
    }
    y[i] = finish(sum, {{type}}(param(1)));
}
