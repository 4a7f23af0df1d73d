// Reduction (see reduce.wgsl) where neighbouring outputs read neighbouring elements: {{down}} invocations for {{width}} outputs and
// a part, {{across}} times as many outputs a workgroup.
//
// Each invocation combines every {{down}}th row, {{unrolled}} of them loaded before the first is used; then they combine in a
// fixed tree, so results don't depend on scheduling.

var<workgroup> shared_sums: array<{{type}}, {{across}} * {{down}}>;

// Where row j begins.
fn row(j: i32) -> i32 {
    let sizes = 9 + 2 * param(4);
    return {{row}};
}

@compute @workgroup_size({{across}}, {{down}})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_id) local: vec3<u32>) {
    let at = i32(group.y * groups.x + group.x);
    let outputs = param(0) / {{width}};
    let blocks = (outputs + {{across}} - 1) / {{across}};
    let part = at / blocks;
    if (part >= param(7)) { return; }
    let output = (at - part * blocks) * {{across}} + i32(local.x);
    let base = param(2) + address(min(output, outputs - 1) * {{width}}, param(4), 9, 9 + param(4));
    let end = min((part + 1) * param(6), param(1));

    var sum = {{type}}(bitcast<{{scalar}}>(param(3)));
    var j = part * param(6) + i32(local.y);
    for (; j + ({{unrolled}} - 1) * {{down}} < end; j += {{unrolled}} * {{down}}) {
{{for k in 0..unrolled}}
        let v{{k}} = x[(base + row(j + {{k}} * {{down}})) / {{width}}];
{{end}}
{{for k in 0..unrolled}}
        sum = combine(sum, map(v{{k}}));
{{end}}
    }
    for (; j < end; j += {{down}}) {
        sum = combine(sum, map(x[(base + row(j)) / {{width}}]));
    }

    shared_sums[local.y * {{across}} + local.x] = sum;
    workgroupBarrier();
    for (var half = {{down}}u / 2u; half > 0u; half /= 2u) {
        if (local.y < half) {
            let own = local.y * {{across}} + local.x;
            shared_sums[own] = combine(shared_sums[own], shared_sums[own + half * {{across}}]);
        }
        workgroupBarrier();
    }
    if (local.y == 0u && output < outputs) {
        y[part * outputs + output] = finish(shared_sums[local.x], {{type}}({{scalar}}(param(8))));
    }
}
