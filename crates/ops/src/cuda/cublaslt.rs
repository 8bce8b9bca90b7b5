//! Matrix products through cuBLASLt, with its choice of algorithm kept per shape.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::mem::MaybeUninit;

use burn::tensor::DType;
use cudarc::cublaslt::result as lt;
use cudarc::cublaslt::sys::{
    cublasComputeType_t, cublasLtHandle_t, cublasLtMatmulAlgo_t,
    cublasLtMatmulAlgoConfigAttributes_t as AlgorithmAttribute, cublasLtMatmulAlgoConfigGetAttribute,
    cublasLtMatmulAlgoGetHeuristic, cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t as Description,
    cublasLtMatmulHeuristicResult_t, cublasLtMatmulPreferenceAttributes_t as Preference, cublasLtMatrixLayout_t,
    cublasStatus_t, cudaDataType_t,
};
use cudarc::driver::sys::{CUdeviceptr, CUstream};

use super::driver::allocate;
use super::module_cache::Target;
use crate::e4m3::E4M3;

/// Scratch memory that algorithms may use; what the vendor recommends for Hopper and newer, and for older GPUs.
const WORKSPACE_BYTES_HOPPER: usize = 32 << 20;
const WORKSPACE_BYTES: usize = 8 << 20;

/// Algorithms of which one is chosen. The first is what the library thinks fastest; but on Hopper, where sums are short, those
/// are faster whose tiles are so small that a multiprocessor has room for two of them, of which one multiplies while the
/// other stores its results. Alone on an H200, which then has power to spare, that holds of up to 4,096 inputs; in whole models
/// it does of up to 1,024 (prompts of Qwen3-0.6B, by turns in one run: 483,000 and 485,800 tokens/s with all small, 491,800 and
/// 492,500 with the first from 2,048 inputs on).
const CHOICES: usize = 16;
const ROWS_OF_SMALL_TILES: usize = 1536;
const INPUTS_OF_SMALL_TILES: usize = 1024;
/// `cublasLtMatmulTile_t` 128x128, 144x128, 168x128 and 176x128.
const SMALL_TILES: [u32; 4] = [20, 184, 197, 201];

/// `CUBLASLT_EPILOGUE_BIAS`: a vector is added to each column of the column-major result.
const EPILOGUE_BIAS: u32 = 4;

/// `out [rows, outputs] = x [rows, inputs] · weight [outputs, inputs]ᵀ + bias + residual [rows, outputs]`, all by address,
/// rows apart by strides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    /// Of the result and of the residual.
    pub dtype: DType,
    /// Of `x` and `weight`: the same, or [codes](crate::e4m3), of whose sums the result is [a part](sums_factor).
    pub operands: DType,
    pub rows: usize,
    pub outputs: usize,
    pub inputs: usize,
    pub x_stride: usize,
    pub weight_stride: usize,
    pub x: u64,
    pub weight: u64,
    pub out: u64,
    pub bias: Option<u64>,
    /// With its stride.
    pub residual: Option<(u64, usize)>,
}

/// What sums of products of codes are multiplied by, so that a result in `dtype` holds any of up to 80,000.
pub(super) fn sums_factor(dtype: DType) -> f32 {
    if dtype == DType::F16 { 2f32.powi(-18) } else { 1.0 }
}

impl Product {
    /// What is added, times 0 if there is nothing to add.
    fn added(&self) -> u64 {
        self.residual.map_or(self.out, |(address, _)| address)
    }
}

/// What the library did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Multiplied {
    /// All of it.
    Whole,
    /// The bias is still to be added.
    WithoutBias,
    /// Nothing: it has no algorithm for the dtype on this GPU or for the shape.
    Unsupported,
}

/// What an algorithm depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct PlanKey {
    dtypes: [DType; 2],
    rows: usize,
    outputs: usize,
    inputs: usize,
    strides: [usize; 3],
    alignments: [u32; 4],
    has_bias: bool,
}

