// A fused chain of elementwise operators and reductions of rows.
//
//   y_k[i, j] = f_k(x_0[i, j], x_1[i, j], …, s_0[i], s_1[i], …)      s_f[i] = reduction over j of g_f(x_0[i, j], …, s_0[i], …)
//
// {{members}} rows a workgroup, {{lanes}} invocations a row. A row is passed over once for each level of reductions that depend on
// each other, and once for what is written. Where its operands fit into registers, they are read once, all before the
// first is used. `passes` (functions of one element), `folds` (see fold.wgsl) and `body` are generated.
// Words: 0 rows, 1 elements of a row, 2 rank of the rows, 3… constants, then the rows' sizes, then for each operand its
//        offset, strides from row to row, and stride along a row.

{{bindings}}

const NUMBERS = 3;

{{folds}}

{{passes}}

@compute @workgroup_size({{size}})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) index: u32) {
    let lane = i32(index);
    let row = i32(group.y * groups.x + group.x) * {{members}} + lane / {{lanes}};
    // Those without a row of their own go along with the last, since all must meet at barriers.
    let live = row < param(0);
    let i = min(row, param(0) - 1);
    let turn = lane % {{lanes}};
    let vectors = param(1) / {{width}};
    let length = f32(param(1));
{{body}}
}
