// Rows of a table by index, widened to 32 bits.
//
// A thread takes one element of the result.
// Memory: reads the chosen rows and writes the result once.
// Limits: elements of the table below 2^32.

struct Parameters {
    elements: u32, // of the result
    width: u32,    // elements of a row
}

#if PACKED
@group(0) @binding(_) var<storage, read_write> packed_words: array<u32>; // [N, width / 8, GROUP_WORDS]
#else
@group(0) @binding(_) var<storage, read_write> table: array<Packed>; // [N, width]
#end
@group(0) @binding(_) var<storage, read_write> ids: array<i32>;      // [T]
@group(0) @binding(_) var<storage, read_write> out: array<Element>;  // [T, width]
@group(0) @binding(_) var<uniform> parameters: Parameters;

#if PACKED
fn table_at(index: u32) -> Element {
    return packed_quad(index);
}
#else
#if HALF
#if VECTOR
alias Packed = vec2<u32>; // four halves

fn table_at(index: u32) -> Element {
    let packed = table[index];
    return vec4(unpack2x16float(packed.x), unpack2x16float(packed.y));
}
#else
alias Packed = u32; // two halves

fn table_at(index: u32) -> Element {
    return unpack2x16float(table[index / 2u] >> (index % 2u * 16u)).x;
}
#end
#else
alias Packed = Element;

fn table_at(index: u32) -> Element {
    return table[index];
}
#end
#end

@compute @workgroup_size($WORKGROUP)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = workgroup_index(id, count) * $WORKGROUPu + thread;
    if (at >= parameters.elements) {
        return;
    }
    let row = u32(ids[at / parameters.width]);
    out[at] = table_at(row * parameters.width + at % parameters.width);
}
