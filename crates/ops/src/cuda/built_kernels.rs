//! Which kernels a model's steps may take, so that they can be compiled ahead and looked for before the first step.
//!
//! Every operation says itself how it is compiled; here is listed for which operands that is asked.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use burn::tensor::DType;

use super::gpu::Gpu;
use super::kernel::{Kernel, Module};
use super::linear_few_rows::{FEW_ROWS, Follow, Form, rows_taken, runs_on};
use super::module_cache::{
    Target, build, can_compile, compile, compiler_version, is_built_ahead, is_stored, not_built, supported_targets,
};
use super::paged_attention::Form as AttentionForm;
use super::projection::rotates;
use super::{
    activation, gather_rows, layer_norm, linear, linear_fp8, linear_quantize, linear_tiles, linear_wgmma, probe,
    rms_norm, rope_and_store_kv, sample,
};
use crate::backend::Activated;
use crate::built_kernels::{NormKind, ProjectionShape, StepKernels, Use};
use crate::e4m3::E4M3;

/// One source in one variant for one architecture.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Task {
    module: Module,
    target: Target,
}

impl Task {
    pub(crate) fn source(&self) -> &'static str {
        self.module.name()
    }

    pub(crate) fn variant(&self) -> String {
        self.module.variant()
    }

    pub(crate) fn architecture(&self) -> String {
        self.target.architecture()
    }

    /// Compiles into a folder; returns the bytes of machine code.
    pub(crate) fn build(&self, folder: &Path) -> Result<usize, String> {
        build(&self.module, self.target, folder)
    }
}

/// Everything to be compiled for cards of this compute capability, each once.
pub(crate) fn tasks(steps: &StepKernels, capability: u32) -> Result<Vec<Task>, String> {
    if !can_compile() {
        let advice = "it is part of the CUDA toolkit; put its library folder on LD_LIBRARY_PATH. No GPU is needed";
        return Err(format!("the kernel compiler NVRTC (libnvrtc) cannot be loaded; {advice}"));
    }
    let supported = supported_targets();
    if !supported.contains(&capability) {
        let (major, minor) = compiler_version();
        return Err(format!("NVRTC {major}.{minor} does not compile for sm_{capability}, only for {supported:?}"));
    }
    let target = Target::exactly(capability);
    let modules = modules_of_architecture(steps, capability);
    Ok(modules.into_iter().map(|module| Task { module, target }).collect())
}

/// Whether kernels can be compiled here, those of Burn among them.
pub(crate) fn has_compiler() -> bool {
    can_compile() && probe::check_headers().is_ok()
}

/// Where nothing can be compiled: whether all that the steps may take was built ahead; an error names the first that was not.
pub(crate) fn check_built(steps: &StepKernels) -> Result<(), String> {
    if can_compile() {
        return Ok(());
    }
    let (missing, target) = missing_modules(steps, is_built_ahead);
    match &missing[..] {
        [] => Ok(()),
        [module] => Err(not_built(module, target)),
        [module, others @ ..] => Err(format!("{} ({} more are missing)", not_built(module, target), others.len())),
    }
}

/// Compiles all that the steps may take and nobody has compiled, by all processors, so that no step waits for it. What
/// does not compile says so when it is needed.
pub(crate) fn compile_missing(steps: &StepKernels) {
    if !can_compile() {
        return;
    }
    let (missing, target) = missing_modules(steps, is_stored);
    if missing.is_empty() {
        return;
    }
    let (count, started, next) = (missing.len(), Instant::now(), AtomicUsize::new(0));
    tracing::info!("compiling {count} kernels for {}; the next start finds them", target.architecture());
    let work = || {
        while let Some(module) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = compile(module, target) {
                tracing::debug!("{error}");
            } else if !is_stored(module, target) {
                next.store(count, Ordering::Relaxed); // nothing can be kept here: what is needed will be compiled then
            }
        }
    };
    let workers = thread::available_parallelism().map_or(1, usize::from).min(count);
    thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
    tracing::info!("compiled {count} kernels in {:.1} s", started.elapsed().as_secs_f64());
}

/// What the steps may take on the GPU that is open and is not there, and what it would be compiled for.
fn missing_modules(steps: &StepKernels, is_there: impl Fn(&Module, Target) -> bool) -> (Vec<Module>, Target) {
    let gpu = Gpu::current();
    let target = Target::of(gpu.capability, Gpu::whole().capability);
    (modules(steps, &gpu).into_iter().filter(|module| !is_there(module, target)).collect(), target)
}

