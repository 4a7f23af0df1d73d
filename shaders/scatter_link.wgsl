// First of three kernels that scatter many updates: lists, for each destination, the updates that go there.
//
//   head[c] = the last update linked to destination c, next[e] = the one linked before e, −1 at the end
//
// One invocation an update e. Linking is by atomic exchange, so the order of a list is chance: scatter_order.wgsl
// sorts it. A destination is the row-major number of the place that an index names.
// Words: 0 updates, 1 offset of index, 2 components, 3 stride of index between components, 4 rank of the updates,
//        5… sizes of the updates, strides of index, what a step along each adds to the destination,
//        then for each component the size of its axis and what a step along it adds.

@group(0) @binding(1) var<storage, read> index: array<i32>;
@group(0) @binding(2) var<storage, read_write> head: array<atomic<i32>>;
@group(0) @binding(3) var<storage, read_write> next: array<i32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let e = i32((group.y * groups.x + group.x) * 64u + lane);
    if (e >= param(0)) { return; }
    let rank = param(4);
    let source = param(1) + address(e, rank, 5, 5 + rank);
    var to = address(e, rank, 5, 5 + 2 * rank);
    let axes = 5 + 3 * rank;
    for (var k = 0; k < param(2); k++) {
        let size = param(axes + 2 * k);
        let t = index[source + k * param(3)];
        let place = select(t, t + size, t < 0);
        if (place < 0 || place >= size) { return; }
        to += place * param(axes + 2 * k + 1);
    }
    next[e] = atomicExchange(&head[to], e);
}
