// Second of three kernels that scatter many updates: puts each list in the order of its updates, so that sums come
// out the same every time.
//
// One invocation a destination. Lists come nearly in falling order, since updates run in rising order; then each
// element goes to the front at once.
// Words: 0 destinations.

@group(0) @binding(1) var<storage, read_write> head: array<i32>;
@group(0) @binding(2) var<storage, read_write> next: array<i32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let c = i32((group.y * groups.x + group.x) * 64u + lane);
    if (c >= param(0)) { return; }
    var first = -1;
    var rest = head[c];
    while (rest >= 0) {
        let e = rest;
        rest = next[e];
        if (first < 0 || e < first) {
            next[e] = first;
            first = e;
        } else {
            var before = first;
            while (next[before] >= 0 && next[before] < e) { before = next[before]; }
            next[e] = next[before];
            next[before] = e;
        }
    }
    head[c] = first;
}
