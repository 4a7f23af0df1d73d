// Reduction (see reduce.wgsl), one invocation an output and part: for short rows.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let at = i32((group.y * groups.x + group.x) * 64u + lane);
    let part = at / param(0);
    if (part >= param(7)) { return; }
    let first = part * param(6);
    let sum = combined(at - part * param(0), first, min(first + param(6), param(1)), 1);
    y[at] = finish(sum, {{type}}(param(8)));
}
