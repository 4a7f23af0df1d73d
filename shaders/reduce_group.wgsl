// Reduction over any axes, one workgroup an output: for long rows.
//
//   y[i] = finish(combine over j < len of map(x[kept(i) + reduced(j)]))      for i < n
//
// Each of the 64 invocations combines every 64th element, then they combine in a fixed tree, so results don't
// depend on scheduling. Words as in reduce_rows.wgsl.

@group(0) @binding(1) var<storage, read> x: array<{{type}}>;
@group(0) @binding(2) var<storage, read_write> y: array<{{type}}>;

var<workgroup> part: array<{{type}}, 64>;

fn map(v: {{type}}) -> {{type}} { return {{map}}; }
fn combine(a: {{type}}, b: {{type}}) -> {{type}} { return {{combine}}; }
fn finish(v: {{type}}, len: {{type}}) -> {{type}} { return {{finish}}; }

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = i32(group.y * groups.x + group.x);
    if (i >= param(0)) { return; }
    let kept = param(4);
    let reduced = param(5);
    let base = param(2) + address(i, kept, 6, 6 + kept);
    let sizes = 6 + 2 * kept;
    var sum = bitcast<{{type}}>(param(3));
    for (var j = i32(lane); j < param(1); j += 64) {
        sum = combine(sum, map(x[base + address(j, reduced, sizes, sizes + reduced)]));
    }
    part[lane] = sum;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half /= 2u) {
        if (lane < half) {
            part[lane] = combine(part[lane], part[lane + half]);
        }
        workgroupBarrier();
    }
    if (lane == 0u) {
        y[i] = finish(part[0], {{type}}(param(1)));
    }
}
