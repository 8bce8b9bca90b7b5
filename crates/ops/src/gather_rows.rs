//! Rows of a table by index: the embedding lookup, and the choice of the rows whose logits are wanted.

use burn::backend::Dispatch;
use burn::tensor::{DType, Int, Tensor};

use crate::{FusedOps, Weight};

/// `out[t] = table[ids[t]]`.
///
/// `table` is `[N, K]` in a weight dtype or the activation dtype, `ids` is `[T]` with values below `N`; the result is
/// `[T, K]` in the backend's activation dtype.
pub fn gather_rows(table: &Tensor<2>, ids: &Tensor<1, Int>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::gather_rows(table.clone().into_dispatch(), ids.clone().into_dispatch()))
}

/// [`gather_rows`] of a matrix that may be held in parts.
pub fn gather_rows_of(table: &Weight, ids: &Tensor<1, Int>) -> Tensor<2> {
    let (first, rest) = table.parts().split_first().expect("a matrix has a part");
    if rest.is_empty() {
        return gather_rows(first, ids);
    }
    // Every part gives a row for every id, and the last part that begins at or before the id has the right one.
    let [mut start, columns] = first.dims();
    let mut found = gather_rows(first, &ids.clone().clamp(0, start as i32 - 1));
    for part in rest {
        let [rows, _] = part.dims();
        let local = ids.clone() - start as i32;
        let here = gather_rows(part, &local.clone().clamp(0, rows as i32 - 1));
        let is_here = local.greater_equal_elem(0).unsqueeze_dim::<2>(1).expand([ids.dims()[0], columns]);
        found = found.mask_where(is_here, here);
        start += rows;
    }
    found
}

/// The same in plain tensor operations, in 32-bit floats.
pub fn reference(table: &Tensor<2>, ids: &Tensor<1, Int>) -> Tensor<2> {
    table.clone().select(0, ids.clone()).cast(DType::F32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::int_tensor;
    use crate::testing::{Seeded, assert_close, for_each_device, moved, reference_device, weight_dtypes};

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
            let parts = Weight::from_parts(vec![rows(0, 10), rows(10, 1), rows(11, 22)]);
            let ids = int_tensor(vec![32, 0, 9, 10, 11, 10, 20], [7], device);
            assert_close(gather_rows_of(&parts, &ids), gather_rows(&table, &ids), 0.0);
        });
    }
}
