// Reduction (see reduce.wgsl), one workgroup an output and part: for long rows.
//
// Each of the {{size}} invocations combines every {{size}}th element, then they combine in a fixed tree, so results don't
// depend on scheduling.

var<workgroup> shared_sums: array<{{type}}, {{size}}>;

@compute @workgroup_size({{size}})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let at = i32(group.y * groups.x + group.x);
    let part = at / param(0);
    if (part >= param(7)) { return; }
    let first = part * param(6);
    let end = min(first + param(6), param(1));
    shared_sums[lane] = combined(at - part * param(0), first + i32(lane), end, {{size}});
    workgroupBarrier();
    for (var half = {{size}}u / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            shared_sums[lane] = combine(shared_sums[lane], shared_sums[lane + half]);
        }
        workgroupBarrier();
    }
    if (lane == 0u) {
        y[at] = finish(shared_sums[0], {{type}}(param(8)));
    }
}
