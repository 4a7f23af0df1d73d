// Maxima of sliding windows: MaxPool.
//
//   y[i] = max over the window's elements inside x, the first of equal ones; index[i] = where that element is
//
// One invocation an output element. `binding` and `store` are there where indices are wanted.
// Words: 0 n, 1…3 windows along z, y, x, 4 channels, 5 offset of x, 6 its image stride, 7 its channel stride,
//        8…10 its strides, 11…13 its sizes along z, y, x, 14…16 kernel, 17…19 distance between windows,
//        20…22 dilation, 23…25 padding before the first element, 26…28 index strides along z, y, x.

@group(0) @binding(1) var<storage, read> x: array<{{type}}>;
@group(0) @binding(2) var<storage, read_write> y: array<{{type}}>;
{{binding}}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = i32((group.y * groups.x + group.x) * 64u + lane);
    if (i >= param(0)) { return; }
    let ox = i % param(3);
    let oy = i / param(3) % param(2);
    let oz = i / (param(3) * param(2)) % param(1);
    let plane = i / (param(3) * param(2) * param(1));
    let base = param(5) + plane / param(4) * param(6) + plane % param(4) * param(7);
    let size = param(11) * param(12) * param(13);
    var best = {{type}}(0);
    var place = -1;
    for (var kz = 0; kz < param(14); kz++) {
        let z = oz * param(17) + kz * param(20) - param(23);
        if (z < 0 || z >= param(11)) { continue; }
        for (var ky = 0; ky < param(15); ky++) {
            let row = oy * param(18) + ky * param(21) - param(24);
            if (row < 0 || row >= param(12)) { continue; }
            for (var kx = 0; kx < param(16); kx++) {
                let col = ox * param(19) + kx * param(22) - param(25);
                if (col < 0 || col >= param(13)) { continue; }
                let v = x[base + z * param(8) + row * param(9) + col * param(10)];
                if (place < 0 || v > best) {
                    best = v;
                    place = z * param(26) + row * param(27) + col * param(28);
                }
            }
        }
    }
    y[i] = best;
    {{store}}
}
