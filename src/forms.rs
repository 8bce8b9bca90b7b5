//! On which device a model is computed, and in which form its weights, keys and values are there.

use std::sync::Once;

use burn::tensor::{DType, Device};
use firebrick_checkpoint::{Checkpoint, Dtype, KvDtype};
use firebrick_model::{Fp8, KernelOptions, step_kernels};
use firebrick_ops::{
    Backend, DeviceError, activation_dtype, backend_of, check_kernels, computes_in, holds_fp8_cache, holds_fp8_weights,
    holds_packed_weights, open_device, use_batch_invariant_kernels, use_cuda_kernels_of, use_kernels_in,
};

use crate::{DeviceChoice, Error, KvCacheDtype, Options};

/// The weights are what the option says, where it says anything.
pub(crate) fn check_quantization(checkpoint: &Checkpoint, options: &Options) -> Result<(), Error> {
    let Some(wanted) = options.quantization.as_deref() else { return Ok(()) };
    let found = checkpoint.quantization_method().unwrap_or("none");
    if wanted.eq_ignore_ascii_case(found) || makes_fp8(checkpoint, options) {
        return Ok(());
    }
    Err(Error::Option(format!(
        "--quantization is {wanted}, but the model's weights are {}; leave it out: the files say how they are to be read",
        if found == "none" { "not quantised, and are not quantised here" } else { found }
    )))
}

/// Whether linear layers are to be rounded to FP8: those that the file holds in a form that CUDA computes with in 16 bits.
fn makes_fp8(checkpoint: &Checkpoint, options: &Options) -> bool {
    let is_wanted = options.quantization.as_deref().is_some_and(|wanted| wanted.eq_ignore_ascii_case("fp8"));
    is_wanted && matches!(checkpoint.quantization_method(), None | Some("gguf"))
}

/// Which linear layers' weights are in FP8: on devices that are faster with it those that the file has so, and all if that is
/// asked for. Not where no bit may depend on the batch: many rows are rounded to FP8 too, few are not.
pub(crate) fn choose_fp8(
    checkpoint: &Checkpoint,
    options: &Options,
    device: &Device,
    dtype: Dtype,
) -> Result<Fp8, Error> {
    let is_made = makes_fp8(checkpoint, options);
    let obstacle = if !holds_fp8_weights(device) {
        "this device does not compute with; it takes --device cuda and a card of compute capability 8.9 or later"
    } else if dtype == Dtype::F32 {
        "does not go with --dtype float32; use bfloat16 or float16"
    } else if options.deterministic {
        "does not go with --deterministic; leave one of them out"
    } else {
        let kernel_options = KernelOptions {
            dtype,
            kv_dtype: choose_kv_dtype(checkpoint, options, device, dtype)?,
            block_size: options.block_size as usize,
            deterministic: false,
            fp8_weights: true,
        };
        return match check_kernels(&step_kernels(checkpoint.config(), kernel_options)) {
            Ok(()) => Ok(if is_made { Fp8::All } else { Fp8::Stored }),
            // Nothing can be compiled, and what was built is not for FP8.
            Err(error) if is_made => Err(error.into()),
            Err(_) => Ok(Fp8::Never),
        };
    };
    match is_made {
        true => Err(Error::Option(format!("--quantization is fp8, which {obstacle}"))),
        false => Ok(Fp8::Never),
    }
}

/// Where a model with these options is computed; it opens the device.
pub fn chosen_backend(options: &Options) -> Result<Backend, Error> {
    choose_device(options).map(|(backend, _)| backend)
}

pub(crate) fn choose_device(options: &Options) -> Result<(Backend, Device), Error> {
    if let Some(folder) = &options.kernels {
        use_kernels_in(folder);
    }
    let (backend, device) = match options.device {
        DeviceChoice::Backend(backend) => (backend, open_device(backend)?),
        DeviceChoice::Auto => match open_device(Backend::Cuda) {
            Ok(device) => (Backend::Cuda, device),
            Err(missing) => {
                if matches!(missing, DeviceError::Unusable { .. }) {
                    static SAID: Once = Once::new();
                    SAID.call_once(|| {
                        tracing::warn!("{missing}; going on without it (--device cuda makes this an error)");
                    });
                }
                match open_device(Backend::Cpu) {
                    Ok(device) => (Backend::Cpu, device),
                    Err(_) => (Backend::Wgpu, open_device(Backend::Wgpu)?),
                }
            }
        },
    };
    if options.deterministic {
        use_batch_invariant_kernels();
    }
    match options.cuda_arch_path {
        Some(_) if backend != Backend::Cuda => {
            let problem = format!("--cuda-arch-path needs --device cuda, and the device is {}", backend.name());
            Err(Error::Option(problem))
        }
        Some(capability) => Ok(use_cuda_kernels_of(capability).map(|()| (backend, device))?),
        None => Ok((backend, device)),
    }
}

/// The form of the weights on the device. A bfloat16 checkpoint becomes float16 where that is what the device has; asking
/// for bfloat16 there is an error.
pub(crate) fn choose_dtype(wanted: Option<Dtype>, stored: Dtype, device: &Device) -> Result<Dtype, Error> {
    let dtype = wanted.unwrap_or(stored);
    if computes_in(device, burn_dtype(dtype)) {
        return Ok(dtype);
    }
    match wanted {
        Some(_) => Err(Error::Option(format!(
            "--dtype is {dtype}, but this device does not compute in it; use auto or float16"
        ))),
        None => Ok(Dtype::F16),
    }
}

fn burn_dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
    }
}

/// Quantised weights stay as they are where the device computes with them, unless a dtype was asked for.
pub(crate) fn keeps_packed(options: &Options, device: &Device) -> bool {
    options.dtype.is_none() && holds_packed_weights(device)
}

