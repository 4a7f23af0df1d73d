// Sums over sliding windows (see window.wgsl), one invocation an output element: depthwise convolutions, few output
// channels, few windows.

@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = i32((group.y * groups.x + group.x) * 64u + lane);
    let e = element(i);
    if (e.part >= param(4)) { return; }
    y[e.dest] = tap_sum(e, 0, 1);
}
