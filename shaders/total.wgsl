// Shared by kernels whose workgroup of 64 adds up: in a fixed tree, so that results don't depend on scheduling.

var<workgroup> part: array<f32, 64>;

// The sum of what all invocations bring, for each of them.
fn total(lane: u32, own: f32) -> f32 {
    part[lane] = own;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half /= 2u) {
        if (lane < half) { part[lane] += part[lane + half]; }
        workgroupBarrier();
    }
    let sum = part[0];
    workgroupBarrier();
    return sum;
}