/// What any card of this compute capability may take.
fn modules_of_architecture(steps: &StepKernels, capability: u32) -> Vec<Module> {
    let [smallest, largest] = Gpu::of_architecture(capability);
    // How few rows are divided follows from the number of multiprocessors, not only from whether they are many.
    let between = smallest.up_to(&largest);
    let divided = between
        .flat_map(|gpu| steps.projections.iter().flat_map(move |projection| of_few_rows(steps, projection, &gpu)));
    each_once(kernels(steps, &smallest).into_iter().chain(kernels(steps, &largest)).chain(divided))
}

/// The variants of sources, in the order in which a layer needs them.
fn modules(steps: &StepKernels, gpu: &Gpu) -> Vec<Module> {
    each_once(kernels(steps, gpu))
}

fn each_once(kernels: impl IntoIterator<Item = Kernel>) -> Vec<Module> {
    let mut modules: Vec<Module> = Vec::new();
    for kernel in kernels {
        if !modules.contains(&kernel.module) {
            modules.push(kernel.module);
        }
    }
    modules
}

fn kernels(steps: &StepKernels, gpu: &Gpu) -> Vec<Kernel> {
    let (dtype, cache) = (steps.dtype, steps.cache);
    let StepKernels { block_size, is_capped, .. } = *steps;
    let attention = AttentionForm { dtype, cache, heads: steps.qkv.heads, block_size, is_capped, gpu: *gpu };
    let mut kernels: Vec<Kernel> = gather_rows::UNITS.map(gather_rows::kernel).to_vec();
    kernels.extend(attention.kernels(&steps.qkv).into_iter().chain(attention.single_token_kernels()));
    kernels.push(rope_and_store_kv::kernel(dtype, cache, gpu));
    kernels.push(linear::kernel("any_rows", dtype, dtype));
    kernels.push(sample::kernel("sample", dtype));
    for projection in &steps.projections {
        kernels.extend(projection.norm.map(|norm| match norm {
            NormKind::Rms => rms_norm::kernel("rms_norm", dtype),
            NormKind::Layer => layer_norm::kernel(dtype),
        }));
        kernels.extend(match projection.then {
            Use::Activate(kind) => Some(activation::kernel("activation", dtype, kind)),
            Use::Gate(kind) => Some(activation::kernel("gated_activation", dtype, kind)),
            Use::Keep | Use::Heads => None,
        });
        kernels.extend(of_few_rows(steps, projection, gpu));
        if is_fp8(steps, projection, gpu) {
            kernels.extend(of_rows_of_codes(dtype, projection));
        }
        kernels.extend(of_some_rows(steps, projection, gpu));
    }
    // A norm after a sum of its own, as Gemma's.
    if steps.projections.iter().any(|projection| projection.norm == Some(NormKind::Rms)) {
        kernels.push(rms_norm::kernel("add_rms_norm", dtype));
    }
    if steps.is_batch_invariant && takes_few_rows(dtype, gpu) {
        kernels.extend(linear_tiles::kernels(dtype, gpu));
    }
    kernels
}

fn takes_few_rows(dtype: DType, gpu: &Gpu) -> bool {
    matches!(dtype, DType::F16 | DType::BF16) && runs_on(gpu)
}

/// Whether codes of 8 bits may be multiplied.
fn is_fp8(steps: &StepKernels, projection: &ProjectionShape, gpu: &Gpu) -> bool {
    projection.may_be_fp8
        && gpu.capability >= probe::FP8_CAPABILITY
        && !steps.is_batch_invariant
        && matches!(steps.dtype, DType::F16 | DType::BF16)
}

/// The kernels around the library's product of rows that have become codes.
fn of_rows_of_codes(dtype: DType, projection: &ProjectionShape) -> Vec<Kernel> {
    let normed = (projection.norm == Some(NormKind::Rms)).then(|| linear_quantize::kernel(dtype, true));
    let finish = linear_fp8::kernel(dtype, activated(projection));
    [linear_quantize::kernel(dtype, false), finish].into_iter().chain(normed).collect()
}

fn activated(projection: &ProjectionShape) -> Activated {
    match projection.then {
        Use::Activate(kind) => Activated::All(kind),
        Use::Gate(kind) => Activated::Gated(kind),
        Use::Keep | Use::Heads => Activated::Not,
    }
}

