//! Rows of a table by index: the embedding lookup, and the choice of the rows whose logits are wanted.

use burn::backend::Dispatch;
use burn::tensor::{DType, Int, Tensor};

#[cfg(any(feature = "cpu", feature = "wgpu"))]
use crate::backend::PackedOps;
use crate::weight::Part;
use crate::{FusedOps, Weight};

/// `out[t] = table[ids[t]]`.
///
/// `table` is `[N, K]` in a weight dtype or the activation dtype, `ids` is `[T]` with values below `N`; the result is
/// `[T, K]` in the backend's activation dtype.
pub fn gather_rows(table: &Tensor<2>, ids: &Tensor<1, Int>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::gather_rows(table.clone().into_dispatch(), ids.clone().into_dispatch()))
}

/// [`gather_rows`] of a matrix that may be packed, and held in parts.
pub fn gather_rows_of(table: &Weight, ids: &Tensor<1, Int>) -> Tensor<2> {
    let (first, rest) = table.parts().split_first().expect("a matrix has a part");
    if rest.is_empty() {
        return gather_part(first, ids);
    }
    // Every part gives a row for every id, and the last part that begins at or before the id has the right one.
    let [mut start, columns] = first.dims();
    let mut found = gather_part(first, &ids.clone().clamp(0, start as i32 - 1));
    for part in rest {
        let [rows, _] = part.dims();
        let local = ids.clone() - start as i32;
        let here = gather_part(part, &local.clone().clamp(0, rows as i32 - 1));
        let is_here = local.greater_equal_elem(0).unsqueeze_dim::<2>(1).expand([ids.dims()[0], columns]);
        found = found.mask_where(is_here, here);
        start += rows;
    }
    found
}

fn gather_part(part: &Part, ids: &Tensor<1, Int>) -> Tensor<2> {
    match part {
        Part::Dense(values) => gather_rows(values, ids),
        #[cfg(any(feature = "cpu", feature = "wgpu"))]
        Part::Packed(words, packing) => {
            let (words, ids) = (words.clone().into_dispatch(), ids.clone().into_dispatch());
            Tensor::from_dispatch(Dispatch::gather_packed_rows(words, ids, *packing))
        }
        #[cfg(not(any(feature = "cpu", feature = "wgpu")))]
        Part::Packed(..) => unreachable!("`Weight::packed` refuses devices without kernels for it"),
        // Tables stay floats, as every format of FP8 has it.
        Part::Fp8(..) => gather_rows(&part.to_dense(), ids),
    }
}

/// The same in plain tensor operations, in 32-bit floats.
pub fn reference(table: &Tensor<2>, ids: &Tensor<1, Int>) -> Tensor<2> {
    table.clone().select(0, ids.clone()).cast(DType::F32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::int_tensor;
    use crate::testing::{
        Seeded, assert_close, for_each_device, for_each_packed, moved, reference_device, weight_dtypes,
    };

    #[test]
    fn rows_equal_the_reference_in_every_weight_dtype() {
        for_each_device(|device| {
            let mut seeded = Seeded::new(1);
            let host = reference_device(device);
            for dtype in weight_dtypes(device) {
                for columns in [1, 7, 64, 130] {
                    let table = seeded.tensor([33, columns], &host).cast(dtype);
                    let ids = |device| int_tensor(vec![0, 32, 5, 5, 31], [5], device);
                    let got = gather_rows(&moved(&table, device), &ids(device));
                    assert_close(got, reference(&table, &ids(&host)), 0.0);
                }
            }
        });
    }

    #[test]
    fn a_table_in_parts_gives_the_rows_of_the_whole() {
        for_each_device(|device| {
            let table: Tensor<2> = Seeded::new(12).tensor([33, 6], device);
            let rows = |first, count| table.clone().narrow(0, first, count);
            let parts = Weight::join([rows(0, 10), rows(10, 1), rows(11, 22)].map(Weight::dense).into());
            let ids = int_tensor(vec![32, 0, 9, 10, 11, 10, 20], [7], device);
            assert_close(gather_rows_of(&parts, &ids), gather_rows(&table, &ids), 0.0);
        });
    }

    #[test]
    fn rows_of_a_packed_table_are_its_numbers() {
        for_each_packed(|device, packing| {
            for columns in [32, 160] {
                let mut seeded = Seeded::new(13);
                let parts = [20, 13].map(|rows| seeded.packed([rows, columns], (device, packing)));
                let table = Weight::join(parts.into());
                let ids = int_tensor(vec![0, 32, 5, 5, 19, 20], [6], device);
                assert_close(gather_rows_of(&table, &ids), reference(&table.to_dense(), &ids), 0.0);
            }
        });
    }
}
