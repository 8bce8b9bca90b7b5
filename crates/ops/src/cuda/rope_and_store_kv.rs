//! Normalises and rotates queries and keys in place, and copies keys and values into their slots: lanes per head.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use bytemuck::{Pod, Zeroable};

use super::driver::Kernel;
use super::gpu::Gpu;
use super::launch::{Argument, Grid, Launch};
use super::matrix::{Matrix, dense, on_16_bytes, owned, widest};
use super::{ROPE_AND_STORE_KV, element};
use crate::cube::QkvInputs;
use crate::e4m3::E4M3;
use crate::rope_and_store_kv::QkvOptions;

const THREADS: usize = 128;

/// `Shape` of the source.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Shape {
    num_heads: i32,
    num_kv_heads: i32,
    head_dim: i32,
    rotary_dim: i32,
    row_stride: i64,
    table_stride: i64,
    slot_stride: i64,
    head_stride: i64,
    eps: f32,
    normalise: i32,
    lanes: i32,
    wide: i32,
}

pub(crate) fn rope_and_store_kv(inputs: QkvInputs) -> (CubeTensor, CubeTensor, CubeTensor) {
    let QkvInputs { qkv, target: inputs } = inputs;
    let QkvOptions { heads, rotary_dim, norm_eps } = inputs.options;
    let qkv = Matrix::of(owned(qkv));
    let (key_cache, value_cache) = (owned(inputs.key_cache), owned(inputs.value_cache));
    let (query_norm, key_norm) = (dense(inputs.query_norm), dense(inputs.key_norm));
    // Without a rotation something of rank 1 stands in for the table, and is not read.
    let table = dense(inputs.table);
    let [slot_stride, head_stride] = cache_strides(&key_cache, &value_cache);
    let (dtype, cache_dtype) = (qkv.tensor.dtype, key_cache.dtype);

    let strides = [qkv.stride, slot_stride, head_stride, heads.head_dim, rotary_dim / 2];
    let operands = [&qkv.tensor, &key_cache, &value_cache, &query_norm, &key_norm, &table];
    let wide = widest(dtype) == widest(cache_dtype)
        && strides.iter().all(|stride| stride.is_multiple_of(widest(dtype)))
        && operands.into_iter().all(on_16_bytes);
    let elements_per_lane = if wide { widest(dtype) } else { 1 };
    // The rotated halves go together; what is not rotated goes after them.
    let longest = (rotary_dim / 2).max(heads.head_dim - rotary_dim);
    let lanes = longest.div_ceil(elements_per_lane).next_power_of_two().min(32);
    let shape = Shape {
        num_heads: heads.num_heads as i32,
        num_kv_heads: heads.num_kv_heads as i32,
        head_dim: heads.head_dim as i32,
        rotary_dim: rotary_dim as i32,
        row_stride: qkv.stride as i64,
        table_stride: rotary_dim as i64,
        slot_stride: slot_stride as i64,
        head_stride: head_stride as i64,
        eps: norm_eps.unwrap_or(0.0),
        normalise: norm_eps.is_some().into(),
        lanes: lanes as i32,
        wide: wide.into(),
    };
    let kernel = Kernel::new(&ROPE_AND_STORE_KV, "rope_and_store_kv").word("ELEMENT", element(dtype));
    let kernel = Gpu::current().with_cache(kernel, cache_dtype);
    let blocks = (heads.num_heads + 2 * heads.num_kv_heads).div_ceil(THREADS / lanes);
    Launch::new(kernel, Grid::new([qkv.rows, blocks, 1], THREADS))
        .write(&qkv.tensor)
        .read(&query_norm)
        .read(&key_norm)
        .read(&table)
        .read(&dense(inputs.positions))
        .read(&dense(inputs.slot_mapping))
        .write(&key_cache)
        .write(&value_cache)
        .value(Argument::structure(&shape))
        .submit(&qkv.tensor);
    (qkv.tensor, key_cache, value_cache)
}

/// Elements from one slot to the next and from one head to the next, of a cache whose heads have no gaps.
pub(super) fn cache_strides(keys: &CubeTensor, values: &CubeTensor) -> [usize; 2] {
    let strides = &keys.meta.strides;
    assert_eq!(strides[2], 1, "the KV cache keeps the elements of a head together");
    assert_eq!(strides, &values.meta.strides, "keys and values are laid out alike");
    assert!(matches!(keys.dtype, DType::F32 | DType::F16 | DType::BF16 | E4M3), "a KV cache in {:?}", keys.dtype);
    assert_eq!(keys.dtype, values.dtype, "keys and values have one dtype");
    [strides[0], strides[1]]
}
