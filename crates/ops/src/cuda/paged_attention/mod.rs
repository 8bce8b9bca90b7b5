//! Attention over the paged cache: which kernels a batch takes.
//!
//! In 16 bits, and with a cache of 8, tensor cores: sequences with one token in the batch go to [`decode`], those with several
//! to [`prefill`], which takes the instructions of Hopper where they fit. A batch with both is two launches that leave each
//! other's sequences alone, and may run at the same time. Everything else (32-bit floats, odd head sizes, old cards) goes to
//! [`any_dtype`].
//!
//! Within [`prefill`] a row's bits depend on its query and its context alone, within [`decode`] also on the other sequences. So
//! where a token must have the same bits in every batch, [`decode`] takes none; on Hopper single tokens then go to a form of
//! [`prefill`]'s kernel that is made for them and gives the same bits ([`wgmma`]). Many short contexts go there in any case: it reads
//! them faster.

mod any_dtype;
mod decode;
mod prefill;
mod wgmma;

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use bytemuck::{Pod, Zeroable};

use super::gpu::{Gpu, is_batch_invariant};
use super::kernel::Kernel;
use super::launch::Argument;
use super::matrix::{Matrix, dense, on_16_bytes, widest};
use super::rope_and_store_kv::{Rotation, cache_strides, can_be_in_halves};
use crate::HeadLayout;
use crate::attention::{AttentionOptions, Derived, QueryLens};
use crate::cube::{AttentionInputs, QkvTarget};
use crate::e4m3::E4M3;
use crate::rope_and_store_kv::QkvOptions;
use any_dtype::attend_any_dtype;
use decode::{Decode, Fresh};
use prefill::Prefill;
use wgmma::{Items, Wgmma};

/// Columns of a head that a tensor-core kernel's registers hold.
const HEAD_DIM_MAX: usize = 256;

/// What decides how the kernels are compiled, beside the GPU's size.
#[derive(Clone, Copy)]
pub(super) struct Form {
    pub dtype: DType,
    pub cache: DType,
    pub heads: HeadLayout,
    pub block_size: usize,
    /// Scores have a cap.
    pub is_capped: bool,
    pub gpu: Gpu,
}

impl Form {
    /// Query heads that share a KV head.
    fn group(&self) -> usize {
        self.heads.num_heads / self.heads.num_kv_heads
    }

    /// Whether tensor cores take these elements and heads.
    fn multiplies(&self) -> bool {
        let by_card = match self.dtype {
            DType::F16 => self.gpu.capability >= 75,
            DType::BF16 => self.gpu.capability >= 80,
            _ => false,
        };
        let head_dim = self.heads.head_dim;
        by_card && [self.dtype, E4M3].contains(&self.cache) && head_dim.is_multiple_of(16) && head_dim <= HEAD_DIM_MAX
    }

    /// Every kernel that batches may take; `options` says what happens to their rows before.
    pub(super) fn kernels(self, options: &QkvOptions) -> Vec<Kernel> {
        let any_dtype = any_dtype::kernels(&self);
        let Some(prefill) = Prefill::new(&self).filter(|_| self.multiplies()) else { return any_dtype };
        let Some(decode) = Decode::new(&self) else { return any_dtype };
        let divide = decode::divide_contexts(&self);
        let fresh = if can_be_in_halves(options, self.dtype, self.cache) { &[false, true][..] } else { &[false] };
        let decodes = fresh.iter().flat_map(|&of| decode.kernels(&self, of));
        decodes.chain([divide, prefill.kernel(&self)]).collect()
    }

    /// What may take single tokens in place of [`decode`]: of few sequences, and of many.
    pub(super) fn single_token_kernels(self) -> impl Iterator<Item = Kernel> {
        let counts = [1, usize::MAX / self.heads.num_kv_heads];
        counts.into_iter().filter_map(move |sequences| self.single_tokens(sequences).map(|single| single.kernel(&self)))
    }

