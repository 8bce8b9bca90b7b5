//! Memory of well-known GPUs, by name.

/// A GPU as its driver reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Name to ask for it by.
    pub name: &'static str,
    /// All of its memory.
    pub memory_bytes: u64,
    /// Compute capability, 10 · major + minor.
    capability: u32,
}

impl Gpu {
    const fn new(name: &'static str, memory_mib: u64, capability: u32) -> Self {
        Self { name, memory_bytes: memory_mib << 20, capability }
    }

    /// It computes in bfloat16.
    pub fn has_bfloat16(&self) -> bool {
        self.capability >= 80
    }

    /// It multiplies numbers of 8 bits.
    pub fn has_fp8(&self) -> bool {
        self.capability >= 89
    }

    /// Tokens of one batch where nobody says how many.
    pub fn batched_tokens(&self) -> usize {
        batched_tokens(self.memory_bytes, self.capability)
    }

    /// By name, whatever its case, spaces, dashes and a leading "NVIDIA" or "GeForce".
    pub fn find(name: &str) -> Option<&'static Self> {
        let wanted = bare(name);
        GPUS.iter().find(|gpu| bare(gpu.name) == wanted)
    }
}

/// Tokens of one batch where nobody says how many, with CUDA on a GPU of this memory and compute capability (10 · major + minor):
/// vLLM's defaults for a server. Large GPUs of Hopper and later take long prompts in fewer steps.
pub fn batched_tokens(memory_bytes: u64, capability: u32) -> usize {
    const HOPPER: u32 = 90;
    match memory_bytes >> 30 {
        160.. if capability >= HOPPER => 16_384,
        70.. if capability >= HOPPER => 8192,
        _ => BATCHED_TOKENS,
    }
}

/// Tokens of one batch where nobody says how many, on all other devices.
pub const BATCHED_TOKENS: usize = 2048;

fn bare(name: &str) -> String {
    let letters = name.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase());
    letters.collect::<String>().replace("nvidia", "").replace("geforce", "").replace("tesla", "")
}

/// Every known GPU, smallest memory first.
pub const GPUS: [Gpu; 26] = [
    Gpu::new("RTX 2060", 6_144, 75),
    Gpu::new("RTX 2080", 8_192, 75),
    Gpu::new("RTX 3070", 8_192, 86),
    Gpu::new("RTX 4060", 8_188, 89),
    Gpu::new("RTX 2080 Ti", 11_264, 75),
    Gpu::new("RTX 3060", 12_288, 86),
    Gpu::new("RTX 4070", 12_282, 89),
    Gpu::new("T4", 15_360, 75),
    Gpu::new("V100-16GB", 16_384, 70),
    Gpu::new("RTX 4080", 16_376, 89),
    Gpu::new("A10", 23_028, 86),
    Gpu::new("A10G", 23_028, 86),
    Gpu::new("L4", 23_034, 89),
    Gpu::new("RTX 3090", 24_576, 86),
    Gpu::new("RTX 4090", 24_564, 89),
    Gpu::new("V100", 32_768, 70),
    Gpu::new("RTX 5090", 32_607, 120),
    Gpu::new("A100-40GB", 40_960, 80),
    Gpu::new("A40", 46_068, 86),
    Gpu::new("L40S", 46_068, 89),
    Gpu::new("RTX A6000", 49_140, 86),
    Gpu::new("A100", 81_920, 80),
    Gpu::new("A100-80GB", 81_920, 80),
    Gpu::new("H100", 81_559, 90),
    Gpu::new("H200", 143_771, 90),
    Gpu::new("B200", 183_359, 100),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_gpus_since_hopper_take_more_tokens_in_a_batch() {
        let tokens = |name: &str| Gpu::find(name).expect("a known GPU").batched_tokens();
        assert_eq!(["H100", "H200", "B200"].map(tokens), [8192, 8192, 16_384]);
        assert_eq!(["T4", "A10", "L40S", "A100", "RTX 5090"].map(tokens), [2048; 5]);
    }

    #[test]
    fn names_are_found_as_people_write_them() {
        for (written, name) in [
            ("t4", "T4"),
            ("NVIDIA GeForce RTX 4090", "RTX 4090"),
            ("rtx4090", "RTX 4090"),
            ("a100_40gb", "A100-40GB"),
            ("Tesla T4", "T4"),
        ] {
            assert_eq!(Gpu::find(written).unwrap().name, name);
        }
        assert_eq!(Gpu::find("TPU"), None);
    }
}
