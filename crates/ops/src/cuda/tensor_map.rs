//! Descriptions of tensors for the bulk copy engine of compute capability 9.0.

use burn::tensor::DType;
use cudarc::driver::sys;

use super::driver::check;

/// A tensor of 16-bit elements, and the box of it that one copy moves into rows of 128 swizzled bytes.
#[derive(Clone)]
pub(super) struct TensorMap {
    dtype: DType,
    dimensions: Vec<Dimension>,
}

#[derive(Clone, Copy)]
struct Dimension {
    len: usize,
    /// In elements.
    stride: usize,
    /// Elements that one copy takes.
    copied: usize,
}

impl TensorMap {
    pub(super) fn new(dtype: DType) -> Self {
        Self { dtype, dimensions: Vec::new() }
    }

    /// The next dimension; the first has adjacent elements.
    pub(super) fn dimension(mut self, len: usize, stride: usize, copied: usize) -> Self {
        self.dimensions.push(Dimension { len, stride, copied });
        self
    }

    /// The description of the tensor at `address`, as a kernel takes it.
    pub(super) fn encode(&self, address: u64) -> Result<Vec<u64>, String> {
        let lens: Vec<u64> = self.dimensions.iter().map(|dimension| dimension.len as u64).collect();
        let strides: Vec<u64> =
            self.dimensions[1..].iter().map(|dimension| (dimension.stride * self.dtype.size()) as u64).collect();
        let copied: Vec<u32> = self.dimensions.iter().map(|dimension| dimension.copied as u32).collect();
        let steps = vec![1u32; self.dimensions.len()];
        let dtype = match self.dtype {
            DType::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            DType::BF16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            other => return Err(format!("no bulk copies of {other:?}")),
        };
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: the arrays have as many elements as there are dimensions (strides: one less) and live through the call,
        // which writes to a live, aligned variable; the address is only stored.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                dtype,
                self.dimensions.len() as u32,
                address as *mut std::ffi::c_void,
                lens.as_ptr(),
                strides.as_ptr(),
                copied.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check("cuTensorMapEncodeTiled", result)?;
        Ok(map.opaque.to_vec())
    }
}
