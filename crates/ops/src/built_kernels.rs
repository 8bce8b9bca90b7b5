//! CUDA kernels that are compiled ahead, for machines that have a GPU's driver but no compiler.
//!
//! What a model's steps look like ([`StepKernels`]) decides which kernels they may take. [`kernel_tasks`] lists them for a
//! GPU that need not be there; [`check_kernels`] looks for the same ones before the first step.

use std::path::Path;

use burn::tensor::DType;

#[cfg(feature = "cuda")]
use crate::cuda::Task;
use crate::{Activation, DeviceError, QkvOptions};
#[cfg(not(feature = "cuda"))]
use nothing::Task;

/// What stands before a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// A root-mean-square norm.
    Rms,
    /// A layer norm.
    Layer,
}

/// What becomes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It is kept, or added to the residual stream.
    Keep,
    /// It is activated.
    Activate(Activation),
    /// Its second half is multiplied by its activated first.
    Gate(Activation),
    /// It is queries, keys and values.
    Heads,
}

/// One matrix of a model, or several of the same shape.
#[derive(Clone, Copy, Debug)]
pub struct ProjectionShape {
    /// Numbers of a row of its input.
    pub inputs: usize,
    /// Numbers of a row of its result.
    pub outputs: usize,
    /// The norm before it.
    pub norm: Option<NormKind>,
    /// What comes after it.
    pub then: Use,
    /// It may be held in FP8, where the GPU multiplies such.
    pub may_be_fp8: bool,
}

/// What decides which kernels a model's steps may take.
#[derive(Clone, Debug)]
pub struct StepKernels {
    /// Weights and activations.
    pub dtype: DType,
    /// Keys and values.
    pub cache: DType,
    /// Tokens per KV block.
    pub block_size: usize,
    /// Heads, and what is done with them.
    pub qkv: QkvOptions,
    /// Scores of attention have a cap.
    pub is_capped: bool,
    /// The matrices.
    pub projections: Vec<ProjectionShape>,
    /// Every row has the same bits in every batch.
    pub is_batch_invariant: bool,
}

/// One kernel source in one variant for one architecture, to be compiled.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelTask(Task);

impl KernelTask {
    /// The source's file, without its extension.
    pub fn source(&self) -> &'static str {
        self.0.source()
    }

    /// Its macros.
    pub fn variant(&self) -> String {
        self.0.variant()
    }

    /// The compiler's name of the architecture.
    pub fn architecture(&self) -> String {
        self.0.architecture()
    }

    /// Compiles it into a folder, whole or not at all; returns the bytes of machine code.
    pub fn build(&self, folder: &Path) -> Result<usize, DeviceError> {
        self.0.build(folder).map_err(DeviceError::Kernels)
    }
}

/// There is nothing to compile without CUDA.
#[cfg(not(feature = "cuda"))]
mod nothing {
    use std::path::Path;

    #[derive(Clone, Debug, PartialEq)]
    pub(super) enum Task {}

    impl Task {
        pub(super) fn source(&self) -> &'static str {
            match *self {}
        }

        pub(super) fn variant(&self) -> String {
            match *self {}
        }

        pub(super) fn architecture(&self) -> String {
            match *self {}
        }

        pub(super) fn build(&self, _folder: &Path) -> Result<usize, String> {
            match *self {}
        }
    }
}

/// What is to be compiled for cards of a compute capability (10 · major + minor). Needs NVRTC, but no GPU.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
pub fn kernel_tasks(steps: &StepKernels, capability: u32) -> Result<Vec<KernelTask>, DeviceError> {
    #[cfg(feature = "cuda")]
    return match crate::cuda::tasks(steps, capability) {
        Ok(tasks) => Ok(tasks.into_iter().map(KernelTask).collect()),
        Err(reason) => Err(DeviceError::Kernels(reason)),
    };
    #[cfg(not(feature = "cuda"))]
    Err(DeviceError::NotBuilt("cuda"))
}

/// Looks for CUDA kernels in this folder before compiling any. The first call decides for the whole process.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
pub fn use_kernels_in(folder: &Path) {
    #[cfg(feature = "cuda")]
    crate::cuda::use_kernels_in(folder);
}

/// Where this machine cannot compile CUDA kernels: whether all that the steps may take were built ahead, for the GPU that is
/// open. An error names one that was not.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
pub fn check_kernels(steps: &StepKernels) -> Result<(), DeviceError> {
    #[cfg(feature = "cuda")]
    return crate::cuda::check_built(steps).map_err(DeviceError::Kernels);
    #[cfg(not(feature = "cuda"))]
    Ok(())
}

/// Where this machine can compile CUDA kernels: compiles all that the steps may take on the GPU that is open and that are not
/// compiled yet, several at a time.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
pub fn compile_kernels(steps: &StepKernels) {
    #[cfg(feature = "cuda")]
    crate::cuda::compile_missing(steps);
}

/// Whether this machine can compile CUDA kernels: ours, and those of Burn.
pub fn has_kernel_compiler() -> bool {
    #[cfg(feature = "cuda")]
    return crate::cuda::has_compiler();
    #[cfg(not(feature = "cuda"))]
    false
}
