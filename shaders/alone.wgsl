
// The parameters of a dispatch that is one call: a uniform array of 32-bit words.

@group(0) @binding(0) var<uniform> params: array<vec4<i32>, {{words}}>;

fn param(k: i32) -> i32 {
    return params[k >> 2u][k & 3];
}
