//! How many KV blocks fit.

use std::fs;

/// Memory set aside for keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvBudget {
    /// Bytes of one block in all layers.
    pub block_bytes: u64,
    /// Bytes that may be used.
    pub bytes: u64,
}

impl KvBudget {
    /// Whole blocks that fit.
    pub fn num_blocks(&self) -> u32 {
        (self.bytes / self.block_bytes.max(1)).min(u64::from(u32::MAX >> 8)) as u32
    }
}

/// Bytes of main memory that new programs can use without swapping; `None` where the system does not say.
pub fn available_host_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_blocks_count() {
        assert_eq!(KvBudget { block_bytes: 100, bytes: 999 }.num_blocks(), 9);
    }
}