    /// The form of [`prefill`]'s kernel for single tokens of so many sequences, where there is one.
    fn single_tokens(&self, num_sequences: usize) -> Option<Wgmma> {
        let is_few = num_sequences * self.heads.num_kv_heads <= self.gpu.multiprocessors;
        let items = if is_few { Items::FewSingleTokens } else { Items::SingleTokens };
        Wgmma::new(self, items).filter(|_| self.multiplies())
    }
}

/// The operands as the kernels take them.
struct Attention {
    qkv: Matrix,
    keys: CubeTensor,
    values: CubeTensor,
    positions: CubeTensor,
    sequences: CubeTensor,
    tables: Matrix,
    query_starts: CubeTensor,
    context_lens: CubeTensor,
    query_lens: QueryLens,
    derived: Derived,
    options: AttentionOptions,
    gpu: Gpu,
    /// A token that is alone of its sequence has the bits that it has among others.
    is_batch_invariant: bool,
}

/// `Shape` of `attention.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Shape {
    num_tokens: i32,
    num_sequences: i32,
    num_heads: i32,
    num_kv_heads: i32,
    block_size: i32,
    blocks_per_row: i32,
    window: i32,
    divided: i32,
    mixed: i32,
    beside: i32,
    scale: f32,
    softcap: f32,
    row_stride: i64,
    slot_stride: i64,
    head_stride: i64,
}

pub(crate) fn paged_attention(inputs: AttentionInputs) -> CubeTensor {
    let attention = Attention::new(inputs);
    let out = attention.qkv.like(attention.options.heads.output_len());
    match attention.tensor_core_kernels() {
        Some((decode, prefill)) => {
            let decodes = attention.decodes_apart();
            let may_decode = match attention.query_lens {
                QueryLens::Single => true,
                QueryLens::Several => false,
                QueryLens::Mixed => attention.num_sequences() > 1,
            };
            let single = attention.single_tokens(&decode);
            let has_prompts = attention.query_lens != QueryLens::Single || !decodes;
            let is_beside = has_prompts && may_decode && decodes && single.is_none();
            let beside = prefill.share(&attention).filter(|_| is_beside);
            let decode = (may_decode && decodes && single.is_none()).then(|| decode.planned(&attention, beside));
            if has_prompts {
                prefill.launch(&attention, &out, beside);
            }
            if let Some(decode) = decode {
                decode.launch(&attention, &out, None);
            } else if let Some(single) = single.filter(|_| may_decode) {
                single.launch(&attention, &out, None);
            }
        }
        None => attend_any_dtype(&attention, &out),
    }
    out
}

/// Attention to rows as the projection left them, if one kernel does that and what [`rope_and_store_kv`] does: where every
/// token is the only one of its sequence and goes to [`decode`].
///
/// [`rope_and_store_kv`]: super::rope_and_store_kv
pub(super) fn attend_fresh(inputs: AttentionInputs, target: &QkvTarget) -> Option<CubeTensor> {
    let attention = Attention::new(inputs);
    let rotation = Rotation::of(&attention.qkv, target);
    let decodes = attention.query_lens == QueryLens::Single && attention.qkv.rows == attention.num_sequences();
    if !decodes || attention.is_batch_invariant || !rotation.is_in_halves() {
        return None;
    }
    let (decode, _) = attention.tensor_core_kernels()?;
    if decode.divides(&attention) {
        return None; // waiting for the rows would then take longer than a kernel before
    }
    let out = attention.qkv.like(attention.options.heads.output_len());
    decode.planned(&attention, None).launch(&attention, &out, Some(&Fresh { target, rotation }));
    Some(out)
}

impl Attention {
    fn new(inputs: AttentionInputs) -> Self {
        Self {
            qkv: Matrix::of(inputs.qkv),
            keys: inputs.key_cache,
            values: inputs.value_cache,
            positions: dense(inputs.positions),
            sequences: dense(inputs.sequence_of_token),
            tables: Matrix::of(inputs.block_tables),
            query_starts: dense(inputs.query_starts),
            context_lens: dense(inputs.context_lens),
            query_lens: inputs.query_lens,
            derived: inputs.derived,
            options: inputs.options,
            gpu: Gpu::current(),
            is_batch_invariant: is_batch_invariant(),
        }
    }