/// What the device computes in with weights of `dtype`, or what was asked for.
pub(crate) fn choose_kv_dtype(
    checkpoint: &Checkpoint,
    options: &Options,
    device: &Device,
    dtype: Dtype,
) -> Result<KvDtype, Error> {
    if options.kv_cache_dtype == KvCacheDtype::Auto {
        let is_single = activation_dtype(device, burn_dtype(dtype)) == DType::F32;
        return Ok(if is_single { Dtype::F32 } else { dtype }.into());
    }
    if !holds_fp8_cache(device) {
        return Err(Error::Option(format!(
            "--kv-cache-dtype is fp8, but {} keeps keys and values in 32-bit floats only; use auto, or --device cuda or cpu",
            backend_of(device).name()
        )));
    }
    let is_scale = |name: &&str| [".k_scale", ".v_scale", ".kv_scale"].iter().any(|end| name.ends_with(end));
    match checkpoint.tensor_names().find(is_scale) {
        Some(name) => Err(Error::Option(format!(
            "--kv-cache-dtype is fp8, and the model brings scales for it ({name}), which are not applied here; use auto"
        ))),
        None => Ok(KvDtype::E4m3),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn weights_that_are_quantised_otherwise_than_asked_for_are_refused() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantised/awq");
        let checkpoint = Checkpoint::open(&folder).expect("the fixture opens");
        let check = |wanted: Option<&str>| {
            let options = Options { quantization: wanted.map(str::to_owned), ..Options::default() };
            check_quantization(&checkpoint, &options).map_err(|error| error.to_string())
        };
        assert_eq!((check(None), check(Some("awq")), check(Some("AWQ"))), (Ok(()), Ok(()), Ok(())));
        for wanted in ["gptq", "none"] {
            let refusal = check(Some(wanted)).expect_err("refused");
            assert!(
                refusal.contains(&format!("--quantization is {wanted}, but the model's weights are awq")),
                "{refusal}"
            );
        }
    }

    #[test]
    fn rounding_to_fp8_is_refused_where_it_is_not_computed_with() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let wanted = Options { quantization: Some("fp8".into()), ..Options::default() };
        let cpu = open_device(Backend::Cpu).expect("the CPU is always there");
        let choose = |folder: &str, options: &Options| {
            let checkpoint = Checkpoint::open(&fixtures.join(folder)).expect("the fixture opens");
            check_quantization(&checkpoint, options).map_err(|error| error.to_string())?;
            choose_fp8(&checkpoint, options, &cpu, Dtype::BF16).map_err(|error| error.to_string())
        };
        let refusal = choose("models/llama", &wanted).expect_err("the CPU has no kernels for it");
        assert!(refusal.contains("--quantization is fp8, which this device does not compute with"), "{refusal}");
        assert!(refusal.contains("--device cuda"), "{refusal}");
        // What is FP8 in the file is read everywhere.
        assert_eq!(choose("quantised/fp8-blocks", &wanted), Ok(Fp8::Never));
        assert_eq!(choose("quantised/fp8-rows", &Options::default()), Ok(Fp8::Never));
        assert!(choose("quantised/awq", &wanted).expect_err("it is AWQ").contains("the model's weights are awq"));
    }

    #[test]
    fn kernels_of_older_cards_are_refused_where_there_are_none() {
        let device = DeviceChoice::Backend(Backend::Cpu);
        let options = Options { device, cuda_arch_path: Some(75), ..Options::default() };
        let refusal = choose_device(&options).map(|_| ()).expect_err("the CPU has no such kernels").to_string();
        assert_eq!(refusal, "--cuda-arch-path needs --device cuda, and the device is cpu");
        assert!(choose_device(&Options { cuda_arch_path: None, ..options }).is_ok());
    }

    #[test]
    fn a_cache_of_eight_bits_is_refused_where_the_device_has_none_or_scales_would_be_left_out() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama-tied");
        let checkpoint = Checkpoint::open(&folder).expect("the fixture opens");
        let options = Options { kv_cache_dtype: KvCacheDtype::Fp8E4m3, ..Options::default() };
        let choose = |checkpoint: &Checkpoint, device: &Device| {
            choose_kv_dtype(checkpoint, &options, device, Dtype::F16).map_err(|error| error.to_string())
        };
        let cpu = open_device(Backend::Cpu).expect("the CPU is always there");
        assert_eq!(choose(&checkpoint, &cpu), Ok(KvDtype::E4m3));
        if let Ok(wgpu) = open_device(Backend::Wgpu) {
            let refusal = choose(&checkpoint, &wgpu).expect_err("wgpu has no such cache");
            assert!(refusal.contains("wgpu keeps keys and values in 32-bit floats"), "{refusal}");
        }
        let scaled = scaled_copy(&folder);
        let checkpoint = Checkpoint::open(scaled.path()).expect("scales do not keep a model from being opened");
        let refusal = choose(&checkpoint, &cpu).expect_err("its scales would be left out");
        assert!(refusal.contains("model.layers.0.self_attn.k_scale"), "{refusal}");
    }

    /// A copy of a model that brings a scale for its keys.
    fn scaled_copy(folder: &Path) -> tempfile::TempDir {
        let copy = tempfile::tempdir().expect("a temporary folder");
        for entry in folder.read_dir().expect("readable").flatten() {
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("copied");
        }
        let path = copy.path().join("model.safetensors");
        let bytes = std::fs::read(&path).expect("the weights");
        let mut tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors").tensors();
        let one = 1f32.to_le_bytes();
        let scale = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &one).expect("a number");
        tensors.push(("model.layers.0.self_attn.k_scale".into(), scale));
        std::fs::write(&path, safetensors::serialize(tensors, None).expect("written")).expect("written");
        copy
    }
}
