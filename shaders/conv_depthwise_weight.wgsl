// Sums over sliding windows of few windows and many taps: the gradient of a depthwise convolution's weights.
//
//   Y[s, g, r, ky, kx] = Σ_c Σ_oy Σ_ox W[g, r, c, oy, ox] · X[g, c, top + {{step}}·oy + {{apart}}·ky, left + sx·ox + ax·kx]
//
// X is 0 outside its sizes; s is a part of the taps, added up later in order. A workgroup computes all {{tall}} × {{wide}} windows of a part:
// each of its 64 invocations takes blocks of {{down}} taps that lie below each other, and reads each element of the {{reach}} rows of X that these
// meet once, all before the first is used. Then they add up in a fixed tree, so results don't depend on scheduling.
// Words: 0 rows of a group, 1 groups, 2 parts, 3 blocks of a part, 4 channels c, 5 taps along y, 6 along x,
//        7 offset of W, 8 its group stride, 9 row stride, 10 channel stride, 11 stride along y, 12 along x,
//        13 offset of X, 14 its group stride, 15 channel stride, 16 stride along y, 17 along x, 18 size along y, 19 along x,
//        20 top, 21 left, 22 sx, 23 ax,
//        24 offset of Y, 25 its part stride, 26 group stride, 27 row stride, 28 stride along y, 29 along x.

@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

const WINDOWS = {{tall}} * {{wide}};

var<workgroup> sums: array<f32, 64 * WINDOWS>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let at = i32(group.y * groups.x + group.x);
    let row = at % param(0);
    let g = at / param(0) % param(1);
    let part = at / param(0) / param(1);
    if (part >= param(2)) { return; }
    let base_w = param(7) + g * param(8) + row * param(9);
    let base_x = param(13) + g * param(14);
    let blocks = param(5) / {{down}};
    let end = min((part + 1) * param(3), param(4) * blocks * param(6));

{{for i in 0..tall}}{{for j in 0..wide}}
    var s{{i}}_{{j}} = 0.0;
{{end}}{{end}}
    for (var block = part * param(3) + i32(lane); block < end; block += 64) {
        let ox = block % param(6);
        let lines = block / param(6);
        let oy = lines % blocks * {{down}};
        let c = lines / blocks;
        let at_w = base_w + c * param(10) + oy * param(11) + ox * param(12);
{{for o in 0..down}}
        let w{{o}} = w[at_w + {{o}} * param(11)];
{{end}}
        let channel = base_x + c * param(15);
{{for j in 0..wide}}
        let column{{j}} = param(21) + ox * param(22) + {{j}} * param(23);
        let within{{j}} = column{{j}} >= 0 && column{{j}} < param(19);
        let at{{j}} = channel + clamp(column{{j}}, 0, param(19) - 1) * param(17);
{{end}}
        let top = param(20) + oy * {{step}};
{{for r in 0..reach}}
        let inside{{r}} = top + {{r}} >= 0 && top + {{r}} < param(18);
        let line{{r}} = clamp(top + {{r}}, 0, param(18) - 1) * param(16);
{{for j in 0..wide}}
        let v{{r}}_{{j}} = select(0.0, x[line{{r}} + at{{j}}], inside{{r}} && within{{j}});
{{end}}{{end}}
{{for r in 0..reach}}{{for o in 0..down}}{{for i in 0..tall}}
        if ({{r}} == {{o}} * {{step}} + {{i}} * {{apart}}) {
{{for j in 0..wide}}
            s{{i}}_{{j}} = fma(w{{o}}, v{{r}}_{{j}}, s{{i}}_{{j}});
{{end}}
        }
{{end}}{{end}}{{end}}
    }

{{for i in 0..tall}}{{for j in 0..wide}}
    sums[({{i}} * {{wide}} + {{j}}) * 64 + i32(lane)] = s{{i}}_{{j}};
{{end}}{{end}}
    workgroupBarrier();
    for (var half = 32u; half > 0u; half /= 2u) {
        if (lane < half) {
{{for i in 0..tall}}{{for j in 0..wide}}
            sums[({{i}}u * {{wide}}u + {{j}}u) * 64u + lane] += sums[({{i}}u * {{wide}}u + {{j}}u) * 64u + lane + half];
{{end}}{{end}}
        }
        workgroupBarrier();
    }
    if (lane < WINDOWS) {
        let window = i32(lane);
        let dest = param(24) + part * param(25) + g * param(26) + row * param(27);
        y[dest + window / {{wide}} * param(28) + window % {{wide}} * param(29)] = sums[64 * window];
    }
}
