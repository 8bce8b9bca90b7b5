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

    /// How much is in one batch where nobody says it.
    pub fn batch_limits(&self) -> BatchLimits {
        BatchLimits::of_gpu(self.memory_bytes, self.capability)
    }

    /// By name, whatever its case, spaces, dashes and a leading "NVIDIA" or "GeForce".
    pub fn find(name: &str) -> Option<&'static Self> {
        let wanted = bare(name);
        GPUS.iter().find(|gpu| bare(gpu.name) == wanted)
    }
}

/// How much is in one batch at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Sequences.
    pub sequences: usize,
    /// Tokens.
    pub tokens: usize,
}

impl BatchLimits {
    /// Where nobody says it, on any GPU.
    pub const DEFAULT: Self = Self { sequences: 256, tokens: 2048 };

    /// Where nobody says it, on the processor, which is busy with a few tokens already: every answer waits as long as a step takes.
    pub const ON_CPU: Self = Self { sequences: 256, tokens: 512 };

    /// Where nobody says it, with CUDA on a GPU of this memory and compute capability (10 · major + minor): vLLM's defaults for a
    /// server. Large GPUs of Hopper and later take long prompts in fewer steps, and more sequences beside each other.
    pub fn of_gpu(memory_bytes: u64, capability: u32) -> Self {
        const HOPPER: u32 = 90;
        match memory_bytes >> 30 {
            160.. if capability >= HOPPER => Self { sequences: 1024, tokens: 16_384 },
            70.. if capability >= HOPPER => Self { sequences: 1024, tokens: 8192 },
            _ => Self::DEFAULT,
        }
    }

    /// With what somebody says. Every running sequence advances in every step, so that a step must have room for all of them.
    pub fn with(self, sequences: Option<usize>, tokens: Option<usize>) -> Self {
        let tokens = tokens.unwrap_or(self.tokens);
        Self { sequences: sequences.unwrap_or(self.sequences.min(tokens)), tokens }
    }
}

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
    fn large_gpus_since_hopper_take_more_in_a_batch() {
        let limits = |name: &str| {
            let BatchLimits { sequences, tokens } = Gpu::find(name).expect("a known GPU").batch_limits();
            (sequences, tokens)
        };
        assert_eq!(["H100", "H200", "B200"].map(limits), [(1024, 8192), (1024, 8192), (1024, 16_384)]);
        assert_eq!(["T4", "A10", "L40S", "A100", "RTX 5090"].map(limits), [(256, 2048); 5]);
    }

    #[test]
    fn no_more_sequences_are_in_a_batch_than_tokens_unless_somebody_says_so() {
        let limits = |sequences, tokens| BatchLimits::DEFAULT.with(sequences, tokens);
        assert_eq!(limits(None, None), BatchLimits::DEFAULT);
        assert_eq!(limits(None, Some(100)), BatchLimits { sequences: 100, tokens: 100 });
        assert_eq!(limits(Some(300), Some(100)), BatchLimits { sequences: 300, tokens: 100 });
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
