// Shared by every kernel: the parameters of a call, and strided addressing.
//
// Each kernel's header lists what its parameter words mean; floats are stored as their bits. Where they stand is said by
// alone.wgsl or together.wgsl, at binding 0. Tensors follow from binding 1 on, inputs first. All sizes and strides are in
// elements.

fn param_f32(k: i32) -> f32 {
    return bitcast<f32>(param(k));
}

// Where element `index` (row-major) of a tensor with `rank` dimensions lies. Its sizes stand at words
// `dims`, `dims + 1`, …, its strides at `strides`, ….
fn address(index: i32, rank: i32, dims: i32, strides: i32) -> i32 {
    var rest = index;
    var at = 0;
    for (var d = rank - 1; d >= 0; d--) {
        let size = param(dims + d);
        let quotient = rest / size;
        at += (rest - quotient * size) * param(strides + d);
        rest = quotient;
    }
    return at;
}
