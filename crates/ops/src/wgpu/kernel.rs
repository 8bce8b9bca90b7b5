//! How WGSL reaches the device: through Burn's own queue, memory and pipeline cache.
//!
//! A launch names a shader, its constants, the tensors in binding order and the parameters. The parameters are one
//! uniform buffer after the tensors, uploaded once per distinct content. Tensors may share a buffer, so every tensor is
//! bound `read_write`, and no tensor may be bound twice.

use std::cell::Cell;

use burn::tensor::{DType, Shape};
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::{AddressType, ElemType, UIntKind, metadata::Info};
use cubecl::prelude::*;
use cubecl::server::KernelArguments;
use cubecl::{CubeKernel, PrecompiledSource};
use cubecl_runtime::server::MetadataBindingInfo;

use super::template::{Constants, render};
use super::thread;

/// Workgroups along one dimension of a grid, WebGPU's guaranteed limit.
const GRID_DIMENSION_MAX: usize = 65_535;

/// Launches that a GPU begins with while more are enqueued.
const BEGUN_AFTER: usize = 32;

thread_local! {
    /// What this thread has launched that its GPU may not have begun with.
    static LAUNCHED: Cell<usize> = const { Cell::new(0) };
}

/// The text of one kernel: parts of `shaders/`, put together in order.
#[derive(Debug)]
pub(super) struct Shader {
    /// Distinguishes kernels in caches and logs.
    pub name: &'static str,
    /// Included files.
    pub parts: &'static [&'static str],
}

/// One dispatch.
pub(super) struct Launch<'a> {
    pub shader: &'static Shader,
    /// Constants substituted in the text, with `WORKGROUP`, the threads of a workgroup.
    pub constants: Constants,
    /// The tensors in the order of the shader's bindings.
    pub tensors: &'a [&'a CubeTensor],
    /// The members of the shader's `Parameters`.
    pub parameters: &'a [u32],
    /// Workgroups, numbered by `workgroup_index` in the shader.
    pub workgroups: usize,
}

impl Launch<'_> {
    /// Enqueues the dispatch on the tensors' device; nothing to do is not dispatched.
    pub fn enqueue(self) {
        if self.workgroups == 0 {
            return;
        }
        let kernel = WgslKernel { shader: self.shader, constants: self.constants };
        let bindings = self.tensors.iter().map(|tensor| tensor.handle.clone().binding()).collect();
        let mut arguments = KernelArguments::new().with_buffers(bindings);
        arguments.info = MetadataBindingInfo::custom(uniform_words(self.parameters));
        let on = self.tensors[0];
        on.client.launch(Box::new(kernel), grid(self.workgroups), arguments);
        LAUNCHED.set(LAUNCHED.get() + 1);
        if LAUNCHED.get() >= BEGUN_AFTER {
            LAUNCHED.set(0);
            thread::begin(&on.device);
        }
    }
}

/// Parameters as the 64-bit words that CubeCL uploads, filled up to the 16 bytes of a uniform's alignment.
fn uniform_words(parameters: &[u32]) -> Vec<u64> {
    let mut padded = parameters.to_vec();
    padded.resize(parameters.len().next_multiple_of(4), 0);
    padded.chunks_exact(2).map(|pair| u64::from(pair[0]) | u64::from(pair[1]) << 32).collect()
}

/// At least `workgroups` workgroups, folded over two dimensions when one is too short.
fn grid(workgroups: usize) -> CubeCount {
    let rows = workgroups.div_ceil(GRID_DIMENSION_MAX);
    CubeCount::Static(workgroups.div_ceil(rows) as u32, rows as u32, 1)
}

/// A shader with its constants, as CubeCL compiles and caches it.
#[derive(Debug)]
struct WgslKernel {
    shader: &'static Shader,
    constants: Constants,
}

impl WgslKernel {
    fn workgroup(&self) -> CubeDim {
        let size = self.constants.iter().find(|(name, _)| *name == "WORKGROUP");
        CubeDim::new_1d(size.expect("every launch gives WORKGROUP").1)
    }
}

impl KernelMetadata for WgslKernel {
    fn name(&self) -> &'static str {
        self.shader.name
    }

    fn id(&self) -> KernelId {
        // Pipelines are kept in memory only, so the name stands for the text.
        let id = KernelId::new::<Self>().info((self.shader.name, self.constants.clone()));
        // Unchecked: every loop here is bounded by its parameters, and a counter in each would cost.
        id.cube_dim(self.workgroup().0).mode(ExecutionMode::Unchecked)
    }

    fn address_type(&self) -> ElemType {
        UIntKind::U32.into()
    }
}

impl CubeKernel for WgslKernel {
    fn define(&self) -> KernelDefinition {
        let settings = KernelSettings::new(self.workgroup().0, ExecutionMode::Unchecked, AddressType::U32);
        KernelDefinition { body: Scope::root(settings.clone()), settings, info: Info::default() }
    }

    fn source(&self) -> Option<PrecompiledSource> {
        let source = render(&self.shader.parts.concat(), &self.constants);
        Some(PrecompiledSource { source, entrypoint_name: "main".into(), lang: "wgsl" })
    }
}

/// A new tensor `[rows, columns]` of 32-bit floats on the device of `like`; its values are undefined.
pub(super) fn empty2(like: &CubeTensor, rows: usize, columns: usize) -> CubeTensor {
    let handle = like.client.empty(rows * columns * size_of::<f32>());
    let shape = Shape::from([rows, columns]);
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, handle, DType::F32)
}

/// `[rows, columns]` of a tensor of rank 2.
pub(super) fn dims2(tensor: &CubeTensor) -> [usize; 2] {
    let shape = tensor.meta.shape();
    [shape[0], shape[1]]
}

/// The tensor with its elements in row-major order, copied only if they are not.
pub(super) fn contiguous(tensor: CubeTensor) -> CubeTensor {
    burn_cubecl::kernel::into_contiguous(tensor)
}

/// The tensor in row-major order with no other owner, copied only if it is not.
pub(super) fn exclusive(tensor: CubeTensor) -> CubeTensor {
    let tensor = contiguous(tensor);
    if tensor.can_mut() { tensor } else { tensor.copy() }
}

/// 1 if the elements of a row of `columns` can be read four at a time.
pub(super) fn vector(columns: usize) -> u32 {
    u32::from(columns.is_multiple_of(4))
}

/// Elements of a row read as [`vector`] says.
pub(super) fn elements(columns: usize) -> u32 {
    if columns.is_multiple_of(4) { columns as u32 / 4 } else { columns as u32 }
}

/// 1 for weights of 16 bits, 0 for 32.
pub(super) fn half(weight: &CubeTensor) -> u32 {
    match weight.dtype {
        DType::F16 => 1,
        DType::F32 => 0,
        other => panic!("the wgpu kernels read f32 and f16, not {other:?}: `Weight` was made with another dtype"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_covers_its_workgroups_within_the_limit() {
        for count in [1, 65_535, 65_536, 131_071, 300_000_000] {
            let CubeCount::Static(x, y, z) = grid(count) else { panic!("static") };
            assert!(x as usize <= GRID_DIMENSION_MAX && y as usize <= GRID_DIMENSION_MAX && z == 1);
            assert!((x * y) as usize >= count && ((x * y) as usize) < count + y as usize);
        }
    }
}
