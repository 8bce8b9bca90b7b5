#if PACKED
// Quantised numbers, widened exactly. Every 32 of a row are a group of GROUP_WORDS words: SCALE_WORDS words of scales, then
// the codes, unsigned ones of four bits (FOUR_BITS) or signed bytes, the first in the lowest bits. A number is
//   HALVES      code * low half + high half of the scales' word,
//   TWO_RUNS    code * one of two scales, for 16 numbers each,
//   otherwise   code * first word + second word.
// No product of a code and a scale is rounded but that of TWO_RUNS, to which nothing is added, so it makes no difference
// whether a compiler fuses multiplications with additions.

// Four consecutive numbers of `packed_words`; rows hold whole groups, so that quads are counted through the matrix.
fn packed_quad(quad: u32) -> vec4<f32> {
    let group = quad / 8u * $GROUP_WORDSu;
#if FOUR_BITS
    let bits = packed_words[group + $SCALE_WORDSu + quad % 8u / 2u] >> (quad % 2u * 16u);
    let codes = vec4<f32>((vec4(bits) >> vec4(0u, 4u, 8u, 12u)) & vec4(15u));
#else
    let bits = bitcast<i32>(packed_words[group + $SCALE_WORDSu + quad % 8u]);
    let codes = vec4<f32>((vec4(bits) << vec4(24u, 16u, 8u, 0u)) >> vec4(24u));
#end
#if HALVES
    let scales = unpack2x16float(packed_words[group]);
    return codes * scales.x + scales.y;
#else
#if TWO_RUNS
    return codes * bitcast<f32>(packed_words[group + quad % 8u / 4u]);
#else
    return codes * bitcast<f32>(packed_words[group]) + bitcast<f32>(packed_words[group + 1u]);
#end
#end
}
#end