#[derive(Clone, Copy)]
struct Plan {
    description: cublasLtMatmulDesc_t,
    algorithm: cublasLtMatmulAlgo_t,
    adds_bias: bool,
}

/// The library, its scratch memory and the algorithms it chose.
pub(super) struct Blas {
    handle: cublasLtHandle_t,
    /// Of each stream: products of different streams may run at the same time.
    workspaces: HashMap<CUstream, CUdeviceptr>,
    workspace_bytes: usize,
    is_hopper: bool,
    /// `None` where the library has no algorithm.
    plans: HashMap<PlanKey, Option<Plan>>,
}

impl Blas {
    pub(super) fn new(target: Target) -> Result<Self, String> {
        let handle = lt::create_handle().map_err(|error| format!("cuBLASLt does not start: {:?}", error.0))?;
        let workspace_bytes = if target.major >= 9 { WORKSPACE_BYTES_HOPPER } else { WORKSPACE_BYTES };
        let (workspaces, plans) = (HashMap::new(), HashMap::new());
        Ok(Self { handle, workspaces, workspace_bytes, is_hopper: target.major == 9, plans })
    }

    /// Enqueues a product.
    pub(super) fn multiply(&mut self, product: &Product, stream: CUstream) -> Result<Multiplied, String> {
        let layouts = Layouts::new(product, product.rows)?;
        let key = PlanKey::of(product);
        let plan = match self.plans.get(&key) {
            Some(plan) => *plan,
            None => {
                let plan = self.plan(product, key)?;
                self.plans.insert(key, plan);
                plan
            }
        };
        let Some(plan) = plan else { return Ok(Multiplied::Unsupported) };
        if plan.adds_bias {
            let bias = product.bias.expect("a plan that adds a bias is for products that have one");
            set_description(plan.description, Description::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        self.enqueue(product, &layouts, &plan, stream)?;
        let is_whole = plan.adds_bias || product.bias.is_none();
        Ok(if is_whole { Multiplied::Whole } else { Multiplied::WithoutBias })
    }

    /// Scratch memory of a stream, made at the first use.
    pub(super) fn workspace(&mut self, stream: CUstream) -> Result<CUdeviceptr, String> {
        Ok(match self.workspaces.entry(stream) {
            Entry::Occupied(workspace) => *workspace.get(),
            Entry::Vacant(place) => {
                let bytes = self.workspace_bytes;
                let failed = |error| format!("no {bytes} bytes of scratch memory for cuBLASLt: {error}");
                *place.insert(allocate(bytes).map_err(failed)?)
            }
        })
    }

    fn enqueue(&mut self, product: &Product, layouts: &Layouts, plan: &Plan, stream: CUstream) -> Result<(), String> {
        let factor = if product.operands == E4M3 { sums_factor(product.dtype) } else { 1.0 };
        let residual_scale = if product.residual.is_some() { 1.0f32 } else { 0.0f32 };
        let added = product.added();
        let workspace = self.workspace(stream)?;
        // SAFETY: the description, layouts and algorithm belong together and are alive; the addresses are those of
        // tensors of these shapes, held by the caller; the scratch memory lives as long as the process.
        let result = unsafe {
            lt::matmul(
                self.handle,
                plan.description,
                (&raw const factor).cast(),
                (&raw const residual_scale).cast(),
                product.weight as *const c_void,
                layouts.weight,
                product.x as *const c_void,
                layouts.x,
                added as *const c_void,
                layouts.added,
                product.out as *mut c_void,
                layouts.out,
                &plan.algorithm,
                workspace as *mut c_void,
                self.workspace_bytes,
                stream.cast(),
            )
        };
        result.map_err(|error| format!("cublasLtMatmul of {product:?}: {:?}", error.0))
    }

    /// The library's choice for the products of `key`: with the bias if it can add one of 32-bit floats.
    fn plan(&self, product: &Product, key: PlanKey) -> Result<Option<Plan>, String> {
        let layouts = Layouts::new(product, key.rows)?;
        for adds_bias in [true, false] {
            if adds_bias && product.bias.is_none() {
                continue;
            }
            let description = describe(adds_bias.then_some(product.bias).flatten())?;
            if let Some(algorithm) = self.choose(description, &layouts, key)? {
                return Ok(Some(Plan { description, algorithm, adds_bias }));
            }
            // SAFETY: created above, used nowhere else.
            let _ = unsafe { lt::destroy_matmul_desc(description) };
        }
        Ok(None)
    }

    fn choose(
        &self,
        description: cublasLtMatmulDesc_t,
        layouts: &Layouts,
        key: PlanKey,
    ) -> Result<Option<cublasLtMatmulAlgo_t>, String> {
        let [x, weight, added, out] = key.alignments;
        let preference = lt::create_matmul_pref().map_err(|error| format!("cuBLASLt: {:?}", error.0))?;
        let set = |attribute, value: *const c_void, size| {
            // SAFETY: the preference is alive; each value has the size that its attribute takes.
            let result = unsafe { lt::set_matmul_pref_attribute(preference, attribute, value, size) };
            result.map_err(|error| format!("cuBLASLt {attribute:?}: {:?}", error.0))
        };
        let bytes = &raw const self.workspace_bytes;
        set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, bytes.cast(), 8)?;
        set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (&raw const weight).cast(), 4)?;
        set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (&raw const x).cast(), 4)?;
        set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (&raw const added).cast(), 4)?;
        set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (&raw const out).cast(), 4)?;
        let mut choices = [const { MaybeUninit::<cublasLtMatmulHeuristicResult_t>::uninit() }; CHOICES];
        let mut found = 0;
        // SAFETY: everything passed is alive, and `choices` has room for as many as are asked for; the preference is destroyed
        // once.
        let result = unsafe {
            let Layouts { weight, x, added, out } = *layouts;
            let to = choices.as_mut_ptr().cast();
            let result = cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                description,
                weight,
                x,
                added,
                out,
                preference,
                CHOICES as i32,
                to,
                &mut found,
            );
            let _ = lt::destroy_matmul_pref(preference);
            result
        };
        if result != cublasStatus_t::CUBLAS_STATUS_SUCCESS {
            return Ok(None); // an answer: another kernel does these products
        }
        // SAFETY: the library has written the first `found`.
        let choices = choices[..found as usize].iter().map(|choice| unsafe { choice.assume_init_ref() });
        let choices: Vec<_> = choices
            .filter(|choice| choice.state == cublasStatus_t::CUBLAS_STATUS_SUCCESS)
            .map(|choice| choice.algo)
            .collect();
        let has_small_tiles =
            |algorithm: &&cublasLtMatmulAlgo_t| self.wants_small_tiles(&key) && SMALL_TILES.contains(&tile(algorithm));
        Ok(choices.iter().find(has_small_tiles).or(choices.first()).copied())
    }

    fn wants_small_tiles(&self, key: &PlanKey) -> bool {
        self.is_hopper
            && key.dtypes.iter().all(|dtype| matches!(dtype, DType::F16 | DType::BF16))
            && key.rows >= ROWS_OF_SMALL_TILES
            && key.inputs <= INPUTS_OF_SMALL_TILES
    }
}

