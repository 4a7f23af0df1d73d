// Sums over sliding windows of one channel: depthwise convolutions and the gradients of their inputs.
//
//   Y[s, g, r, oy, ox] = Σ_ky Σ_kx W[g, r, ky, kx] · X[s, g, top + {{step}}·oy + {{apart}}·ky, left + sx·ox + ax·kx]
//
// X is 0 outside its sizes. An invocation {{down}} outputs that lie below each other: of the {{reach}} rows that they see, each element
// is read once, all before the first is used. Neighbouring invocations have neighbouring windows along x. A kernel has
// {{tall}} × {{wide}} elements.
// Words: 0 images, 1 groups, 2 rows of a group, 3 windows along y, 4 along x,
//        5 offset of W, 6 its group stride, 7 row stride, 8 stride along y, 9 along x,
//        10 offset of X, 11 its image stride, 12 group stride, 13 stride along y, 14 along x, 15 size along y, 16 along x,
//        17 top, 18 left, 19 sx, 20 ax,
//        21 offset of Y, 22 its image stride, 23 group stride, 24 row stride, 25 stride along y, 26 along x.

@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = i32((group.y * groups.x + group.x) * 64u + lane);
    let blocks = (param(3) + {{down}} - 1) / {{down}};
    let ox = i % param(4);
    let lines = i / param(4);
    let oy = lines % blocks * {{down}};
    let planes = lines / blocks;
    let row = planes % param(2);
    let channels = planes / param(2);
    let g = channels % param(1);
    let image = channels / param(1);
    if (image >= param(0)) { return; }

    let base_w = param(5) + g * param(6) + row * param(7);
{{for i in 0..tall}}{{for j in 0..wide}}
    let w{{i}}_{{j}} = w[base_w + {{i}} * param(8) + {{j}} * param(9)];
{{end}}{{end}}
    let base_x = param(10) + image * param(11) + g * param(12);
{{for j in 0..wide}}
    let column{{j}} = param(18) + ox * param(19) + {{j}} * param(20);
    let within{{j}} = column{{j}} >= 0 && column{{j}} < param(16);
    let at{{j}} = base_x + clamp(column{{j}}, 0, param(16) - 1) * param(14);
{{end}}
    let top = param(17) + oy * {{step}};
{{for r in 0..reach}}
    let inside{{r}} = top + {{r}} >= 0 && top + {{r}} < param(15);
    let line{{r}} = clamp(top + {{r}}, 0, param(15) - 1) * param(13);
{{for j in 0..wide}}
    let v{{r}}_{{j}} = select(0.0, x[line{{r}} + at{{j}}], inside{{r}} && within{{j}});
{{end}}{{end}}
{{for o in 0..down}}
    var s{{o}} = 0.0;
{{end}}
{{for r in 0..reach}}{{for o in 0..down}}{{for i in 0..tall}}
    if ({{r}} == {{o}} * {{step}} + {{i}} * {{apart}}) {
{{for j in 0..wide}}
        s{{o}} = fma(w{{i}}_{{j}}, v{{r}}_{{j}}, s{{o}});
{{end}}
    }
{{end}}{{end}}{{end}}
    let dest = param(21) + image * param(22) + g * param(23) + row * param(24) + oy * param(25) + ox * param(26);
{{for o in 0..down}}
    if (oy + {{o}} < param(3)) { y[dest + {{o}} * param(25)] = s{{o}}; }
{{end}}
}
