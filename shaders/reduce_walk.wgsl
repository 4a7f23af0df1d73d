// Shared by reductions (see reduce.wgsl) that go element by element.

// Combines every `step`th element of output i, from `first` to before `end`.
fn combined(i: i32, first: i32, end: i32, step: i32) -> {{type}} {
    let kept = param(4);
    let reduced = param(5);
    let base = param(2) + address(i, kept, 9, 9 + kept);
    let sizes = 9 + 2 * kept;
    var sum = bitcast<{{type}}>(param(3));
    if (reduced == 1) {
        let stride = param(sizes + 1);
        for (var j = first; j < end; j += step) {
            sum = combine(sum, map(x[base + j * stride]));
        }
    } else if (reduced == 2) {
        let inner = u32(param(sizes + 1));
        let outer_stride = param(sizes + 2);
        let stride = param(sizes + 3);
        for (var j = first; j < end; j += step) {
            let line = u32(j) / inner;
            let place = u32(j) - line * inner;
            sum = combine(sum, map(x[base + i32(line) * outer_stride + i32(place) * stride]));
        }
    } else {
        for (var j = first; j < end; j += step) {
            sum = combine(sum, map(x[base + address(j, reduced, sizes, sizes + reduced)]));
        }
    }
    return sum;
}