/// The `cublasLtMatmulTile_t` of an algorithm; 0 if it has none.
fn tile(algorithm: &cublasLtMatmulAlgo_t) -> u32 {
    let (mut tile, mut written) = (0u32, 0);
    // SAFETY: the attribute is a number of 4 bytes, which goes to a live variable.
    let result = unsafe {
        let attribute = AlgorithmAttribute::CUBLASLT_ALGO_CONFIG_TILE_ID;
        cublasLtMatmulAlgoConfigGetAttribute(algorithm, attribute, (&raw mut tile).cast(), 4, &mut written)
    };
    if result == cublasStatus_t::CUBLAS_STATUS_SUCCESS { tile } else { 0 }
}

impl PlanKey {
    fn of(product: &Product) -> Self {
        Self {
            dtypes: [product.dtype, product.operands],
            rows: rounded_rows(product.rows),
            outputs: product.outputs,
            inputs: product.inputs,
            strides: [product.x_stride, product.weight_stride, product.residual.map_or(0, |(_, stride)| stride)],
            alignments: [product.x, product.weight, product.added(), product.out].map(alignment),
            has_bias: product.bias.is_some(),
        }
    }
}

/// Numbers of rows that share an algorithm, so that batches of changing sizes meet few new ones.
fn rounded_rows(rows: usize) -> usize {
    rows.next_multiple_of(match rows {
        0..=64 => 16,
        65..=512 => 64,
        _ => 256,
    })
}

