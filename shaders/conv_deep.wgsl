// Sums over sliding windows (see window.wgsl), one workgroup an output element and part of the taps: few outputs of many
// taps each.
//
// Each of the 64 invocations adds every 64th tap.

@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = i32(group.y * groups.x + group.x);
    let lines = i / param(2);
    let r = lines % param(0);
    let blocks = lines / param(0);
    let g = blocks % param(3);
    let part = blocks / param(3);
    if (part >= param(4)) { return; }
    let window = column(i % param(2));
    let seen = source(window, param(9) + g * param(10));
    let base_w = param(6) + g * param(8) + r * param(7);
    let first = part * param(5);
    let end = min(first + param(5), param(1));
    var own = 0.0;
    for (var t = first + i32(lane); t < end; t += 64) {
        let tap = taps[t];
        own = fma(w[base_w + tap.x], image(seen, tap), own);
    }
    let sum = total(lane, own);
    if (lane == 0u) { y[param(11) + part * param(14) + g * param(12) + r * param(13) + window.dest] = sum; }
}
