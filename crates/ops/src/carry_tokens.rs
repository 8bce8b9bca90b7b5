//! The choices of one step as input of the next, without a way through the host.

use burn::backend::{Backend, Dispatch, backend_extension, tensor::IntTensor};
use burn::tensor::{Int, Tensor};

use crate::Sampled;

/// Carries choices over, on backend tensors.
#[backend_extension(Flex: cfg(feature = "cpu"), Cube: cfg(any(feature = "wgpu", feature = "cuda")))]
pub trait CarryTokens: Backend {
    /// See [`carry_tokens`].
    fn carry_tokens(tokens: IntTensor<Self>, sources: IntTensor<Self>, choices: IntTensor<Self>) -> IntTensor<Self>;
}

/// Puts what row `sources[t] - 1` of `sampled` chose into `tokens[t]`, where `sources[t]` is not 0; a row whose logits
/// were not finite gives 0.
///
/// The result is written into the very memory of `tokens`, of which a [`section`](crate::section) shows it: on GPUs only,
/// the processor's steps are over before the next begins.
pub fn carry_tokens(tokens: &Tensor<1, Int>, sources: &Tensor<1, Int>, sampled: &Sampled) {
    assert_eq!(tokens.dims(), sources.dims(), "carry_tokens: a source for each token");
    let (tokens, sources) = (tokens.clone().into_dispatch(), sources.clone().into_dispatch());
    drop(Tensor::<1, Int>::from_dispatch(Dispatch::carry_tokens(tokens, sources, sampled.ids().into_dispatch())));
}

#[cfg(feature = "cpu")]
impl CarryTokens for burn_flex::Flex {
    fn carry_tokens(_: IntTensor<Self>, _: IntTensor<Self>, _: IntTensor<Self>) -> IntTensor<Self> {
        unreachable!("carry_tokens: on the processor a step is over before the next begins")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::testing::for_each_device;
    use crate::{Backend, RowParams, SamplePlan, backend_of, float_tensor, int_tensor, sample, section};

    /// What three rows of logits chose, on the device and as numbers.
    pub(crate) fn choices_of_three_rows(device: &Device) -> (Sampled, Vec<i32>) {
        let logits = float_tensor((0..3 * 7).map(|at| ((at * 5) % 7) as f32).collect(), [3, 7], device);
        let rows: Vec<RowParams> = (0..3).map(RowParams::greedy).collect();
        let plan = SamplePlan::new(&rows, 3, 7);
        let length = plan.words.len();
        let sampled = sample(&logits, &int_tensor(plan.words, [length], device), plan.options);
        let chosen = sampled.ids().into_data().try_to_vec().expect("32-bit integers");
        (sampled, chosen)
    }

    #[test]
    fn tokens_with_a_source_are_what_it_chose_and_the_others_stay() {
        for_each_device(|device| {
            if backend_of(device) == Backend::Cpu {
                return;
            }
            let (sampled, chosen) = choices_of_three_rows(device);
            let buffer =
                int_tensor((100..228).map(|value| if value < 164 { value } else { 0 }).collect(), [128], device);
            drop(crate::overwrite(section(&buffer, 64, 5), vec![0, 3, 0, 1, 2]));
            carry_tokens(&section(&buffer, 0, 5), &section(&buffer, 64, 5), &sampled);
            let values: Vec<i32> = buffer.into_data().try_to_vec().expect("32-bit integers");
            assert_eq!(values[..6], [100, chosen[2], 102, chosen[0], chosen[1], 105]);
        });
    }
}
