
// A dispatch that is many calls of one kernel, each of some of its workgroups.
//
// `calls` begins with two words a workgroup: where its call's block is, and which of the call's workgroups it is. A block
// is the place of each of the {{tensors}} tensors in the buffer that is bound for it, in elements of its type there, and the
// parameters.

@group(0) @binding(0) var<storage, read> calls: array<i32>;

var<private> call_params: i32;
{{starts}}

fn param(k: i32) -> i32 {
    return calls[call_params + k];
}

// What each invocation of `workgroup` of the dispatch does first; which of its call's workgroups it is.
fn begin(workgroup: u32) -> u32 {
    let block = calls[2u * workgroup];
{{places}}
    call_params = block + {{tensors}};
    return u32(calls[2u * workgroup + 1u]);
}
