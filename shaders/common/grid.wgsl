// The number of this workgroup in a grid that may be folded over two dimensions. The last fold may have a few too many.
fn workgroup_index(id: vec3<u32>, count: vec3<u32>) -> u32 {
    return id.y * count.x + id.x;
}

