//! New contents for an index tensor that a captured graph reads.

use burn::backend::{Backend, Dispatch, backend_extension, tensor::IntTensor};
use burn::tensor::{Int, Tensor};

#[cfg(feature = "cuda")]
use self::on_cuda::OverwriteCarrying as _;
use crate::attention::forget_derived;
use crate::{Sampled, carry_tokens, section};

/// Replaces the contents of a tensor, on backend tensors.
#[backend_extension(Flex: cfg(feature = "cpu"), Cube: cfg(any(feature = "wgpu", feature = "cuda")))]
pub trait Overwrite: Backend {
    /// See [`overwrite`].
    fn overwrite(target: IntTensor<Self>, values: Vec<i32>) -> IntTensor<Self>;
}

/// Gives `target` new values of the same number. On GPUs they are written into the very buffer of `target`, in order with
/// the work enqueued before and after; the returned tensor is the one to use from then on.
pub fn overwrite<const D: usize>(target: Tensor<D, Int>, values: Vec<i32>) -> Tensor<D, Int> {
    assert_eq!(target.shape().num_elements(), values.len(), "overwrite: size");
    forget_derived();
    Tensor::from_dispatch(Dispatch::overwrite(target.into_dispatch(), values))
}

/// Tokens of a step that the step before it has chosen.
#[derive(Clone, Copy, Debug)]
pub struct Carried<'a> {
    /// How many tokens the words of the step begin with.
    pub tokens: usize,
    /// The word at which their sources begin: for each token 1 plus the row that chose it, or 0. On a boundary of sections.
    pub sources: usize,
    /// The choices of the step before.
    pub sampled: &'a Sampled,
}

/// [`overwrite`] and then [`carry_tokens`] in the target, in one kernel where the device reads the host's memory.
pub fn overwrite_carrying(target: Tensor<1, Int>, values: Vec<i32>, carried: Carried) -> Tensor<1, Int> {
    let Carried { tokens, sources, sampled } = carried;
    assert!(tokens.max(sources + tokens) <= values.len(), "overwrite_carrying: a source for each token");
    #[cfg(feature = "cuda")]
    if crate::backend_of(&target.device()) == crate::Backend::Cuda {
        assert_eq!(target.shape().num_elements(), values.len(), "overwrite: size");
        forget_derived();
        let (target, choices) = (target.into_dispatch(), sampled.ids().into_dispatch());
        return Tensor::from_dispatch(Dispatch::overwrite_carrying(target, values, (tokens, sources), choices));
    }
    let target = overwrite(target, values);
    carry_tokens(&section(&target, 0, tokens), &section(&target, sources, tokens), sampled);
    target
}

#[cfg(feature = "cpu")]
impl Overwrite for burn_flex::Flex {
    fn overwrite(mut target: IntTensor<Self>, values: Vec<i32>) -> IntTensor<Self> {
        target.storage_mut::<i32>().copy_from_slice(&values);
        target
    }
}

#[cfg(feature = "cuda")]
pub(crate) mod on_cuda {
    use super::*;

    /// Both in one, on backend tensors.
    #[backend_extension(Cube)]
    pub trait OverwriteCarrying: Backend {
        /// See [`overwrite_carrying`]. The places are the number of tokens and where their sources begin.
        fn overwrite_carrying(
            target: IntTensor<Self>,
            values: Vec<i32>,
            places: (usize, usize),
            choices: IntTensor<Self>,
        ) -> IntTensor<Self>;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::carry_tokens::tests::choices_of_three_rows;
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    use crate::read_back::read_back;
    use crate::testing::for_each_device;
    use crate::{Backend, backend_of, int_tensor};

    #[test]
    fn a_tensor_has_its_new_values() {
        for_each_device(|device| {
            let tensor = overwrite(int_tensor(vec![1, 2, 3], [3], device), vec![4, -5, 6]);
            let values: Vec<i32> = tensor.into_data().try_to_vec().expect("32-bit integers");
            assert_eq!(values, vec![4, -5, 6]);
        });
    }

    #[test]
    fn words_and_the_tokens_among_them_that_rows_chose_are_written_together() {
        for_each_device(|device| {
            if backend_of(device) == Backend::Cpu {
                return;
            }
            let (sampled, chosen) = choices_of_three_rows(device);
            // The longer ones are too long for a kernel to fetch.
            for length in [70, 1_000, 80_000] {
                let mut words: Vec<i32> = (0..length).map(|at| 100 + at).collect();
                words[64..70].copy_from_slice(&[0, 3, 1, 0, 0, 2]);
                let target = int_tensor(vec![-1; length as usize], [length as usize], device);
                let carried = Carried { tokens: 6, sources: 64, sampled: &sampled };
                let values: Vec<i32> = overwrite_carrying(target, words.clone(), carried)
                    .into_data()
                    .try_to_vec()
                    .expect("32-bit integers");
                (words[1], words[2], words[5]) = (chosen[2], chosen[0], chosen[1]);
                assert!(values == words, "{length} words");
            }
        });
    }

    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    #[test]
    fn results_are_those_of_their_own_step_however_many_are_enqueued() {
        for_each_device(|device| {
            let length = 9_001;
            let words = |step: i32| (0..length).map(move |at| step * 100_000 + at).collect::<Vec<i32>>();
            let mut target = int_tensor(words(0), [length as usize], device);
            let mut readings = Vec::new();
            for step in 1..=100 {
                target = overwrite(target, words(step));
                readings.push(read_back(target.clone()));
                // A reading that is given up harms nobody.
                drop(read_back(target.clone()));
            }
            for (step, reading) in (1..).zip(readings) {
                let values = cubecl_environment::future::block_on(reading).expect("the device works");
                assert!(values == words(step), "step {step}");
            }
        });
    }
}