/// The power of two, up to 256, that divides an address.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

/// The matrices, column by column as the library sees them: a row of ours is a column of its.
struct Layouts {
    weight: cublasLtMatrixLayout_t,
    x: cublasLtMatrixLayout_t,
    added: cublasLtMatrixLayout_t,
    out: cublasLtMatrixLayout_t,
}

impl Layouts {
    fn new(product: &Product, rows: usize) -> Result<Self, String> {
        let layout = |dtype: DType, length: usize, count: usize, stride: usize| {
            lt::create_matrix_layout(data_type(dtype), length as u64, count as u64, stride as i64)
                .map_err(|error| format!("cuBLASLt refuses the layout of {product:?}: {:?}", error.0))
        };
        Ok(Self {
            weight: layout(product.operands, product.inputs, product.outputs, product.weight_stride)?,
            x: layout(product.operands, product.inputs, rows, product.x_stride)?,
            added: layout(
                product.dtype,
                product.outputs,
                rows,
                product.residual.map_or(product.outputs, |(_, stride)| stride),
            )?,
            out: layout(product.dtype, product.outputs, rows, product.outputs)?,
        })
    }
}

impl Drop for Layouts {
    fn drop(&mut self) {
        for layout in [self.weight, self.x, self.added, self.out] {
            // SAFETY: each was created once, is destroyed once, and the library keeps no reference to it.
            let _ = unsafe { lt::destroy_matrix_layout(layout) };
        }
    }
}

/// A product with the first matrix transposed, accumulated in 32-bit floats without reduced-precision shortcuts.
fn describe(bias: Option<u64>) -> Result<cublasLtMatmulDesc_t, String> {
    let description = lt::create_matmul_desc(cublasComputeType_t::CUBLAS_COMPUTE_32F, cudaDataType_t::CUDA_R_32F)
        .map_err(|error| format!("cuBLASLt: {:?}", error.0))?;
    let transposed = 1i32;
    set_description(description, Description::CUBLASLT_MATMUL_DESC_TRANSA, &transposed)?;
    if let Some(bias) = bias {
        let data_type = cudaDataType_t::CUDA_R_32F as i32;
        set_description(description, Description::CUBLASLT_MATMUL_DESC_EPILOGUE, &EPILOGUE_BIAS)?;
        set_description(description, Description::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &data_type)?;
        set_description(description, Description::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
    }
    Ok(description)
}

fn set_description<T>(description: cublasLtMatmulDesc_t, attribute: Description, value: &T) -> Result<(), String> {
    // SAFETY: the description is alive, and the value has the size that its attribute takes.
    let result = unsafe {
        lt::set_matmul_desc_attribute(description, attribute, std::ptr::from_ref(value).cast(), size_of::<T>())
    };
    result.map_err(|error| format!("cuBLASLt {attribute:?}: {:?}", error.0))
}

fn data_type(dtype: DType) -> cudaDataType_t {
    match dtype {
        DType::F32 => cudaDataType_t::CUDA_R_32F,
        DType::F16 => cudaDataType_t::CUDA_R_16F,
        DType::BF16 => cudaDataType_t::CUDA_R_16BF,
        E4M3 => cudaDataType_t::CUDA_R_8F_E4M3,
        other => unreachable!("products are of f32, f16, bf16 and e4m3, not of {other:?}"),
    }
}