/// The kernels that multiply few rows by one matrix: alone with the norm, or several without.
fn of_few_rows(steps: &StepKernels, projection: &ProjectionShape, gpu: &Gpu) -> Vec<Kernel> {
    let ProjectionShape { inputs, outputs, norm, then, .. } = *projection;
    if !takes_few_rows(steps.dtype, gpu) {
        return Vec::new();
    }
    let rotates = then == Use::Heads && rotates(&steps.qkv, steps.dtype, steps.cache);
    let follow = match then {
        Use::Activate(kind) => Follow::Activate(kind),
        Use::Gate(kind) => Follow::Gate(kind),
        Use::Heads if rotates => Follow::Rotate { head_dim: steps.qkv.heads.head_dim },
        Use::Keep | Use::Heads => Follow::Store,
    };
    let cache = if rotates { steps.cache } else { steps.dtype };
    let dtype = steps.dtype;
    let keeps_order = linear_wgmma::keeps_order(dtype, [outputs, inputs], gpu);
    let ordered = steps.is_batch_invariant && keeps_order;
    let of = |weight: DType, rows_max: usize| {
        let form = move |rows, norm| Form { dtype, weight, cache, norm, follow, rows, outputs, inputs, ordered };
        let alone = norm.map(|norm| form(1, Some(norm)).variant(gpu));
        let rows = rows_taken(outputs * inputs, gpu, steps.is_batch_invariant && !keeps_order)
            .take_while(move |&rows| rows <= rows_max);
        alone.into_iter().chain(rows.map(move |rows| form(rows, None).variant(gpu)))
    };
    let codes = is_fp8(steps, projection, gpu).then(|| of(E4M3, FEW_ROWS));
    of(dtype, usize::MAX).chain(codes.into_iter().flatten()).collect()
}

