//! The choices of one step as input of the next, without a way through the host.

use burn::backend::{Backend, Dispatch, backend_extension, tensor::IntTensor};
use burn::tensor::{Int, Tensor};

use crate::Sampled;

/// Carries choices over, on backend tensors; devices other than CUDA's wait for them.
#[backend_extension(Cube)]
pub trait CarryTokens: Backend {
    /// See [`carry_tokens`].
    fn carry_tokens(tokens: IntTensor<Self>, sources: IntTensor<Self>, choices: IntTensor<Self>) -> IntTensor<Self>;
}

/// Puts what row `sources[t] - 1` of `sampled` chose into `tokens[t]`, where `sources[t]` is not 0; a row whose logits
/// were not finite gives 0.
///
/// The result is written into the very memory of `tokens`, of which a [`section`](crate::section) shows it.
pub fn carry_tokens(tokens: &Tensor<1, Int>, sources: &Tensor<1, Int>, sampled: &Sampled) {
    assert_eq!(tokens.dims(), sources.dims(), "carry_tokens: a source for each token");
    let (tokens, sources) = (tokens.clone().into_dispatch(), sources.clone().into_dispatch());
    drop(Tensor::<1, Int>::from_dispatch(Dispatch::carry_tokens(tokens, sources, sampled.ids().into_dispatch())));
}
