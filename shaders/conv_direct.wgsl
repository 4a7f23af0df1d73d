// Sums over sliding windows (see window.wgsl) of few rows or few windows.
//
// An invocation {{rows}} rows by {{columns}} columns, so that what a tap needs is read once for all of them; neighbouring invocations
// have neighbouring columns.

@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = i32((group.y * groups.x + group.x) * 64u + lane);
    let slots = (param(2) + {{columns}} - 1) / {{columns}};
    let blocks = (param(0) + {{rows}} - 1) / {{rows}};
    let p = i % slots;
    let lines = i / slots;
    let row = lines % blocks * {{rows}};
    let g = lines / blocks % param(3);
    let part = lines / blocks / param(3);
    if (part >= param(4)) { return; }
    // Those beyond the last are read as the last and not written.
{{for k in 0..columns}}
    let c{{k}} = column(min(p + {{k}} * slots, param(2) - 1));
    let seen{{k}} = source(c{{k}}, param(9) + g * param(10));
{{end}}
{{for r in 0..rows}}
    let w{{r}} = param(6) + g * param(8) + min(row + {{r}}, param(0) - 1) * param(7);
{{end}}
{{for r in 0..rows}}{{for k in 0..columns}}
    var s{{r}}_{{k}} = 0.0;
{{end}}{{end}}
    let first = part * param(5);
    let end = min(first + param(5), param(1));
    for (var t = first; t < end; t++) {
        let tap = taps[t];
{{for k in 0..columns}}
        let v{{k}} = image(seen{{k}}, tap);
{{end}}
{{for r in 0..rows}}
        let a{{r}} = w[w{{r}} + tap.x];
{{end}}
{{for r in 0..rows}}{{for k in 0..columns}}
        s{{r}}_{{k}} = fma(a{{r}}, v{{k}}, s{{r}}_{{k}});
{{end}}{{end}}
    }
    let dest = param(11) + part * param(14) + g * param(12);
{{for r in 0..rows}}{{for k in 0..columns}}
    if (row + {{r}} < param(0) && p + {{k}} * slots < param(2)) {
        y[dest + (row + {{r}}) * param(13) + c{{k}}.dest] = s{{r}}_{{k}};
    }
{{end}}{{end}}
}
