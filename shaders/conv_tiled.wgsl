// Sums over sliding windows (see window.wgsl) as a tiled matrix product whose right side is read straight from the
// image: nothing is unfolded in memory.
//
// A workgroup of 16 × 16 computes 64 rows (output channels) by 64 columns (windows), each invocation 4 by 4, going
// through the taps in steps of 16 by way of workgroup memory. Each invocation loads elements of one window only, so
// its place is worked out once.

var<workgroup> tile_w: array<vec4<f32>, 256>; // 16 (taps) × 64 (rows)
var<workgroup> tile_x: array<f32, 1024>; // 16 (taps) × 64 (windows)

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_id) local: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let rows = param(0);
    let columns = param(2);
    let across = (columns + 63) / 64;
    let down = (rows + 63) / 64;
    let tile = i32(group.y * groups.x + group.x);
    let block = tile / (across * down);
    let g = block % param(3);
    let s = block / param(3);
    if (s >= param(4)) { return; }
    let row0 = (tile / across) % down * 64;
    let col0 = tile % across * 64;
    let base_w = param(6) + g * param(8);
    let base_x = param(9) + g * param(10);
    let first = s * param(5);
    let end = min(first + param(5), param(1));

    let l = i32(lane);
    let own = col0 + l % 64;
    let inside = own < columns;
    let c = column(select(0, own, inside));
    var sum: array<vec4<f32>, 4>;
    for (var t0 = first; t0 < end; t0 += 16) {
        let tw = t0 + l % 16;
        var offset = 0;
        if (tw < end) { offset = taps[tw].x; }
        let row = l / 16 * 4;
        var vw = vec4<f32>();
        for (var q = 0; q < 4; q++) {
            if (tw < end && row0 + row + q < rows) {
                vw[q] = w[base_w + (row0 + row + q) * param(7) + offset];
            }
        }
        tile_w[l % 16 * 16 + l / 16] = vw;
        for (var q = 0; q < 4; q++) {
            let k = l / 64 + 4 * q;
            var vx = 0.0;
            if (inside && t0 + k < end) { vx = seen(c, base_x, taps[t0 + k]); }
            tile_x[k * 64 + l % 64] = vx;
        }
        workgroupBarrier();
        for (var k = 0u; k < 16u; k++) {
            let at = k * 64u + local.x;
            let vx = vec4<f32>(tile_x[at], tile_x[at + 16u], tile_x[at + 32u], tile_x[at + 48u]);
            let vw = tile_w[k * 16u + local.y];
            sum[0] = fma(vec4<f32>(vw.x), vx, sum[0]);
            sum[1] = fma(vec4<f32>(vw.y), vx, sum[1]);
            sum[2] = fma(vec4<f32>(vw.z), vx, sum[2]);
            sum[3] = fma(vec4<f32>(vw.w), vx, sum[3]);
        }
        workgroupBarrier();
    }
    let base_y = param(11) + s * param(14) + g * param(12);
    for (var p = 0; p < 4; p++) {
        let col = col0 + i32(local.x) + 16 * p;
        if (col >= columns) { continue; }
        let to = base_y + column(col).dest;
        for (var q = 0; q < 4; q++) {
            let row = row0 + i32(local.y) * 4 + q;
            if (row < rows) { y[to + row * param(13)] = sum[q][p]; }
        }
    }
}
