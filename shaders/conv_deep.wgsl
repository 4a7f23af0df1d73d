// Sums over sliding windows (see window.wgsl), one workgroup an output element and part of the taps: few outputs of many
// taps each, as in the gradient of a depthwise convolution's weights.
//
// Each of the 64 invocations adds every 64th tap.

@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = i32(group.y * groups.x + group.x);
    let e = element(i);
    if (e.part >= param(4)) { return; }
    let sum = total(lane, tap_sum(e, i32(lane), 64));
    if (lane == 0u) { y[e.dest] = sum; }
}
