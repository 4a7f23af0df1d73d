// Shared by generated kernels: functions that operators' expressions use.

const PI = 3.14159265358979;

// Error function: Abramowitz and Stegun 7.1.26 away from zero, Maclaurin series near it (error below 2e-7).
fn erf(x: f32) -> f32 {
    let a = abs(x);
    let s = x * x;
    let near = x * (1.1283791671 + s * (-0.3761263890 + s * (0.1128379167 + s * (-0.0268661706 + s * (0.0052239776 - s * 0.0008548327)))));
    let t = 1.0 / (1.0 + 0.3275911 * a);
    let series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    let far = sign(x) * (1.0 - series * exp(-a * a));
    return select(far, near, a < 0.5);
}

// Natural logarithm to the last digit or so: WGSL's own may be off by 2^-21 near 1, which ruins 1 - β^t.
// With x = 2^e m, √½ < m < √2: log x = e log 2 + 2 artanh((m - 1) / (m + 1)).
fn ln(x: f32) -> f32 {
    let bits = bitcast<i32>(x);
    if (bits < 0x00800000 || bits >= 0x7f800000) { return log(x); }
    var e = (bits >> 23u) - 127;
    var m = bitcast<f32>((bits & 0x007fffff) | 0x3f800000);
    if (m > 1.4142135) {
        m *= 0.5;
        e += 1;
    }
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let series = z * (0.33333333 + z * (0.2 + z * (0.14285714 + z * (0.11111111 + z * 0.09090909))));
    return f32(e) * 0.693359375 + (2.0 * s + (2.0 * s * series - f32(e) * 2.12194440e-4));
}

// Exponential to the last digit or so: 2^k times a series in what remains, |r| < ½ log 2.
fn exp_exact(x: f32) -> f32 {
    if (!(abs(x) < 80.0)) { return exp(x); }
    let k = round(x * 1.44269504);
    let r = (x - k * 0.693359375) + k * 2.12194440e-4;
    let series = 1.0 + r * (1.0 + r * (0.5 + r * (0.16666667 + r * (0.041666667 + r * (0.0083333333 + r * (0.0013888889 + r * 0.00019841270))))));
    return series * bitcast<f32>((i32(k) + 127) << 23u);
}

// Powers of negative bases exist for whole exponents only; WGSL's pow has none of them.
fn power(x: f32, y: f32) -> f32 {
    if (y == 2.0) { return x * x; }
    if (y == 1.0) { return x; }
    if (y == 0.5) { return sqrt(x); }
    if (y == 0.0) { return 1.0; }
    if (x == 0.0) { return select(1.0 / x, 0.0, y > 0.0); }
    let size = exp_exact(y * ln(abs(x)));
    let odd = abs(y - 2.0 * floor(y * 0.5)) == 1.0;
    return select(size, -size, x < 0.0 && odd);
}

fn power_i32(x: i32, y: i32) -> i32 {
    var result = 1;
    for (var k = 0; k < y; k++) { result *= x; }
    return result;
}

// Saturates early, since exp overflows inside some drivers' tanh.
fn tanh_safe(x: f32) -> f32 {
    return tanh(clamp(x, -15.0, 15.0));
}

fn sigmoid(x: f32) -> f32 {
    let e = exp(-abs(x));
    return select(e, 1.0, x >= 0.0) / (1.0 + e);
}

// log(1 + exp(x)) without overflow.
fn softplus(x: f32) -> f32 {
    return max(x, 0.0) + log(1.0 + exp(-abs(x)));
}