/// The kernels that multiply more rows by one matrix, as far as the library does not.
fn of_some_rows(steps: &StepKernels, projection: &ProjectionShape, gpu: &Gpu) -> Vec<Kernel> {
    let form = linear_wgmma::Form {
        dtype: steps.dtype,
        activated: activated(projection),
        rows: 0,
        outputs: projection.outputs,
        inputs: projection.inputs,
        ordered: steps.is_batch_invariant,
        heads: None,
    };
    let heads = (projection.then == Use::Heads).then(|| {
        let heads = Some((steps.qkv.heads.head_dim, steps.cache));
        linear_wgmma::kernels(linear_wgmma::Form { heads, ..form }, gpu)
    });
    linear_wgmma::kernels(form, gpu).into_iter().chain(heads.into_iter().flatten()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, HeadLayout, QkvOptions};

    /// SmolLM2-135M.
    fn small(dtype: DType, cache: DType) -> StepKernels {
        let shape = |inputs, outputs, norm, then| ProjectionShape { inputs, outputs, norm, then, may_be_fp8: false };
        let norm = Some(NormKind::Rms);
        StepKernels {
            dtype,
            cache,
            block_size: 16,
            qkv: QkvOptions {
                heads: HeadLayout { num_heads: 9, num_kv_heads: 3, head_dim: 64 },
                rotary_dim: 64,
                norm_eps: None,
            },
            is_capped: false,
            projections: vec![
                shape(576, 960, norm, Use::Heads),
                shape(576, 576, None, Use::Keep),
                shape(576, 3072, norm, Use::Gate(Activation::Silu)),
                shape(1536, 576, None, Use::Keep),
                shape(576, 49_152, norm, Use::Keep),
            ],
            is_batch_invariant: false,
        }
    }

    fn variants(steps: &StepKernels, capability: u32, source: &str) -> Vec<String> {
        let modules = modules_of_architecture(steps, capability);
        modules.iter().filter(|module| module.name() == source).map(Module::variant).collect()
    }

    #[test]
    fn what_is_built_for_an_architecture_is_what_any_card_of_it_runs() {
        for (capability, multiprocessors) in [(75, 40), (80, 108), (86, 72), (89, 58), (90, 114), (90, 132)] {
            for (dtype, cache) in [(DType::F16, DType::F16), (DType::BF16, E4M3), (DType::F32, DType::F32)] {
                for is_batch_invariant in [false, true] {
                    let steps = StepKernels { is_batch_invariant, ..small(dtype, cache) };
                    let built = modules_of_architecture(&steps, capability);
                    let [mut card, _] = Gpu::of_architecture(capability);
                    card.multiprocessors = multiprocessors;
                    let taken = modules(&steps, &card);
                    assert!(!taken.is_empty() && taken.iter().all(|module| built.contains(module)), "sm_{capability}");
                }
            }
        }
    }

    #[test]
    fn architectures_take_the_kernels_that_are_written_for_them() {
        let steps = small(DType::F16, DType::F16);
        let count = |capability, source| variants(&steps, capability, source).len();
        assert_eq!([75, 80, 90].map(|capability| count(capability, "paged_attention_wgmma")), [0, 0, 1]);
        assert_eq!([75, 80, 90].map(|capability| count(capability, "paged_attention_tiles")), [1, 1, 0]);
        assert_eq!(count(75, "linear_few_rows"), 0);
        assert_eq!([75, 80, 89].map(|capability| count(capability, "linear_wgmma")), [0; 3]);
        assert!((5..30).contains(&count(90, "linear_wgmma")), "{}", count(90, "linear_wgmma"));
        let invariant = StepKernels { is_batch_invariant: true, ..small(DType::F16, DType::F16) };
        let ordered = |source| variants(&invariant, 90, source).iter().all(|variant| variant.contains("ORDERED=1"));
        assert!(ordered("linear_wgmma") && ordered("linear_few_rows"));
        let tiles = |steps| variants(steps, 90, "linear_wgmma_tiles").len();
        assert_eq!(tiles(&invariant), 3, "what is kept by one block and by two, and gates");
        assert_eq!(tiles(&steps), 3, "heads, and gates in tiles of both widths; the rest goes through the library");
        for steps in [&steps, &invariant] {
            let of = |source| variants(steps, 90, source).len();
            let taken = ["paged_attention_wgmma", "paged_attention_single"].map(of);
            assert_eq!(taken, [1, 1], "prompts; single tokens");
        }
        assert!((10..60).contains(&count(90, "linear_few_rows")), "{}", count(90, "linear_few_rows"));
        // Before 8.0 nothing multiplies bfloat16.
        let steps = small(DType::BF16, DType::BF16);
        assert_eq!(variants(&steps, 75, "paged_attention").len(), 2);
    }

    #[test]
    fn attention_of_rows_that_are_not_rotated_yet_is_built_where_lanes_take_half_a_head() {
        for (head_dim, rotary_dim, expected) in
            [(64, 64, [true, true]), (96, 96, [true, false]), (64, 0, [true, false])]
        {
            let mut steps = small(DType::F16, E4M3);
            steps.qkv.heads.head_dim = head_dim;
            steps.qkv.rotary_dim = rotary_dim;
            let variants = variants(&steps, 90, "paged_attention_decode");
            let has = |fresh| variants.iter().any(|variant| variant.contains(&format!("FRESH={fresh}")));
            assert_eq!(
                [0, 1].map(has),
                expected,
                "heads of {head_dim}, of which {rotary_dim} are rotated: {variants:?}"
            );
        }
    }

    #[test]
    fn weights_of_eight_bits_have_kernels_of_their_own_where_they_are_multiplied() {
        let mut steps = small(DType::BF16, DType::BF16);
        steps.projections[0].may_be_fp8 = true;
        let count = |capability, source| variants(&steps, capability, source).len();
        let of_codes = |capability| {
            let few = variants(&steps, capability, "linear_few_rows");
            few.iter().filter(|variant| variant.contains("WEIGHT=e4m3")).count()
        };
        assert_eq!([86, 89, 90].map(|capability| of_codes(capability) > 0), [false, true, true]);
        // With the norm and without; what is kept.
        assert_eq!([86, 89, 90].map(|capability| count(capability, "linear_quantize")), [0, 2, 2]);
        assert_eq!([86, 89, 90].map(|capability| count(capability, "linear_fp8")), [0, 1, 1]);
        let invariant = StepKernels { is_batch_invariant: true, ..steps.clone() };
        assert!(variants(&invariant, 90, "linear_fp8").is_empty());
    }

    #[test]
    fn a_cache_of_eight_bits_has_kernels_of_its_own() {
        let steps = small(DType::F16, E4M3);
        for (capability, by_integers) in [(86, true), (89, false)] {
            let rotating = variants(&steps, capability, "linear_few_rows");
            let rotating: Vec<_> = rotating.iter().filter(|variant| variant.contains("AFTER=ROTATE")).collect();
            assert!(!rotating.is_empty());
            for variant in rotating {
                assert!(variant.contains("CACHE=e4m3") && variant.contains("E4M3_BY_INTEGERS") == by_integers);
            }
        }
    }
}
