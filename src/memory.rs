//! How the memory of a device is divided: weights, activations, and blocks of the KV cache.

use burn::tensor::Device;
use firebrick_checkpoint::{BatchLimits, Checkpoint, Dtype, KvDtype, MemoryPlan, ModelConfig, PlanOptions};
use firebrick_executor::available_host_memory;
use firebrick_model::{Fp8, KvCache};
use firebrick_ops::{Backend, backend_of, compute_capability, device_memory, free_device_memory};

use crate::forms::{choose_fp8, choose_kv_dtype, keeps_packed};
use crate::{Error, Options};

/// Most memory that the KV cache takes on the CPU unless told otherwise.
const CPU_KV_BYTES_MAX: u64 = 4 << 30;

/// The same through wgpu, which does not say how much memory an adapter has.
const WGPU_KV_BYTES_MAX: u64 = 1 << 30;

pub(crate) fn choose_model_len(wanted: Option<usize>, config: &ModelConfig) -> Result<usize, Error> {
    let trained = config.max_position_embeddings;
    match wanted {
        Some(0) => Err(Error::Option("max_model_len is 0; it must be at least 1".into())),
        Some(wanted) if wanted > trained => Err(Error::Option(format!(
            "max_model_len is {wanted}, but the model was made for {trained} tokens; use --max-model-len {trained} or less"
        ))),
        Some(wanted) => Ok(wanted),
        None => Ok(trained),
    }
}

pub(crate) fn memory_plan(
    checkpoint: &Checkpoint,
    options: &Options,
    (backend, device): (Backend, &Device),
    dtype: Dtype,
    max_model_len: usize,
) -> Result<MemoryPlan, Error> {
    let config = checkpoint.config();
    let measured = || device_memory(device).or_else(available_host_memory).unwrap_or(u64::MAX >> 8);
    let memory = options.memory_bytes.unwrap_or_else(measured);
    let plan_options = PlanOptions::new(config, backend.name(), memory);
    let memory_utilization = match free_device_memory(device) {
        Some(free) if options.memory_bytes.is_none() && options.num_kv_caches_made == 0 => {
            share_left(options.gpu_memory_utilization, (memory, free), plan_options.runtime_bytes)
        }
        _ => options.gpu_memory_utilization,
    };
    let packed_weight_bytes = match choose_fp8(checkpoint, options, device, dtype)? {
        Fp8::All => Some(checkpoint.made_fp8_bytes(dtype)),
        Fp8::Stored => checkpoint.stored_fp8_bytes(dtype),
        Fp8::Never => checkpoint.packed_bytes(dtype).filter(|_| keeps_packed(options, device)),
    };
    let plan_options = PlanOptions {
        dtype,
        packed_weight_bytes,
        kv_dtype: choose_kv_dtype(checkpoint, options, device, dtype)?,
        block_size: options.block_size as usize,
        max_model_len,
        memory_utilization,
        others_bytes: options.others_bytes,
        num_kv_caches: options.num_kv_caches.saturating_sub(options.num_kv_caches_made).max(1).into(),
        keeps_logits: backend == Backend::Cuda,
        ..plan_options.with_limits(batch_limits(options, device))
    };
    Ok(MemoryPlan::new(config, checkpoint.num_parameters(), plan_options))
}

/// As asked for, or as suits the device.
fn batch_limits(options: &Options, device: &Device) -> BatchLimits {
    let gpu = device_memory(device).zip(compute_capability(device));
    let limits = match gpu {
        Some((memory, capability)) => BatchLimits::of_gpu(memory, capability),
        None if backend_of(device) == Backend::Cpu => BatchLimits::ON_CPU,
        None => BatchLimits::DEFAULT,
    };
    let count = |number: Option<u32>| number.map(|number| number as usize);
    limits.with(count(options.max_num_seqs), count(options.max_num_batched_tokens))
}

/// The share of the memory that is wanted, or what other programs leave of it: this one has opened the device already, which
/// takes `runtime_bytes`.
fn share_left(wanted: f32, (total, free): (u64, u64), runtime_bytes: u64) -> f32 {
    let left = ((free + runtime_bytes) as f64 / total.max(1) as f64) as f32;
    if left < wanted {
        let held = total.saturating_sub(free + runtime_bytes) >> 20;
        tracing::warn!(
            "other programs hold {held} MiB of the GPU's memory: this one uses {:.0} % of it instead of {:.0} %",
            left * 100.0,
            wanted * 100.0
        );
    }
    wanted.min(left)
}

