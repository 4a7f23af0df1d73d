// Shared by the convolution kernels: sums of products over the taps of sliding windows.
//
//   Y[s, g, r, p] = Σ_t W[g, r, t] · X[g, place of window p + offset of tap t]      X is 0 outside its sizes
//
// s is a part of the taps (partial sums, added up later in order), g a group, r a row (an output channel), p a window
// (column: image and position), t a tap (input channel and kernel element). A convolution, its transpose (one
// dispatch for each residue of its stride), and the gradient of the weights (windows and taps change places) are all
// of this form. Everything that depends on a tap alone stands in a table, so inner loops divide nothing:
//   taps[t] = (offset in W, offset in X, y and x offsets of the place in 16 bits each, z offset of the place)
// For tiles (conv_tiled.wgsl) the last two may be bits instead, and the windows' bits stand behind the taps.
// Words: 0 rows, 1 taps, 2 columns, 3 groups, 4 parts, 5 taps a part,
//        6 offset of W, 7 its row stride, 8 its group stride, 9 offset of X, 10 its group stride,
//        11 offset of Y, 12 its group stride, 13 its row stride, 14 its part stride,
//        15…17 sizes of X along z, y, x, 18…20 place of the first window, 21…23 distance between windows,
//        24…26 windows along z, y, x, 27…30 strides of X, 31…34 strides of Y along images and windows' z, y, x.

@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> taps: array<vec4<i32>>;

struct Column {
    window: vec3<i32>, // which, along x, y, z
    place: vec3<i32>,  // where it begins, x, y, z
    origin: i32,       // offset in X
    dest: i32,         // offset in Y
}

fn column(p: i32) -> Column {
    let ox = p % param(26);
    let lines = p / param(26);
    let oy = lines % param(25);
    let planes = lines / param(25);
    let oz = planes % param(24);
    let image = planes / param(24);
    var c: Column;
    c.window = vec3<i32>(ox, oy, oz);
    c.place = vec3<i32>(param(20) + ox * param(23), param(19) + oy * param(22), param(18) + oz * param(21));
    c.origin = image * param(27) + oz * param(28) + oy * param(29) + ox * param(30);
    c.dest = image * param(31) + oz * param(32) + oy * param(33) + ox * param(34);
    return c;
}

// Whether a tap of the window at `place` lies inside the image.
fn in_image(place: vec3<i32>, tap: vec4<i32>) -> bool {
    let at = place + vec3<i32>((tap.z << 16u) >> 16u, tap.z >> 16u, tap.w);
    // What is below 0 is large without a sign.
    return u32(at.x) < u32(param(17)) && u32(at.y) < u32(param(16)) && u32(at.z) < u32(param(15));
}

// What a window sees through a tap; `base` is where its group begins in X.
fn seen(c: Column, base: i32, tap: vec4<i32>) -> f32 {
    if (in_image(c.place, tap)) { return x[base + c.origin + tap.y]; }
    return 0.0;
}

// An output element that is summed on its own, not in a tile.
struct Element {
    part: i32,
    window: Column,
    base_w: i32,
    base_x: i32,
    first: i32, // its taps
    end: i32,
    dest: i32,
}

fn element(i: i32) -> Element {
    let lines = i / param(2);
    let r = lines % param(0);
    let blocks = lines / param(0);
    let g = blocks % param(3);
    var e: Element;
    e.part = blocks / param(3);
    e.window = column(i % param(2));
    e.base_w = param(6) + g * param(8) + r * param(7);
    e.base_x = param(9) + g * param(10);
    e.first = e.part * param(5);
    e.end = min(e.first + param(5), param(1));
    e.dest = param(11) + e.part * param(14) + g * param(12) + r * param(13) + e.window.dest;
    return e;
}

// The sum over every `step`th of its taps, from the one at `offset` on.
fn tap_sum(e: Element, offset: i32, step: i32) -> f32 {
    var sum = 0.0;
    for (var t = e.first + offset; t < e.end; t += step) {
        let tap = taps[t];
        sum = fma(w[e.base_w + tap.x], seen(e.window, e.base_x, tap), sum);
    }
    return sum;
}
