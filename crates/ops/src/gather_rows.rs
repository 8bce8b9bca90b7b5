//! Rows of a table by index: the embedding lookup, and the choice of the rows whose logits are wanted.

use burn::backend::Dispatch;
use burn::tensor::{DType, Int, Tensor};

use crate::FusedOps;

/// `out[t] = table[ids[t]]`.
///
/// `table` is `[N, K]` in a weight dtype or the activation dtype, `ids` is `[T]` with values below `N`; the result is
/// `[T, K]` in the backend's activation dtype.
pub fn gather_rows(table: &Tensor<2>, ids: &Tensor<1, Int>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::gather_rows(table.clone().into_dispatch(), ids.clone().into_dispatch()))
}

/// [`gather_rows`] of a matrix that may be held in parts.
pub fn gather_rows_of(table: &Weight, ids: &Tensor<1, Int>) -> Tensor<2> {
    let mut first = 0;
    let rows = table.parts().iter().map(|part| {
        let [rows, columns] = part.dims();
        // Each part gives a row for every id; those of other parts' ids are not taken.
        let within = ids.clone() - first;
        first += rows as i32;
        let other = within.clone().lower_elem(0).bool_or(within.clone().greater_equal_elem(rows as i32));
        let found = gather_rows(part, &within.clamp(0, rows as i32 - 1));
        (found, other.unsqueeze_dim::<2>(1).expand([ids.dims()[0], columns]))
    });
    match table.parts() {
        [whole] => gather_rows(whole, ids),
        _ => rows.map(|(found, _)| found).next().expect("a matrix has a part"),
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
    use crate::testing::{Seeded, assert_close, for_each_device};

    #[test]
    fn rows_equal_the_reference_in_every_weight_dtype() {
        for_each_device(|device| {
            let mut seeded = Seeded::new(1);
            for dtype in crate::testing::weight_dtypes(device) {
                for columns in [1, 7, 64, 130] {
                    let table = seeded.tensor([33, columns], device).cast(dtype);
                    let ids = int_tensor(vec![0, 32, 5, 5, 31], [5], device);
                    assert_close(gather_rows(&table, &ids), reference(&table, &ids), 0.0);
                }
            }
        });
    }
}
