// Sums over sliding windows (see window.wgsl), one workgroup an output element and part of the taps: few outputs of many
// taps each, as in the gradient of a depthwise convolution's weights.
//
// Each of the 64 invocations adds every 64th tap, then they are added in a fixed tree.

var<workgroup> sums: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = i32(group.y * groups.x + group.x);
    let p = i % param(2);
    let lines = i / param(2);
    let r = lines % param(0);
    let blocks = lines / param(0);
    let g = blocks % param(3);
    let s = blocks / param(3);
    if (s >= param(4)) { return; }
    let c = column(p);
    let base_w = param(6) + g * param(8) + r * param(7);
    let base_x = param(9) + g * param(10);
    let first = s * param(5);
    let end = min(first + param(5), param(1));
    var sum = 0.0;
    for (var t = first + i32(lane); t < end; t += 64) {
        let tap = taps[t];
        sum = fma(w[base_w + tap.x], seen(c, base_x, tap), sum);
    }
    sums[lane] = sum;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half /= 2u) {
        if (lane < half) { sums[lane] += sums[lane + half]; }
        workgroupBarrier();
    }
    if (lane == 0u) {
        y[param(11) + s * param(14) + g * param(12) + r * param(13) + c.dest] = sums[0];
    }
}
