// Copies a strided tensor into a strided region: concatenation, padding, and making views row-major.
//
//   y[a_y(i)] = x[a_x(i)]      for i < n
//
// One invocation {{width}} elements next to each other, as a vector ({{vectors}} = 1, {{scalars}} = 0) or one by one; elements are
// moved as 32-bit words, whatever their type.
// Words: 0 n, 1 rank, 2 offset of x, 3 offset of y, 4… sizes, strides of x, strides of y (rank words each).

@group(0) @binding(1) var<storage, read> x: array<{{type}}>;
@group(0) @binding(2) var<storage, read_write> y: array<{{type}}>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = i32((group.y * groups.x + group.x) * 64u + lane) * {{width}};
    if (i >= param(0)) { return; }
    let rank = param(1);
    let base_x = param(2) + address(i, rank, 4, 4 + rank);
    let base_y = param(3) + address(i, rank, 4, 4 + 2 * rank);
    // The last strides.
    let step_x = param(3 + 2 * rank);
    let step_y = param(3 + 3 * rank);
{{for e in 0..vectors}}
    y[base_y / 4] = x[base_x / 4];
{{end}}
{{for e in 0..scalars}}
    y[base_y + {{e}} * step_y] = x[base_x + {{e}} * step_x];
{{end}}
}
