//! Kernels for the processor: plain loops over slices, compiled for the widest vectors, split over threads by rows.
//!
//! Activations are 32-bit floats; weights may be 16-bit and are widened on the fly, so that decoding reads half the bytes.
//! Every sum has a fixed order that depends on the row alone, never on the batch or the number of threads.

mod activation;
mod gather_rows;
pub(crate) mod lanes;
mod layer_norm;
mod linear;
mod math;
mod narrow;
mod packed;
mod paged_attention;
mod rms_norm;
mod rope_and_store_kv;
mod sample;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape, TensorData};
use burn_flex::{Flex, FlexTensor};

use crate::Packing;
use crate::activation::Activation;
use crate::attention::{AttentionOptions, Derived, KvTensors, QueryLens};
use crate::backend::{FusedOps, Optional, PackedOps};
use crate::rope_and_store_kv::QkvOptions;
use crate::sample::SampleOptions;

impl FusedOps for Flex {
    fn gather_rows(table: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        gather_rows::gather_rows(&table, &ids)
    }
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        rms_norm::rms_norm(&x, &weight, eps)
    }
    fn add_rms_norm(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        rms_norm::add_rms_norm(&x, residual, &weight, eps)
    }
    fn layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        layer_norm::layer_norm(&x, &weight, &bias, eps)
    }
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Optional<Self>,
        residual: Optional<Self>,
    ) -> FloatTensor<Self> {
        linear::linear(&x, &weight, bias.given().as_ref(), residual.given().as_ref())
    }
    fn activation(x: FloatTensor<Self>, kind: Activation) -> FloatTensor<Self> {
        activation::activation(x, kind)
    }
    fn gated_activation(gate_up: FloatTensor<Self>, kind: Activation) -> FloatTensor<Self> {
        activation::gated_activation(&gate_up, kind)
    }
    fn rope_and_store_kv(
        qkv: FloatTensor<Self>,
        query_norm: FloatTensor<Self>,
        key_norm: FloatTensor<Self>,
        table: FloatTensor<Self>,
        positions: IntTensor<Self>,
        slot_mapping: IntTensor<Self>,
        cache: KvTensors<Self>,
        options: QkvOptions,
    ) -> (FloatTensor<Self>, KvTensors<Self>) {
        let parameters = rope_and_store_kv::Parameters { query_norm, key_norm, table, options };
        rope_and_store_kv::rope_and_store_kv(qkv, &parameters, (&positions, &slot_mapping), cache)
    }
    fn paged_attention(
        qkv: FloatTensor<Self>,
        cache: KvTensors<Self>,
        positions: IntTensor<Self>,
        sequence_of_token: IntTensor<Self>,
        block_tables: IntTensor<Self>,
        _query_starts: IntTensor<Self>,
        _context_lens: IntTensor<Self>,
        _query_lens: QueryLens,
        _derived: Derived,
        options: AttentionOptions,
    ) -> FloatTensor<Self> {
        paged_attention::paged_attention(&qkv, &cache, (&positions, &sequence_of_token, &block_tables), options)
    }
    fn sample(logits: FloatTensor<Self>, plan: IntTensor<Self>, options: SampleOptions) -> IntTensor<Self> {
        sample::sample(&logits, &plan, options)
    }
}

impl PackedOps for Flex {
    fn linear_packed(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        packing: Packing,
        bias: Optional<Self>,
        residual: Optional<Self>,
    ) -> FloatTensor<Self> {
        packed::linear_packed(&x, (&words, packing), bias.given().as_ref(), residual.given().as_ref())
    }
    fn gather_packed_rows(words: IntTensor<Self>, ids: IntTensor<Self>, packing: Packing) -> FloatTensor<Self> {
        packed::gather_packed_rows(&words, &ids, packing)
    }
}

/// The elements of a contiguous tensor of 32-bit floats. Views made by slicing are copied first.
fn floats(tensor: &FlexTensor) -> std::borrow::Cow<'_, [f32]> {
    match tensor.as_slice::<f32>() {
        Some(values) => values.into(),
        None => tensor.to_contiguous().storage::<f32>().to_vec().into(),
    }
}

/// The elements of a contiguous index tensor.
fn indices(tensor: &FlexTensor) -> &[i32] {
    tensor.as_slice::<i32>().expect("index tensors are made by `int_tensor`: contiguous, 32 bits")
}

/// Exclusive access to the elements of a tensor of 32-bit floats, in place when it is the only owner.
fn floats_mut(tensor: &mut FlexTensor) -> &mut [f32] {
    if !tensor.is_contiguous() || tensor.as_slice::<f32>().map(<[f32]>::len) != Some(tensor.bytes().len() / 4) {
        *tensor = tensor.to_contiguous();
    }
    tensor.storage_mut::<f32>()
}

/// The bytes of a contiguous tensor.
fn bytes(tensor: &FlexTensor) -> &[u8] {
    tensor.as_slice::<u8>().expect("caches are made by `KvLayer`: contiguous bytes")
}

/// A tensor `[rows, columns]` of 32-bit floats.
fn tensor2(values: Vec<f32>, rows: usize, columns: usize) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, Shape::from([rows, columns])))
}

/// `[rows, columns]` of a tensor of rank 2.
fn dims2(tensor: &FlexTensor) -> [usize; 2] {
    let shape = tensor.layout().shape();
    [shape[0], shape[1]]
}

/// Refuses a dtype that no kernel here reads.
fn unsupported(dtype: DType) -> ! {
    panic!("the CPU kernels read f32, f16 and bf16, not {dtype:?}: `Weight` was made with another dtype")
}
