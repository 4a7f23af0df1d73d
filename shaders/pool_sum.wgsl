// Sums over sliding windows: AveragePool, LpPool.
//
//   y[i] = finish(Σ map(v) over the window's elements v inside x)
//
// One invocation an output element. {{map}} is an expression of an element `v`, {{finish}} one of the `sum` and the
// `count` of elements that count; both may use the power `p`.
// Words: 0…25 as in pool_max.wgsl, 26…28 where elements cease to count along z, y, x, 29 where they begin to
//        (0 or far below, if padding counts), 30 p.

@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = i32((group.y * groups.x + group.x) * 64u + lane);
    if (i >= param(0)) { return; }
    let p = param_f32(30);
    let ox = i % param(3);
    let oy = i / param(3) % param(2);
    let oz = i / (param(3) * param(2)) % param(1);
    let plane = i / (param(3) * param(2) * param(1));
    let base = param(5) + plane / param(4) * param(6) + plane % param(4) * param(7);
    var sum = 0.0;
    var count = 0.0;
    for (var kz = 0; kz < param(14); kz++) {
        let z = oz * param(17) + kz * param(20) - param(23);
        if (z < param(29) || z >= param(26)) { continue; }
        for (var ky = 0; ky < param(15); ky++) {
            let row = oy * param(18) + ky * param(21) - param(24);
            if (row < param(29) || row >= param(27)) { continue; }
            for (var kx = 0; kx < param(16); kx++) {
                let col = ox * param(19) + kx * param(22) - param(25);
                if (col < param(29) || col >= param(28)) { continue; }
                count += 1.0;
                let inside = z >= 0 && z < param(11) && row >= 0 && row < param(12) && col >= 0 && col < param(13);
                if (inside) {
                    let v = x[base + z * param(8) + row * param(9) + col * param(10)];
                    sum += {{map}};
                }
            }
        }
    }
    y[i] = {{finish}};
}
