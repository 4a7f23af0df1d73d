// A fused chain of elementwise operators.
//
//   y_k[i] = f_k(x_0[a_0(i)], x_1[a_1(i)], …)      for i < n, over the row-major outputs
//
// One invocation {{width}} elements next to each other. `chain` (the operators for one element), `loads` and `stores` are
// generated; an operand is read at i itself or through strides, as a vector where it lies like that, or (a single
// constant) from the parameters.
// Words: 0 n, 1 rank, 2… constants, then sizes, then for each strided operand its offset and strides.

{{bindings}}

const NUMBERS = 2;

{{chain}}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let first = i32((group.y * groups.x + group.x) * 64u + lane) * {{width}};
    if (first >= param(0)) { return; }
{{loads}}
{{stores}}
}