    fn num_sequences(&self) -> usize {
        self.tables.rows
    }

    /// Query heads that share a KV head.
    fn group(&self) -> usize {
        self.form().group()
    }

    /// Positions of the longest context that the block tables have room for.
    fn context_max(&self) -> usize {
        self.tables.columns * self.options.block_size
    }

    /// The kernels for 16-bit elements, where the tensors and the card allow them.
    fn tensor_core_kernels(&self) -> Option<(Decode, Prefill)> {
        let form = self.form();
        if !form.multiplies() || !self.is_aligned() {
            return None;
        }
        Some((Decode::new(&form)?, Prefill::new(&form)?))
    }

    /// What takes single tokens in place of [`decode`]: with the bits that [`prefill`] gives them, where they must have those, and
    /// where it is faster.
    fn single_tokens(&self, decode: &Decode) -> Option<Wgmma> {
        let is_faster = |wgmma: &Wgmma| {
            self.query_lens == QueryLens::Single && wgmma.fills_multiprocessors() && decode.has_short_contexts(self)
        };
        self.form().single_tokens(self.num_sequences()).filter(|wgmma| self.is_batch_invariant || is_faster(wgmma))
    }

    /// Whether single tokens have a kernel of their own.
    fn decodes_apart(&self) -> bool {
        !self.is_batch_invariant || self.form().single_tokens(self.num_sequences()).is_some()
    }

    fn form(&self) -> Form {
        let AttentionOptions { heads, block_size, softcap, .. } = self.options;
        let is_capped = softcap.is_some();
        Form { dtype: self.qkv.tensor.dtype, cache: self.keys.dtype, heads, block_size, is_capped, gpu: self.gpu }
    }

    /// Whether every row of queries, keys and values can be read in 16 bytes.
    fn is_aligned(&self) -> bool {
        let strides = cache_strides(&self.keys, &self.values);
        let in_cache = 16 / self.keys.dtype.size();
        strides.iter().all(|stride| stride.is_multiple_of(in_cache))
            && self.qkv.stride.is_multiple_of(widest(self.qkv.tensor.dtype))
            && [&self.qkv.tensor, &self.keys, &self.values].into_iter().all(on_16_bytes)
    }

    fn shape(&self) -> Shape {
        let AttentionOptions { heads, block_size, scale, sliding_window, softcap } = self.options;
        let [slot_stride, head_stride] = cache_strides(&self.keys, &self.values);
        Shape {
            num_tokens: self.qkv.rows as i32,
            num_sequences: self.num_sequences() as i32,
            num_heads: heads.num_heads as i32,
            num_kv_heads: heads.num_kv_heads as i32,
            block_size: block_size as i32,
            blocks_per_row: self.tables.stride as i32,
            window: sliding_window.unwrap_or(0).min(i32::MAX as usize) as i32,
            divided: 0,
            // A sequence without tokens is no decoding one either.
            mixed: (self.decodes_apart()
                && (self.query_lens != QueryLens::Single || self.qkv.rows != self.num_sequences()))
            .into(),
            beside: 0,
            scale,
            softcap: softcap.unwrap_or(0.0),
            row_stride: self.qkv.stride as i64,
            slot_stride: slot_stride as i64,
            head_stride: head_stride as i64,
        }
    }
}

/// Bytes from one row of a head to the next in shared memory: chunks of 16 bytes that are swizzled, or an odd number.
fn row_bytes(head_dim: usize, dtype: DType) -> usize {
    let chunks = head_dim * dtype.size() / 16;
    16 * if chunks.is_multiple_of(8) { chunks } else { chunks | 1 }
}

impl Shape {
    fn argument(&self) -> Argument {
        Argument::structure(self)
    }
}
