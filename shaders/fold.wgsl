// Reduction {{f}} of a kernel of rows: what the {{lanes}} invocations of a row bring becomes one value, for each of them. They
// combine {{down}} values each, then {{across}} of those, in a fixed order, so that results don't depend on scheduling.

fn map{{f}}(v: f32) -> f32 { return {{map}}; }
fn combine{{f}}(a: f32, b: f32) -> f32 { return {{combine}}; }
fn finish{{f}}(v: f32, len: f32) -> f32 { return {{finish}}; }

var<workgroup> own{{f}}: array<f32, {{size}}>;
var<workgroup> some{{f}}: array<f32, {{size}}>;

fn whole{{f}}(lane: i32, value: f32) -> f32 {
    var sum = value;
{{for x in 0..shared}}
    let first = lane / {{lanes}} * {{lanes}};
    let place = lane % {{across}};
    own{{f}}[lane] = value;
    workgroupBarrier();
    sum = own{{f}}[first + place];
{{for k in 0..down_rest}}
    sum = combine{{f}}(sum, own{{f}}[first + place + ({{k}} + 1) * {{across}}]);
{{end}}
{{end}}
{{for x in 0..twice}}
    if (lane - first < {{across}}) { some{{f}}[first + place] = sum; }
    workgroupBarrier();
    sum = some{{f}}[first];
{{for k in 0..across_rest}}
    sum = combine{{f}}(sum, some{{f}}[first + {{k}} + 1]);
{{end}}
{{end}}
    return sum;
}
