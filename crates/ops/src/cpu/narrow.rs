//! Products on vectors of four floats, for WebAssembly: its engines have sixteen registers of them, too few for a tile of
//! `dot_tile`, whose partial sums alone are sixteen floats each.
//!
//! The sums are those of `dot_tile`, in its order and so with its bits: sixteen lanes, here four lanes at a time. Up to
//! [`ROWS_MAX`] rows of `x` pass over a row of weights together. They are packed in the order of reading, and a stretch of
//! [`STRETCH`] vectors of sixteen is read four times while it is in the first-level cache. Packed like this five rows take
//! 5.5 ms with 14 million weights in V8, where tiles of four by four took 13 ms for four (two shared cores, best of 40).

use super::lanes::{LANES, Quad, sum_lanes};

/// Rows of `x` whose partial sums stay in registers; six are slower than three and three.
pub(super) const ROWS_MAX: usize = 5;
/// Vectors of sixteen floats of a row after which the next four lanes begin: 2 KiB a row.
const STRETCH: usize = 32;

/// Four lanes of each of `M` rows.
type Quads<const M: usize> = [[f32; 4]; M];

/// The products of up to [`ROWS_MAX`] rows of `x`, `[M, inputs]`, with every row of `weight`; `out` is `[M, width]`.
pub(super) fn multiply(x: &[f32], weight: &[f32], inputs: usize, out: &mut [f32]) {
    match x.len() / inputs {
        1 => multiply_rows::<1>(x, weight, inputs, out),
        2 => multiply_rows::<2>(x, weight, inputs, out),
        3 => multiply_rows::<3>(x, weight, inputs, out),
        4 => multiply_rows::<4>(x, weight, inputs, out),
        _ => multiply_rows::<ROWS_MAX>(x, weight, inputs, out),
    }
}

fn multiply_rows<const M: usize>(x: &[f32], weight: &[f32], inputs: usize, out: &mut [f32]) {
    let (packed, rest) = pack::<M>(x, inputs);
    let width = weight.len() / inputs;
    for (n, row) in weight.chunks_exact(inputs).enumerate() {
        let (vectors, row_rest) = row.as_chunks::<LANES>();
        let mut sums = [[Quad::zero(); 4]; M];
        for (x, vectors) in packed.chunks(4 * STRETCH).zip(vectors.chunks(STRETCH)) {
            let (low, high) = x.split_at(2 * vectors.len());
            add_quarter::<0, M>(&low[..vectors.len()], vectors, &mut sums);
            add_quarter::<1, M>(&low[vectors.len()..], vectors, &mut sums);
            add_quarter::<2, M>(&high[..vectors.len()], vectors, &mut sums);
            add_quarter::<3, M>(&high[vectors.len()..], vectors, &mut sums);
        }
        if !row_rest.is_empty() {
            let mut last = [[0.0; LANES]];
            last[0][..row_rest.len()].copy_from_slice(row_rest);
            add_quarter::<0, M>(&rest[..1], &last, &mut sums);
            add_quarter::<1, M>(&rest[1..2], &last, &mut sums);
            add_quarter::<2, M>(&rest[2..3], &last, &mut sums);
            add_quarter::<3, M>(&rest[3..], &last, &mut sums);
        }
        for m in 0..M {
            out[m * width + n] = sum_of(sums[m]);
        }
    }
}

/// `[stretch, quarter, vector, M]` quads of whole vectors, and `[quarter, M]` quads of the last elements with zeros.
fn pack<const M: usize>(x: &[f32], inputs: usize) -> (Vec<Quads<M>>, [Quads<M>; 4]) {
    let vectors = inputs / LANES;
    let quad = |m: usize, at: usize| {
        let row = &x[m * inputs..(m + 1) * inputs];
        std::array::from_fn(|lane| row.get(at + lane).copied().unwrap_or(0.0))
    };
    let quads = |at: usize| std::array::from_fn(|m| quad(m, at));
    let mut packed = Vec::with_capacity(4 * vectors);
    for start in (0..vectors).step_by(STRETCH) {
        for quarter in 0..4 {
            packed.extend((start..vectors.min(start + STRETCH)).map(|vector| quads(vector * LANES + 4 * quarter)));
        }
    }
    (packed, std::array::from_fn(|quarter| quads(vectors * LANES + 4 * quarter)))
}

/// Four lanes of the products of `M` rows with one.
#[inline(always)]
fn add_quarter<const Q: usize, const M: usize>(x: &[Quads<M>], weight: &[[f32; LANES]], sums: &mut [[Quad; 4]; M]) {
    let mut own = [Quad::zero(); M];
    for m in 0..M {
        own[m] = sums[m][Q];
    }
    for (x, weight) in x.iter().zip(weight) {
        let weight = Quad::load([weight[4 * Q], weight[4 * Q + 1], weight[4 * Q + 2], weight[4 * Q + 3]]);
        for m in 0..M {
            own[m] = Quad::load(x[m]).mul_add(weight, own[m]);
        }
    }
    for m in 0..M {
        sums[m][Q] = own[m];
    }
}

fn sum_of(quads: [Quad; 4]) -> f32 {
    let mut lanes = [0.0; LANES];
    for (lanes, quad) in lanes.as_chunks_mut().0.iter_mut().zip(quads) {
        *lanes = quad.to_array();
    }
    sum_lanes(lanes)
}

#[cfg(test)]
mod tests {
    use super::super::lanes::Portable;
    use super::super::math::dot_tile;
    use super::*;
    use crate::testing::Seeded;

    #[test]
    fn products_have_the_bits_of_a_tile_of_sixteen_lanes() {
        let mut seeded = Seeded::new(77);
        for (rows, inputs, width) in [(1, 1, 1), (1, 576, 3), (2, 33, 5), (3, 15, 2), (4, 1536, 2), (5, 530, 4)] {
            let mut values = |count: usize| -> Vec<f32> { (0..count).map(|_| seeded.value()).collect() };
            let (x, weight) = (values(rows * inputs), values(width * inputs));
            let mut got = vec![0.0; rows * width];
            multiply(&x, &weight, inputs, &mut got);
            for (row, x) in x.chunks(inputs).enumerate() {
                for (n, weight) in weight.chunks(inputs).enumerate() {
                    let [[expected]] = dot_tile::<Portable, 1, 1, f32>([x], [weight]);
                    assert_eq!(got[row * width + n].to_bits(), expected.to_bits(), "{rows} rows of {inputs}");
                }
            }
        }
    }
}
