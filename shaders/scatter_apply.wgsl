// Last of three kernels that scatter many updates: each output element goes through the list of its destination.
//
//   y[i] = x[i], then for each update e listed at c: y[i] = combine(y[i], update[e, rest of i])
//
// One invocation an output element, whose destination is its number divided by the elements each update fills.
// {{combine}} is an expression of the old value `v` and the update `u`.
// Words: 0 n, 1 elements an update fills, 2 offset of x, 3 offset of update, 4 rank, 5… sizes, strides of x,
//        strides of update for its part of an element (rank words each), then 5 + 3 · rank: rank of the updates,
//        their sizes, strides of update.

@group(0) @binding(1) var<storage, read> x: array<{{type}}>;
@group(0) @binding(2) var<storage, read> update: array<{{type}}>;
@group(0) @binding(3) var<storage, read> head: array<i32>;
@group(0) @binding(4) var<storage, read> next: array<i32>;
@group(0) @binding(5) var<storage, read_write> y: array<{{type}}>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = i32((group.y * groups.x + group.x) * 64u + lane);
    if (i >= param(0)) { return; }
    let rank = param(4);
    var v = x[param(2) + address(i, rank, 5, 5 + rank)];
    let part = param(3) + address(i, rank, 5, 5 + 2 * rank);
    let updates = 5 + 3 * rank;
    let sizes = updates + 1;
    let steps = sizes + param(updates);
    for (var e = head[i / param(1)]; e >= 0; e = next[e]) {
        let u = update[part + address(e, param(updates), sizes, steps)];
        v = {{combine}};
    }
    y[i] = v;
}