/// Blocks of the KV cache: what was asked for, where there is memory for it, or what the plan leaves.
pub(crate) fn num_blocks(plan: &MemoryPlan, options: &Options, backend: Backend) -> Result<u32, Error> {
    let block_bytes = (plan.kv_bytes_per_token * u64::from(options.block_size)).max(1);
    let wanted = match (options.num_gpu_blocks_override, options.kv_cache_memory_bytes) {
        (Some(blocks), _) => Some(("--num-gpu-blocks-override", blocks.into(), blocks.into())),
        (None, Some(bytes)) => Some(("--kv-cache-memory-bytes", bytes, bytes / block_bytes)),
        (None, None) => None,
    };
    if let Some((flag, given, blocks)) = wanted {
        check_blocks(plan, (flag, given), (blocks, block_bytes))?;
        return Ok(u32::try_from(blocks).unwrap_or(u32::MAX >> 8));
    }
    let caches = u64::from(options.num_kv_caches.max(1));
    let most = match backend {
        Backend::Cpu => CPU_KV_BYTES_MAX / caches,
        Backend::Wgpu => WGPU_KV_BYTES_MAX / caches,
        Backend::Cuda => u64::MAX,
    };
    Ok(u32::try_from(plan.kv_bytes().min(most) / block_bytes).unwrap_or(u32::MAX >> 8))
}

/// Refuses a cache that was asked for and holds nothing, or more than the memory beside the weights.
fn check_blocks(plan: &MemoryPlan, (flag, given): (&str, u64), (blocks, block_bytes): (u64, u64)) -> Result<(), Error> {
    let left = plan.options.memory_bytes.saturating_sub(plan.weight_bytes);
    let mebibytes = |bytes: u64| bytes.div_ceil(1 << 20);
    let problem = match blocks.checked_mul(block_bytes) {
        _ if blocks == 0 => format!("which is less than one block of {block_bytes} bytes"),
        Some(bytes) if bytes <= left => return Ok(()),
        bytes => format!(
            "which takes {} MiB, but {} MiB are there beside the weights; at most {} blocks fit",
            mebibytes(bytes.unwrap_or(u64::MAX)),
            left >> 20,
            left / block_bytes
        ),
    };
    Err(Error::Option(format!("{flag} is {given}, {problem}")))
}

/// Blocks whose tensors the device can hold, whatever memory it has; one less, which recorded steps may need.
pub(crate) fn num_blocks_max(config: &ModelConfig, (dtype, block_size): (KvDtype, u32), device: &Device) -> u32 {
    let fit = KvCache::num_blocks_max(config, (dtype, block_size as usize), device);
    u32::try_from(fit.saturating_sub(1)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_holds_nothing_or_has_no_room_is_refused_with_the_flag_that_asked_for_it() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama-tied");
        let checkpoint = Checkpoint::open(&folder).expect("the fixture opens");
        let plan_options = PlanOptions::new(checkpoint.config(), "cpu", 1 << 30);
        let plan = MemoryPlan::new(checkpoint.config(), checkpoint.num_parameters(), plan_options);
        let blocks = |options: Options| num_blocks(&plan, &options, Backend::Cpu).map_err(|error| error.to_string());
        let of_blocks = |blocks| Options { num_gpu_blocks_override: Some(blocks), ..Options::default() };
        let of_bytes = |bytes| Options { kv_cache_memory_bytes: Some(bytes), ..Options::default() };
        assert_eq!(blocks(of_blocks(40)), Ok(40));
        assert!(blocks(of_bytes(1 << 20)).is_ok_and(|blocks| blocks > 0));
        for (options, reason) in [
            (of_blocks(u32::MAX), "--num-gpu-blocks-override is 4294967295, which takes"),
            (of_bytes(100 << 40), "--kv-cache-memory-bytes is 109951162777600, which takes"),
            (of_bytes(1), "--kv-cache-memory-bytes is 1, which is less than one block"),
        ] {
            assert!(blocks(options).expect_err("refused").contains(reason));
        }
    }

    #[test]
    fn what_other_programs_hold_of_a_gpu_is_left_to_them() {
        let total = 80 << 30;
        assert_eq!(share_left(0.9, (total, total - (1 << 29)), 1 << 29), 0.9, "nobody else is there");
        assert_eq!(share_left(0.9, (total, 60 << 30), 0), 0.75);
        assert_eq!(share_left(0.5, (total, 60 << 30), 0), 0.5);
    }
}
