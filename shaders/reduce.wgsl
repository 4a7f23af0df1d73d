// Shared by the reductions over any axes.
//
//   y[p, i] = finish(combine over j of part p of map(x[kept(i) + reduced(j)]))      for i < n, p < parts, j < len
//
// {{map}}, {{combine}} and {{finish}} are expressions of the reduction (see lower/reduce.rs), {{type}} is {{scalar}} or a vector of it. Parts of a long reduction are
// combined by a second one.
// Words: 0 n, 1 len, 2 offset of x, 3 start value (bits), 4 rank kept, 5 rank reduced, 6 elements of a part, 7 parts,
//        8 what {{finish}} calls len, 9… sizes kept, strides kept, sizes reduced, strides reduced.

@group(0) @binding(1) var<storage, read> x: array<{{type}}>;
@group(0) @binding(2) var<storage, read_write> y: array<{{type}}>;

fn map(v: {{type}}) -> {{type}} { return {{map}}; }
fn combine(a: {{type}}, b: {{type}}) -> {{type}} { return {{combine}}; }
fn finish(v: {{type}}, len: {{type}}) -> {{type}} { return {{finish}}; }
