var<workgroup> partial: array<f32, $WORKGROUP>;

// The sum of one value of each thread of the workgroup, as a binary tree: its order depends on WORKGROUP alone.
fn workgroup_sum(thread: u32, value: f32) -> f32 {
    partial[thread] = value;
    workgroupBarrier();
    for (var width = $WORKGROUPu / 2u; width > 0u; width /= 2u) {
        if (thread < width) {
            partial[thread] += partial[thread + width];
        }
        workgroupBarrier();
    }
    let total = partial[0];
    workgroupBarrier(); // `partial` may be written again
    return total;
}

