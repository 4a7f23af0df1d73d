// Shared by the convolution kernels: sums of products over the taps of sliding windows.
//
//   Y[s, g, r, p] = Σ_t W[g, r, t] · X[g, place of window p + offset of tap t]      X is 0 outside its sizes
//
// s is a part of the taps (partial sums, added up later in order), g a group, r a row (an output channel), p a window
// (column: image and position), t a tap (input channel and kernel element). A convolution, its transpose (one
// dispatch for each residue of its stride), and the gradient of the weights (windows and taps change places) are all
// of this form. Everything that depends on a tap alone stands in a table, so inner loops divide nothing:
//   taps[t] = (offset in W, offset in X, y and x offsets of the place in 16 bits each, z offset of the place)
// {{check}} says how a place outside the image is told from one inside: 0 there is none, 1 by bits, which stand in the tables of taps
// instead of places and, for windows along x, y and z, behind the taps, 2 by its coordinates.
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

// What a window needs to look through taps. A tap is outside the image where their bits meet.
struct Source {
    place: vec3<i32>,
    origin: i32,
    bits: i32,
}

// `base` is where the window's group begins in X.
fn source(c: Column, base: i32) -> Source {
    var s = Source(c.place, base + c.origin, 0);
    if ({{check}} == 1) {
        let x = param(1);
        let y = x + param(26);
        let z = y + param(25);
        s.bits = taps[x + c.window.x].x | taps[y + c.window.y].x | taps[z + c.window.z].x;
    }
    return s;
}

// Whether a tap of the window at `place` lies inside the image.
fn in_image(place: vec3<i32>, tap: vec4<i32>) -> bool {
    let at = place + vec3<i32>((tap.z << 16u) >> 16u, tap.z >> 16u, tap.w);
    // What is below 0 is large without a sign.
    return u32(at.x) < u32(param(17)) && u32(at.y) < u32(param(16)) && u32(at.z) < u32(param(15));
}

// What a window sees through a tap.
fn image(s: Source, tap: vec4<i32>) -> f32 {
    var v = 0.0;
    var visible = true;
    if ({{check}} == 1) { visible = (s.bits & tap.z) == 0; }
    if ({{check}} == 2) { visible = in_image(s.place, tap); }
    if (visible) { v = x[s.origin + tap.y]; }
    return v;
}
