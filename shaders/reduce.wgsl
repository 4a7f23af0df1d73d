// Shared by the reductions over any axes.
//
//   y[p, i] = finish(combine over j of part p of map(x[kept(i) + reduced(j)]))      for i < n, p < parts, j < len
//
// {{map}}, {{combine}} and {{finish}} are expressions of the reduction (see lower/reduce.rs). Parts of a long reduction are
// combined by a second one.
// Words: 0 n, 1 len, 2 offset of x, 3 start value (bits), 4 rank kept, 5 rank reduced, 6 elements of a part, 7 parts,
//        8 what {{finish}} calls len, 9… sizes kept, strides kept, sizes reduced, strides reduced.

@group(0) @binding(1) var<storage, read> x: array<{{type}}>;
@group(0) @binding(2) var<storage, read_write> y: array<{{type}}>;

fn map(v: {{type}}) -> {{type}} { return {{map}}; }
fn combine(a: {{type}}, b: {{type}}) -> {{type}} { return {{combine}}; }
fn finish(v: {{type}}, len: {{type}}) -> {{type}} { return {{finish}}; }

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
